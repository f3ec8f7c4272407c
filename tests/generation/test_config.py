import pytest

from lit_thinkfast.generation.config import SamplingConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"num_samples": 0}, "num_samples 0"),
        ({"batch_size": -1}, "batch_size -1"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"temperature": 0.0, "num_samples": 4}, "num_samples 4"),
    ],
)
def test_values_out_of_range_are_one_clear_line(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        SamplingConfig(**values)
    assert "\n" not in str(caught.value)


def test_identity_holds_what_decides_the_text_only():
    one = SamplingConfig(num_samples=4, batch_size=2)
    more = SamplingConfig(num_samples=64, batch_size=128)
    assert one.identity() == more.identity()
    assert one.identity() != SamplingConfig(seed=1).identity()
    assert SamplingConfig(temperature=0.0, num_samples=1).temperature == 0


def test_can_be_a_block_of_a_config_file():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampling", type=SamplingConfig)
    made = parser.instantiate_classes(parser.parse_args(["--sampling.top_p", "0.9", "--sampling.num_samples", "8"]))
    assert made.sampling == SamplingConfig(top_p=0.9, num_samples=8)
