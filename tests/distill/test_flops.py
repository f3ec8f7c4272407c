"""Arithmetic a token against what torch counts while the model runs, and against the published sizes."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_thinkfast.distill.flops import forward_flops_per_token, mean_context, training_flops_per_token
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.models import HybridConfig, HybridForCausalLM

TIME = 256


def config(*mixers, **options):
    return HybridConfig(
        **{
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": len(mixers),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "layer_mixers": list(mixers),
            "tie_word_embeddings": True,
        }
        | options
    )


def counted(config, time, *, train=False):
    """Operations of matrix products and attention a token, as torch sees them while a model runs."""
    model = HybridForCausalLM(config).train(train)
    ids = torch.zeros(1, time, dtype=torch.long)
    # the plain form of attention, whose products the counter sees on a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = model(ids, use_cache=False).logits
        if train:
            out.sum().backward()
    return counter.get_total_flops() / time, model


@pytest.mark.parametrize(
    "mixers",
    [("attention", "attention"), ("mamba2", "attention"), ("discrete_mamba2", "discrete_mamba2"), ("mamba1",)],
)
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False, "num_key_value_heads": 4}])
def test_forward_is_what_torch_counts(mixers, options):
    """Torch counts the masked half of attention too, hence the doubled length, and no element-wise work."""
    ours = config(*mixers, **options)
    products, model = counted(ours, TIME)
    by_element = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, CausalConv1d))
    by_element += sum(6 * 64 * 16 for name in mixers if name == "mamba1")
    assert forward_flops_per_token(ours, seq_len=2 * TIME) == pytest.approx(products + by_element, rel=1e-9)


def test_training_is_what_torch_counts():
    ours = config("attention")
    products, _ = counted(ours, TIME, train=True)
    assert training_flops_per_token(ours, seq_len=2 * TIME) == pytest.approx(products, rel=1e-9)


def test_parts_of_training():
    student, teacher = config("mamba2", "attention"), config("attention", "attention", hidden_size=96)
    forward, layers = (forward_flops_per_token(student, seq_len=64, head=head) for head in (True, False))
    assert forward - layers == 2 * 48 * 101
    plain = training_flops_per_token(student, seq_len=64)
    assert plain == pytest.approx(3 * forward)
    assert training_flops_per_token(student, seq_len=64, gradient_checkpointing=True) == pytest.approx(plain + layers)
    with_teacher = training_flops_per_token(student, seq_len=64, teacher=teacher)
    assert with_teacher == pytest.approx(plain + forward_flops_per_token(teacher, seq_len=64))
    with torch.device("meta"):
        model = HybridForCausalLM(student)
    frozen = sum(
        m.weight.numel()
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, CausalConv1d)) and "mixer" not in name
    )
    only_mixers = training_flops_per_token(student, seq_len=64, trainable=r"\.mixer\.")
    assert only_mixers == pytest.approx(plain - 2 * frozen)


def test_context():
    for length, window in ((8, None), (64, 8), (8, 64)):
        seen = [min(i + 1, window or length) for i in range(length)]
        assert mean_context(length, window) == pytest.approx(sum(seen) / length, abs=0.5)
    long, short = config("attention"), config("attention", sliding_window=8)
    assert forward_flops_per_token(short, seq_len=64) < forward_flops_per_token(long, seq_len=64)


@pytest.mark.parametrize(("name", "weights"), [("llama32_1b", 1_235_814_400), ("llama32_3b", 3_212_749_824)])
def test_published_sizes_cost_two_operations_a_weight(name, weights):
    assert forward_flops_per_token(HybridConfig.published(name), seq_len=0) == pytest.approx(2 * weights, rel=1e-4)
