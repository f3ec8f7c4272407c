import json
import subprocess
import sys

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
        ({"top_k": -1}, "top_k -1"),
        ({"min_p": -0.1}, r"min_p -0\.1"),
        ({"min_p": 1.0}, r"min_p 1\.0"),
        ({"min_p": float("nan")}, "min_p nan"),
        ({"stop": ("a", "")}, "stop ''"),
        ({"stop": [3]}, "stop 3"),
        ({"stop": "Question:"}, r"use \['Question:'\]"),
        ({"stop": ["a\ufffd"]}, "U\\+FFFD"),
        ({"memory_budget_gib": 0.0}, r"memory_budget_gib 0\.0"),
        ({"memory_budget_gib": float("inf")}, "memory_budget_gib inf"),
        ({"memory_budget_gib": float("nan")}, "memory_budget_gib nan"),
        ({"prefill_chunk": 0}, "prefill_chunk 0"),
        ({"backend": "fast"}, "backend 'fast'.* auto, eager, compile, cuda_graphs"),
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


def test_how_the_work_is_done_is_no_part_of_the_identity():
    other = SamplingConfig(batch_size=2, memory_budget_gib=1.5, prefill_chunk=64, backend="eager", num_samples=2)
    assert other.identity() == SamplingConfig().identity()


def test_a_run_from_before_the_newer_settings_can_go_on():
    before = {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 512, "seed": 0, "system": None}
    assert SamplingConfig().identity() == before
    new = SamplingConfig(top_k=50, min_p=0.1, stop=("Question:", "\n\n")).identity()
    assert new == before | {"top_k": 50, "min_p": 0.1, "stop": ["Question:", "\n\n"]}
    assert json.loads(json.dumps(new)) == new


def test_stop_strings_of_a_file_are_a_list():
    assert SamplingConfig(stop=["a", "b"]) == SamplingConfig(stop=("a", "b"))
    assert hash(SamplingConfig(stop=["a", "b"])) == hash(SamplingConfig(stop=("a", "b")))


def test_can_be_a_block_of_a_config_file():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampling", type=SamplingConfig)
    made = parser.instantiate_classes(parser.parse_args(["--sampling.top_p", "0.9", "--sampling.num_samples", "8"]))
    assert made.sampling == SamplingConfig(top_p=0.9, num_samples=8)


def test_every_setting_can_be_given_in_a_file(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampling", type=SamplingConfig)
    parser.add_argument("--config", action="config")
    (tmp_path / "config.yaml").write_text(
        "sampling:\n  top_k: 20\n  min_p: 0.05\n  stop: ['Question:', \"\\n\\n\"]\n  memory_budget_gib: 1\n"
        "  prefill_chunk: 128\n  backend: compile\n"
    )
    made = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "config.yaml")])).sampling
    assert made == SamplingConfig(
        top_k=20, min_p=0.05, stop=("Question:", "\n\n"), memory_budget_gib=1, prefill_chunk=128, backend="compile"
    )
    listed = parser.instantiate_classes(parser.parse_args(["--sampling.stop", '["a", "b"]'])).sampling
    assert listed.stop == ("a", "b")


def test_needs_no_torch():
    code = "import sys; from lit_thinkfast.generation import SamplingConfig; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
