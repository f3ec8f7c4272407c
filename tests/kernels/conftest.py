"""mamba-ssm's own kernels as the twin of our operators: under Triton's interpreter on a CPU, as they are on a GPU.

``make test-kernels`` sets ``TRITON_INTERPRET=1`` in an environment of its own, because the interpreter needs stand-ins
that no other test should meet. Anywhere else the CPU variants are skipped; those marked ``gpu`` need only the device
and the extra ``cuda``. Every comparison is entered in a table, printed at the end and kept in ``build/kernels.json``.
"""

import contextlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MISSING = [name for name in ("mamba_ssm", "causal_conv1d", "triton") if importlib.util.find_spec(name) is None]
TABLE = Path(__file__).resolve().parents[2] / "build" / "kernels.json"

ROWS: list[dict] = []


def prepare_interpreter():
    """Let mamba-ssm import and launch its Triton kernels where there is no GPU."""
    import torch
    import triton

    for extension in ("selective_scan_cuda", "causal_conv1d_cuda"):  # compiled ones, imported but not called here
        sys.modules[extension] = types.ModuleType(extension)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=2)
    # The tuner is kept, with one choice: its hooks zero what kernels add to. Several choices would be timed on a GPU.
    tune = triton.autotune
    triton.autotune = lambda configs, *args, **options: tune(configs[:1], *args, **options)


if INTERPRETED and not MISSING:
    prepare_interpreter()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the kernels run. A CPU stands for the interpreter."""
    import torch

    if MISSING:
        pytest.skip(f"{MISSING[0]} is not installed; see make test-kernels")
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("the interpreter is off; see make test-kernels")
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA device, and TRITON_INTERPRET unset")
    return torch.device(request.param)


@pytest.fixture
def draw():
    """``draw(*shape)``: standard normal numbers, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def parity(device):
    """``parity(kernel, case, ours, theirs, inputs)``: equal outputs and equal gradients of every input?

    Both functions take the inputs by name, as copies on the device, and return a dictionary of outputs. The loss
    multiplies each output that has a gradient with fixed random numbers; ``backward=False`` is for functions without
    one. A difference counts in parts of the largest entry of its tensor and must not be above ``limit``.
    """
    import torch

    # On a GPU Triton multiplies float32 matrices in TF32, with ten bits.
    usual = 5e-5 if device.type == "cpu" else 1e-2

    def run(function, inputs, backward):
        leaves = {name: value.to(device, copy=True).requires_grad_(backward) for name, value in inputs.items()}
        with torch.set_grad_enabled(backward):
            outputs = function(**leaves)
        if not backward:
            return outputs, {}
        generator = torch.Generator().manual_seed(1)
        factors = {name: torch.randn(value.shape, generator=generator).to(device) for name, value in outputs.items()}
        loss = sum((value * factors[name]).sum() for name, value in outputs.items() if value.requires_grad)
        gradients = torch.autograd.grad(loss, leaves.values())
        return outputs, {f"gradient of {name}": value for name, value in zip(leaves, gradients, strict=True)}

    def largest_difference(own, other):
        assert own.keys() == other.keys()
        found = {}
        for name, value in own.items():
            assert value.shape == other[name].shape, name
            assert value.isfinite().all(), name
            scale = value.abs().max().item()
            assert scale > 0, f"{name} shows nothing: it is zero throughout"
            found[name] = (value - other[name]).abs().max().item() / scale
        return found

    def check(kernel, case, ours, theirs, inputs, *, backward=True, limit=usual):
        parts = zip(run(ours, inputs, backward), run(theirs, inputs, backward), strict=True)
        values, gradients = (largest_difference(own, other) for own, other in parts)
        row = {"kernel": kernel, "case": case, "device": device.type, "values": max(values.values())}
        ROWS.append(row | {"gradients": max(gradients.values(), default=None)})
        wrong = [f"{name}: {found:.1e}" for name, found in (values | gradients).items() if not found <= limit]
        assert not wrong, f"of the largest entry, differences are {', '.join(wrong)}; the limit is {limit:.0e}"

    return check


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(json.dumps(ROWS, indent=1) + "\n")
    show = terminalreporter.write_line
    terminalreporter.section("largest difference, in parts of the largest entry")
    width = [max(len(row[key]) for row in ROWS) for key in ("kernel", "case")]
    show(f"{'kernel':{width[0]}}  {'case':{width[1]}}  device  values   gradients")
    for row in ROWS:
        values, gradients = ("-" if row[key] is None else f"{row[key]:.1e}" for key in ("values", "gradients"))
        show(f"{row['kernel']:{width[0]}}  {row['case']:{width[1]}}  {row['device']:6}  {values:7}  {gradients}")
