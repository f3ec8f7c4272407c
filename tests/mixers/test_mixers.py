"""Every mixer, run in every way: against its loop over time in float64, in parts, packed, padded, as a matrix."""

import itertools

import pytest
import torch
from torch import nn

from lit_thinkfast.mixers import MIXERS
from lit_thinkfast.mixers.base import States
from lit_thinkfast.mixers.heads import head_shape


def assert_close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mix(mixer, x, *, states=None, attention_mask=None, seq_idx=None):
    return mixer.mix(x, states=states, attention_mask=attention_mask, seq_idx=seq_idx)


def outputs_and_gradients(mixer, x, **options):
    x = x.clone().requires_grad_()
    out, states = mix(mixer, x, **options)
    weighted = [(part * torch.sin(1.0 + torch.arange(part.numel())).view_as(part)).sum() for part in (out, *states)]
    return [out, *states, *torch.autograd.grad(sum(weighted), [x, *mixer.parameters()])]


def documents(time):
    return torch.stack(
        [(torch.rand(time, generator=torch.Generator().manual_seed(row)) < 0.2).cumsum(0) for row in (0, 1)]
    )


@pytest.mark.parametrize("time", [1, 2, 21])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_reference_with_gradients(tools, variant, time, packed):
    x, seq_idx = draw(2, time, 24), documents(time) if packed else None
    results = [outputs_and_gradients(tools.mixer(variant, kernel=k), x, seq_idx=seq_idx) for k in ("reference", "auto")]
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_goes_on_from_a_state(tools, variant, kernel):
    """Initial and final states: a sequence in two parts, with gradients through the state."""
    mixer = tools.mixer(variant, kernel=kernel)
    x = draw(2, 13, 24).requires_grad_()
    whole, last = mix(mixer, x)
    first, between = mix(mixer, x[:, :6])
    second, end = mix(mixer, x[:, 6:], states=between)
    assert_close(torch.cat([first, second], 1), whole)
    for a, b in zip(end, last, strict=True):
        assert_close(a, b)
    gradients = [
        torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (whole, torch.cat([first, second], 1))
    ]
    assert_close(*gradients)


def test_steps_equal_the_sequence(tools, variant):
    mixer = tools.mixer(variant)
    x = draw(2, 11, 24)
    with torch.no_grad():
        expected, last = mix(mixer, x)
        _, states = mix(mixer, x[:, :3])
        states = States(*(part.clone() for part in states))
        for t in range(3, 11):
            assert_close(mixer.step(x[:, t], states), expected[:, t])
    for a, b in zip(states, last, strict=True):
        assert_close(a, b)


def test_packed_documents_equal_separate_ones(tools, variant):
    mixer = tools.mixer(variant)
    x, edges = draw(1, 17, 24), [0, 1, 4, 5, 12, 17]
    lengths = torch.tensor([b - a for a, b in itertools.pairwise(edges)])
    seq_idx = torch.repeat_interleave(torch.arange(5), lengths)[None]
    packed, last = mix(mixer, x, seq_idx=seq_idx)
    for a, b in itertools.pairwise(edges):
        alone, states = mix(mixer, x[:, a:b])
        assert_close(packed[:, a:b], alone)
    assert_close(last.state, states.state)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_no_trace(tools, variant, kernel, side):
    mixer = tools.mixer(variant, kernel=kernel)
    lengths, x = [9, 4, 1], draw(3, 9, 24)
    mask = torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(9 - length, 9) if side == "left" else slice(0, length)] = 1
    out, states = mix(mixer, x, attention_mask=mask)
    assert torch.isfinite(out).all()
    for row in range(3):
        alone, own = mix(mixer, x[row : row + 1, mask[row].bool()])
        assert_close(out[row, mask[row].bool()], alone[0])
        for a, b in zip(states, own, strict=True):
            assert_close(a[row], b[0])


def test_state_shapes_are_told_in_advance(tools, variant):
    mixer = tools.mixer(variant)
    name, options = tools.variants[variant]
    shapes = MIXERS[name].state_shapes(tools.config(), options)
    _, states = mix(mixer, draw(2, 5, 24))
    assert [tuple(part.shape[1:]) for part in states] == [tuple(shape) for shape in shapes]


def test_matrix_maps_inputs_to_outputs(tools, variant):
    """``M x`` is the scan, D included; nothing above the diagonal, nothing across documents, nothing from padding."""
    mixer = tools.mixer(variant)
    if variant.startswith("mamba1"):
        with pytest.raises(ValueError, match="a Mamba1Mixer has no matrix for each head"):
            mixer.matrix(draw(2, 5, 24))
        return
    x, mask = draw(2, 15, 24), torch.ones(2, 15, dtype=torch.long)
    mask[1, :4] = 0
    for options in ({}, {"seq_idx": documents(15)}, {"attention_mask": mask}):
        M = mixer.matrix(x, **options)
        conv_out, rest, padding = mixer.conv_outputs(x, options.get("attention_mask"), options.get("seq_idx"))
        values = mixer._recurrence(conv_out, rest, padding)[0]
        expected, _ = mixer.scan(conv_out, rest, mask=padding, seq_idx=options.get("seq_idx"), state=None)
        assert_close(torch.einsum("bhls,bshp->blhp", M, values).flatten(2), expected)
        assert not M.triu(1).any()
    documents_apart = documents(15)[:, None, :, None] != documents(15)[:, None, None, :]
    assert not mixer.matrix(x, seq_idx=documents(15))[documents_apart.expand_as(M)].any()
    assert not mixer.matrix(x, attention_mask=mask)[1, :, 4:, :4].any()


