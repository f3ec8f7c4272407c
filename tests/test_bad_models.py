"""Model folders that are damaged or contradict themselves: one line and exit code 2, and nothing is written."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_thinkfast.models import convert, convert_folder, load_model
from lit_thinkfast.records import Completion, Problem, write_jsonl


@pytest.fixture
def copy(tiny_teacher, tmp_path):
    """``copy(name, **values)``: the tiny teacher with other values in its ``config.json``."""

    def make(name, **values):
        folder = tmp_path / name
        shutil.copytree(tiny_teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return folder

    return make


def refused(ran, *words):
    code, _, err = ran
    assert code == 2, err
    said = err.splitlines()[-1]
    assert said.startswith("lit-thinkfast: error: ")
    for word in words:
        assert word in said, said
    assert "Traceback" not in err
    assert "LOAD REPORT" not in err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 3}, ["missing: 9, first model.layers.2.input_layernorm.weight"]),
        ({"num_hidden_layers": 1}, ["not in the model: 9, first model.layers.1.input_layernorm.weight"]),
        ({"attention_bias": True}, ["missing: 8, first model.layers.0.self_attn.k_proj.bias"]),
        ({"tie_word_embeddings": False}, ["missing: 1, first lm_head.weight"]),
        ({"intermediate_size": 50}, ["of another shape: 6, first model.layers.0.mlp.down_proj.weight"]),
        ({"vocab_size": 500}, ["of another shape: ", "model.embed_tokens.weight"]),
        ({"hidden_size": "x"}, ["hidden_size", "expected int, got str"]),
        ({"hidden_act": "selu2"}, ["selu2"]),
        ({"num_attention_heads": 0}, ["cannot be used"]),
    ],
)
def test_a_configuration_of_other_weights(cli, copy, tmp_path, values, words):
    folder = copy("other", **values)
    refused(cli("convert", "--teacher", folder, "--out", tmp_path / "student"), "other", *words)
    refused(cli("export", "--model", folder, "--out", tmp_path / "exported"), "other", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize("values", [{"hidden_size": "x"}, {"mixer_options": {"mmba2": {}}}, {"num_hidden_layers": 3}])
def test_a_student_whose_configuration_is_wrong(cli, tiny_teacher, tmp_path, values):
    student = tmp_path / "student"
    convert_folder(tiny_teacher, student, attention_layers=[1])
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | values))
    refused(cli("export", "--model", student, "--out", tmp_path / "exported"), "student")


def test_harmless_differences_pass(copy, tmp_path, caplog):
    """What old files and other tools leave in them, and a head of its own beside a configuration that ties it."""
    from safetensors.torch import load_file, save_file

    folder = copy("teacher")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["model.layers.1.self_attn.k_scale"] = torch.ones(1)
    weights["v_head.summary.weight"] = torch.ones(1, 8)
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(3, 20)[None]
    stock = AutoModelForCausalLM.from_pretrained(folder)
    expected = stock(ids).logits
    torch.testing.assert_close(load_model(folder)(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert (
        "2 weights have no place in the model and are left out, first model.layers.1.self_attn.k_scale" in caplog.text
    )
    convert(folder, mixer="attention").save_pretrained(tmp_path / "student")
    torch.testing.assert_close(load_model(tmp_path / "student")(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_options_that_do_not_fit(cli, tiny_teacher, tmp_path):
    out, student = tmp_path / "out", tmp_path / "student"
    refused(
        cli("convert", "--teacher", tiny_teacher, "--out", out, "--mixer_options.d_conv", 2.5),
        "option 'd_conv' of mixer 'mamba2' is 2.5; give it as int",
    )
    convert_folder(tiny_teacher, student, attention_layers=[1])
    refused(
        cli("convert", "--teacher", student, "--out", out, "--mixer_options.d_conv", 3),
        "layer 0 keeps its mamba2 mixer, which has d_conv 4; leave d_conv out of mixer_options",
    )
    refused(
        cli("convert", "--teacher", student, "--out", out, "--mixer", "attention"),
        "layer 0 of the teacher has a mamba2 mixer and no attention to go back to",
    )
    assert not out.exists()
    code, _, err = cli("convert", "--teacher", student, "--out", out, "--mixer_options.a_max", 20)
    assert code == 0, err


def test_what_is_no_reward_model(cli, copy, tmp_path):
    problems, completions = tmp_path / "p.jsonl", tmp_path / "c.jsonl"
    write_jsonl([Problem("p", "1+1?", "2")], problems)
    write_jsonl([Completion("p", 0, "a\n", 1, 1, "stop", 0.0, 0.0)], completions)
    damaged, lacking = copy("damaged"), copy("lacking", num_hidden_layers=3)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    files = ("--problems", problems, "--completions", completions, "--out", tmp_path / "v.jsonl")
    for folder, words in ((damaged, "cannot read a model from"), (lacking, "missing: 9, first model.layers.2")):
        refused(cli("verify", *files, "--reward-model", folder), folder.name, words)
    assert not (tmp_path / "v.jsonl").exists()
