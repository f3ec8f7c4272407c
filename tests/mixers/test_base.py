"""Options of mixers: names and types, as the constructor has them."""

from typing import TYPE_CHECKING

import pytest

from lit_thinkfast.mixers.base import MIXERS, Mixer, check_options

if TYPE_CHECKING:
    from nowhere import Config


class Plain(Mixer):
    def __init__(self, config, layer_idx, *, width: int = 1, scale: float = 1.0, on: bool = True,
                 name: str | None = None, sizes: tuple[int, ...] = (), free=0): ...  # fmt: skip


class Foreign(Mixer):
    def __init__(self, config: "Config", layer_idx: int, *, width: int = 1): ...


@pytest.fixture(autouse=True)
def mixers(monkeypatch):
    monkeypatch.setitem(MIXERS, "plain", Plain)
    monkeypatch.setitem(MIXERS, "foreign", Foreign)


def test_options_of_their_type_pass():
    for options in (
        {"width": 2, "scale": 0.5, "on": False, "name": "a"},
        {"scale": 2, "name": None, "sizes": [1], "free": "x"},
    ):
        check_options("plain", options)
    check_options("mamba2", {"d_conv": 3, "chunk_size": None, "a_min": 1, "a_max": 2.5})
    check_options("foreign", {"width": 2})


@pytest.mark.parametrize(
    ("mixer", "option", "value", "wanted"),
    [
        ("plain", "width", 2.5, "int"),
        ("plain", "width", 2.0, "int"),
        ("plain", "width", True, "int"),
        ("plain", "scale", "1", "float"),
        ("plain", "scale", None, "float"),
        ("plain", "on", 1, "bool"),
        ("plain", "name", 3, "str | None"),
        ("mamba2", "d_conv", 2.5, "int"),
        ("mamba2", "chunk_size", "64", "int | None"),
    ],
)
def test_options_of_another_type_are_refused(mixer, option, value, wanted):
    with pytest.raises(ValueError, match="option") as error:
        check_options(mixer, {option: value})
    assert str(error.value) == f"option {option!r} of mixer {mixer!r} is {value!r}; give it as {wanted}"