def test_float32_is_close_to_float64(tools, variant):
    x = draw(2, 40, 24)
    expected, _ = mix(tools.mixer(variant, kernel="reference"), x)
    actual, _ = mix(tools.mixer(variant, dtype=torch.float32), x.float())
    assert_close(actual.double(), expected, 1e-4)


def test_decays_stay_in_float32(tools, variant):
    mixer = tools.mixer(variant, dtype=torch.float32)
    exact = {name: getattr(mixer, name).clone() for name in mixer.full_precision}
    assert "D" in exact
    mixer.bfloat16()
    for name, parameter in mixer.named_parameters():
        assert parameter.dtype == (torch.float32 if name in exact else torch.bfloat16)
    for name, values in exact.items():
        assert torch.equal(getattr(mixer, name), values)
    out, states = mix(mixer, draw(2, 7, 24).bfloat16())
    assert (out.dtype, states.state.dtype) == (torch.bfloat16, torch.float32)
    assert mixer.double().bfloat16().D.dtype == torch.float32


class Attention(nn.Module):
    """Projections of an attention layer with grouped heads."""

    def __init__(self, config, bias):
        super().__init__()
        heads, kv_heads, width = head_shape(config)
        self.q_proj = nn.Linear(config.hidden_size, heads * width, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * width, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * width, bias=bias)
        self.o_proj = nn.Linear(heads * width, config.hidden_size, bias=bias)


def linear_attention(attention, u, *, width=8, repeats=2):
    """``o_proj(sum_{s <= t} (q_t . k_s) v_s)``, un-normalised, without positions, head by head."""
    q, k, v = (getattr(attention, name)(u).unflatten(-1, (-1, width)) for name in ("q_proj", "k_proj", "v_proj"))
    outs = []
    for head in range(q.shape[2]):
        group = head // repeats
        scores = (q[:, :, head] @ k[:, :, group].mT).tril()
        outs.append(scores @ v[:, :, group])
    return attention.o_proj(torch.cat(outs, -1))


class NoNorm(nn.Module):
    def forward(self, y, z):
        return y


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["mamba1", "mamba2", "discrete_mamba2"])
def test_without_its_extras_it_is_linear_attention(tools, name, bias):
    """Identity convolution, no SiLU, gate open, no norm, decay one, step one, D zero (method of initialisation)."""
    config = tools.config(attention_bias=bias)
    torch.manual_seed(0)
    attention = Attention(config, bias).double()
    mixer = MIXERS[name](config, 0, **({"d_state": 8} if name == "mamba1" else {})).double()
    mixer.init_from_attention(attention)
    mixer.activate = False
    mixer.conv1d.init_identity()
    with torch.no_grad():
        mixer.D.zero_()
        if name == "discrete_mamba2":  # its gate is open already
            mixer.in_proj.weight[-4:] = 0  # logits of the decay
            if mixer.in_proj.bias is not None:
                mixer.in_proj.bias[-4:] = -torch.inf
        else:
            mixer.A_log.fill_(-torch.inf)
            mixer.dt_bias.fill_(torch.log(torch.expm1(torch.ones((), dtype=torch.float64))))
            (mixer.dt_proj.weight if name == "mamba1" else mixer.in_proj.weight[-4:]).zero_()
            mixer.norm = NoNorm()
    if name == "mamba1":
        mixer.gate = lambda y, z: y
    if name == "discrete_mamba2" and not bias:
        project = mixer.project
        mixer.project = lambda u: (parts := project(u))._replace(rest=(torch.full_like(parts.rest[0], -torch.inf),))
    u = draw(2, 13, 24)
    for kernel in ("auto", "reference"):
        mixer.kernel = kernel
        assert_close(mix(mixer, u)[0], linear_attention(attention, u), 1e-11)


