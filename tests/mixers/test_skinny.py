"""Products for few rows against ``nn.Linear``, and everything that must not be passed by."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lit_thinkfast.mixers import skinny
from lit_thinkfast.mixers.skinny import skinny_linear

ROWS = (1, 3, 4, 11, 12, 64)  # one by one, in pieces, weight first


def linear(bias=True, dtype=torch.float64, outputs=20):
    torch.manual_seed(0)
    return nn.Linear(12, outputs, bias=bias, dtype=dtype)


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gradients(function, layer, x):
    x = x.clone().requires_grad_()
    y = function(x)
    wanted = [x, *layer.parameters()]
    return y, *torch.autograd.grad((y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum(), wanted)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [20, 48, 96, 103])
@pytest.mark.parametrize("cut", [False, True])
def test_values_and_gradients_are_those_of_the_layer(rows, bias, outputs, cut):
    """Also of rows cut out of a wider product, as convolutions and gates are given them."""
    layer = linear(bias, outputs=outputs)
    x = draw(30, rows).t()[:, 9:21] if cut else draw(rows, 12)
    found, expected = (gradients(way, layer, x) for way in (lambda x: skinny_linear(layer, x), layer))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
    assert found[0].shape == (rows, outputs)


@pytest.mark.parametrize("outputs", [20, 48])
def test_few_rows_are_multiplied_in_another_way(monkeypatch, outputs):
    """Else there would be nothing to test here: the layer is not called."""
    layer, calls = linear(outputs=outputs), []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: calls.append(x.shape) or forward(self, x))
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *parts: calls.append("pieces") or bmm(*parts))
    for rows in ROWS:
        skinny_linear(layer, draw(rows, 12))
    pieces = ["pieces"] * 2 if outputs == 48 else []
    assert calls == [(1, 12), (3, 12), *pieces]
    skinny_linear(layer, draw(8, 3, 12))
    assert calls[-1] == (8, 3, 12)
    assert {skinny._ONE_BY_ONE, skinny._ONE_BY_ONE + 1, skinny._IN_PIECES, skinny._IN_PIECES + 1} <= set(ROWS)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [20, 48, 96])
def test_results_are_memory_of_their_own(rows, outputs):
    """Neither the weights nor the bias nor the rows change, and a result is not a view of them."""
    layer, x = linear(outputs=outputs), draw(rows, 12)
    before = [x.clone(), layer.weight.clone(), layer.bias.clone()]
    with torch.no_grad():
        skinny_linear(layer, x).zero_()
    assert all(map(torch.equal, before, [x, layer.weight, layer.bias]))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("way", ["subclass", "forward", "hook", "pre-hook", "parametrized", "wrapped"])
@pytest.mark.parametrize("rows", [9, 12])
def test_changed_layers_are_called_as_they_are(way, rows):
    layer, x = linear(outputs=48), draw(rows, 12)
    plain = layer(x)
    if way == "subclass":
        other = Doubled(12, 48, dtype=torch.float64)
        other.load_state_dict(layer.state_dict())
        layer = other
    elif way == "forward":
        forward = layer.forward
        layer.forward = lambda x: 2 * forward(x)
    elif way == "hook":
        layer.register_forward_hook(lambda module, args, out: 2 * out)
    elif way == "pre-hook":
        layer.register_forward_pre_hook(lambda module, args: (x + x,))
        plain = plain - 0.5 * layer.bias
    elif way == "parametrized":
        parametrize.register_parametrization(layer, "weight", nn.Identity())
        layer.parametrizations.weight.original.data.mul_(2)
        layer.bias.data.mul_(2)
    else:
        twice = nn.Linear(48, 48, bias=False, dtype=torch.float64)
        twice.weight.data.copy_(2 * torch.eye(48))
        layer = nn.Sequential(layer, twice)
    torch.testing.assert_close(skinny_linear(layer, x), 2 * plain)


def test_adapters_of_peft_are_called():
    peft = pytest.importorskip("peft")
    model = nn.ModuleDict({"proj": linear()})
    x = draw(9, 12)
    plain = skinny_linear(model["proj"], x)
    config = peft.LoraConfig(r=2, target_modules=["proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.inject_adapter_in_model(config, model)["proj"].double()
    found = skinny_linear(adapted, x)
    torch.testing.assert_close(found, adapted(x))
    assert (found - plain).abs().max() > 1e-3
    adapted.merge()
    torch.testing.assert_close(skinny_linear(adapted, x), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_types_and_autocast(dtype):
    layer, x = linear(dtype=dtype), draw(9, 12, dtype=dtype)
    torch.testing.assert_close(skinny_linear(layer, x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = skinny_linear(layer, x), layer(x)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
