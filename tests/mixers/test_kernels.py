"""The fused CUDA kernels against the torch paths, where there is a CUDA device and they are installed."""

import sys
import types

import pytest
import torch
from torch.nn.functional import softplus

from lit_thinkfast.mixers import kernels
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.scan import chunked_scan, scan_step
from lit_thinkfast.mixers.selective import selective_scan, selective_step

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 28 + [2] * 31, [0] * 40 + [1] * 24])


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_cpu_never_gets_a_fused_kernel():
    cpu, x = torch.device("cpu"), torch.zeros(1, 2, 8)
    assert kernels.find_conv(x, 4, "auto") is None
    assert kernels.find_conv_step(x[:, 0], 4, "auto") is None
    assert kernels.find_scan(cpu, "auto") is chunked_scan
    assert kernels.find_selective_scan(cpu, "auto", fresh=True) is selective_scan
    assert kernels.find_scan_step(cpu, "auto") is scan_step
    assert kernels.find_selective_step(cpu, "auto") is selective_step
    assert kernels.find_varlen_attention(cpu, torch.bfloat16) is None


def test_only_auto_takes_a_fused_kernel():
    """CUDA is named, not used: what is asked for decides before anything is loaded."""
    cuda = torch.device("cuda")
    assert kernels.find_scan(cuda, "torch") is chunked_scan
    assert kernels.find_scan(cuda, "auto", torch.float64) is chunked_scan
    assert kernels.find_selective_scan(cuda, "torch", fresh=True) is selective_scan
    assert kernels.find_selective_scan(cuda, "auto", fresh=False) is selective_scan, "it knows no documents or states"
    with pytest.raises(ValueError, match="unknown kernel 'triton'; use one of auto, torch, reference"):
        kernels.check_kernel("triton")


def test_a_build_without_the_scan_of_mamba1_is_told_once(monkeypatch, caplog):
    """mamba-ssm may import although the extension that its Mamba-1 scan calls was not built."""
    module = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_cuda = None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "_load", lambda module, name: print)
    kernels._say_once.cache_clear()
    for _ in range(2):
        assert kernels.find_selective_scan(torch.device("cuda"), "auto", fresh=True) is selective_scan
    assert [record.message for record in caplog.records] == [
        "mamba-ssm was built without selective_scan_cuda; mamba1 runs in torch, which is slower"
    ]
    module.selective_scan_cuda = module
    assert kernels.find_selective_scan(torch.device("cuda"), "auto", fresh=True) is not selective_scan


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("channels", [48, 56])
    @pytest.mark.parametrize("packed", [False, True])
    def test_conv(self, channels, packed):
        """Values and gradients, for rows cut from a wider projection at any place."""
        if kernels.find_conv(torch.zeros(1, device="cuda"), 4, "auto") is None:
            pytest.skip("causal-conv1d is not installed")
        conv, wide = CausalConv1d(channels, kernel_size=4), draw(2, 64, channels + 9, seed=0)
        seq_idx = DOCUMENTS if packed else None
        results = []
        for device in ("cpu", "cuda"):
            x = wide.to(device).requires_grad_()
            seq = None if seq_idx is None else seq_idx.to(device)
            y = conv.to(device)(x[..., 9:], seq_idx=seq)
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
            results.append((y.detach().cpu(), gradient.cpu()))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("packed", [False, True])
    def test_scan(self, packed):
        fused = kernels.find_scan(torch.device("cuda"), "auto")
        if fused is chunked_scan:
            pytest.skip("mamba-ssm is not installed")
        x, B, C = (draw(2, 64, 4, 32, seed=s) for s in range(3))
        dt, A, D = softplus(draw(2, 64, 4, seed=3)), -torch.arange(1.0, 5.0), draw(4, seed=4)
        seq_idx = DOCUMENTS if packed else None
        expected, state = chunked_scan(x, dt, A, B, C, D=D, seq_idx=seq_idx, chunk_size=32)
        moved = [part.cuda() for part in (x, dt, A, B, C)]
        seq = None if seq_idx is None else seq_idx.cuda()
        y, final = fused(*moved, D=D.cuda(), seq_idx=seq, chunk_size=32)
        torch.testing.assert_close(y.cpu(), expected, rtol=1e-2, atol=1e-2)  # the kernel multiplies in TF32
        torch.testing.assert_close(final.cpu(), state, rtol=1e-2, atol=1e-2)

    def test_packed_attention(self):
        from lit_thinkfast.models.attention import attend, visibility

        if kernels.find_varlen_attention(torch.device("cuda"), torch.bfloat16) is None:
            pytest.skip("flash-attn is not installed")
        parts = [draw(2, heads, 64, 32, seed=heads).bfloat16() for heads in (4, 2, 2)]
        results = []
        for device in (torch.device("cpu"), torch.device("cuda")):
            visible = visibility(queries=64, past=0, device=device, seq_idx=DOCUMENTS.to(device), dtype=torch.bfloat16)
            assert visible.documents is not None
            results.append(attend(*(part.to(device) for part in parts), visible, scale=0.2).cpu().float())
        torch.testing.assert_close(*results, rtol=3e-2, atol=3e-2)