def test_published_repetition_meets_few_slices(tools):
    """``gqa_expand``: which slice of K each slice of Q meets. The published one is right for a quarter of them in 1B."""
    config = tools.config(hidden_size=2048, num_attention_heads=32, num_key_value_heads=8, head_dim=64)
    right = {}
    for expand in ("head", "reference"):
        with torch.device("meta"):
            mixer = MIXERS["mamba1"](config, 0, gqa_expand=expand)
        met = mixer._repeat(torch.arange(512.0)).view(128, 16)[:, 0]  # first K row that each group of 16 channels meets
        wanted = torch.tensor([(g // 4 // 4) * 64 + (g % 4) * 16 for g in range(128)])
        right[expand] = int((met == wanted).sum())
    assert right == {"head": 128, "reference": 32}


def test_the_bias_added_twice(tools):
    once, twice = (tools.mixer("mamba1") for _ in range(2))
    twice.dt_bias_mult = 2
    with torch.no_grad():
        once.dt_bias.mul_(2)
    assert_close(mix(once, draw(1, 5, 24))[0], mix(twice, draw(1, 5, 24))[0])


def test_neutral_start(tools):
    config = tools.config()
    mixer = MIXERS["discrete_mamba2"](config, 0).double()
    mixer.init_mohawk()
    u = draw(1, 6, 24)
    z = mixer.project(u).z
    y = draw(1, 6, 32)
    assert_close(mixer.gate(y, z), y, 1e-6)
    assert_close(mixer.conv1d(mixer.project(u).convolved), mixer.project(u).convolved)
    assert torch.equal(mixer.D, torch.ones(4).double())
    assert mixer.out_proj.weight.abs().max() <= 32**-0.5 / 24**0.5
    for name, options in (("mamba1", {"d_state": 8}), ("mamba2", {})):
        with pytest.raises(ValueError, match="has no neutral start"):
            MIXERS[name](config, 0, **options).init_mohawk()
    with pytest.raises(ValueError, match="needs z_bias; set the option bias to false"):
        MIXERS["discrete_mamba2"](config, 0, bias=True).init_mohawk()


def test_published_initial_values(tools):
    """Of fresh mixers: S4D-real or uniform rates, log-uniform steps, D one, torch's own range for projections."""
    config = tools.config(hidden_size=512, num_attention_heads=64, num_key_value_heads=16)
    mamba1, mamba2, discrete = (MIXERS[name](config, 0, **options) for name, options in (
        ("mamba1", {"d_state": 8}), ("mamba2", {}), ("discrete_mamba2", {}),
    ))  # fmt: skip
    assert torch.equal(mamba1.A_log, torch.arange(1.0, 9.0).log().expand(512, 8))
    assert mamba1.dt_rank == 32
    assert 0.9 * 32**-0.5 < mamba1.dt_proj.weight.abs().max() <= 32**-0.5
    assert 1 <= mamba2.A_log.exp().min() < 3 < 14 < mamba2.A_log.exp().max() <= 16
    for mixer in (mamba1, mamba2):
        steps = torch.nn.functional.softplus(mixer.dt_bias)
        assert 1e-3 * 0.99 <= steps.min() < 2e-3
        assert 0.05 < steps.max() <= 0.1 * 1.01
        assert 0.006 < steps.median() < 0.017  # 0.01 in the middle of a log-uniform range
    assert not discrete.z_bias.any()
    for mixer in (mamba1, mamba2, discrete):
        assert torch.equal(mixer.D, torch.ones_like(mixer.D))
        assert 0.9 * 512**-0.5 < mixer.in_proj.weight.abs().max() <= 512**-0.5
        assert 0.4 < mixer.conv1d.weight.abs().max() <= 0.5


@pytest.mark.parametrize("name", ["mamba2", "discrete_mamba2"])
def test_matrix_under_autocast(tools, name):
    mixer = tools.mixer(name, dtype=torch.float32)
    x = draw(1, 6, 24).float()
    with torch.autocast("cpu", torch.bfloat16):
        M = mixer.matrix(x.bfloat16())
    assert M.dtype == torch.float32
    assert_close(M, mixer.matrix(x), 0.1)


def test_nothing_to_mix_is_told(tools, variant):
    for shape in ((0, 3, 24), (2, 0, 24)):
        with pytest.raises(ValueError, match="no tokens to mix"):
            tools.mixer(variant)(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba1", {"d_state": 3}, "d_state 3 does not divide the head width 8; use 1"),
        ("mamba1", {"d_conv": 1}, "d_conv 1 is too small"),
        ("mamba1", {"dt_min": 0.2}, "need 0 < dt_min <= dt_max, got 0.2 and 0.1"),
        ("mamba2", {"a_min": -1.0}, "need 0 < a_min <= a_max"),
        ("mamba2", {"chunk_size": 0}, "chunk_size 0 is too small"),
        ("discrete_mamba2", {"num_heads": 5}, "num_heads 5 does not divide the mixer's width 32"),
        ("discrete_mamba2", {"num_qk_heads": 3}, "num_qk_heads 3 does not divide num_heads 4"),
    ],
)
def test_bad_options(tools, name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](tools.config(), 0, **options)


def test_heads_of_another_shape_cannot_start_from_attention(tools):
    mixer = MIXERS["discrete_mamba2"](tools.config(), 0, num_heads=8)
    with pytest.raises(ValueError, match=r"4 of width 8.*have no place in 8 heads"):
        mixer.init_from_attention(Attention(tools.config(), False))


def test_strong_inputs_stay_finite_in_float32(tools, variant):
    mixer = tools.mixer(variant, dtype=torch.float32)
    x = (100 * draw(2, 70, 24)).float().requires_grad_()
    out, _ = mix(mixer, x, seq_idx=documents(70))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
