"""The quickstart from end to end, small, and the models that it ships."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from lit_thinkfast.data import arithmetic
from lit_thinkfast.data.problems import load_problems
from lit_thinkfast.quickstart import ASSETS, STUDENTS, config_file, run
from lit_thinkfast.records import Completion, Verdict, read_jsonl

MODELS = ("teacher", *STUDENTS, "reward_model")


def test_assets_are_small_and_complete():
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 12_000_000
    for name in MODELS:
        assert (ASSETS / name / "model.safetensors").is_file()
        assert (ASSETS / name / "tokenizer.json").read_bytes() == (ASSETS / "tokenizer" / "tokenizer.json").read_bytes()


def test_the_teacher_is_a_stock_llama_and_the_students_are_what_their_names_say():
    assert json.loads((ASSETS / "teacher" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    for name, student in STUDENTS.items():
        layers = AutoModelForCausalLM.from_pretrained(ASSETS / name).config.layer_mixers
        assert layers == ["attention" if i in student.attention_layers else "mamba2" for i in range(4)]
        assert config_file(name).is_file()


@pytest.mark.parametrize("name", ["teacher", *STUDENTS])
def test_shipped_models_solve_some_problems(name):
    from lit_thinkfast.generation import Sampler, SamplingConfig
    from lit_thinkfast.models import load_model, load_tokenizer
    from lit_thinkfast.verification import extract_answer

    problems = load_problems("arithmetic", limit=4)
    config = SamplingConfig(num_samples=8, max_new_tokens=1024, batch_size=32)
    sampler = Sampler(load_model(ASSETS / name), load_tokenizer(ASSETS / name), config)
    answers = {p.id: p.answer for p in problems}
    made = list(sampler.sample(problems))
    assert any(extract_answer(c.text) == answers[c.problem_id] for c in made)
    assert sum(c.finish_reason == "stop" for c in made) >= 0.9 * len(made)
    assert sum(c.num_tokens for c in made) / len(made) >= 400


def test_the_reward_model_tells_the_teachers_right_samples_from_its_wrong_ones():
    """Line by line, as a program labels them, and within a problem."""
    from lit_thinkfast.generation import Sampler, SamplingConfig
    from lit_thinkfast.models import load_model, load_tokenizer
    from lit_thinkfast.verification import load_reward_model

    problems = load_problems("arithmetic", split="validation", limit=16)
    config = SamplingConfig(num_samples=6, max_new_tokens=1024, batch_size=96)
    sampler = Sampler(load_model(ASSETS / "teacher"), load_tokenizer(ASSETS / "teacher"), config)
    made = [c for c in sampler.sample(problems) if c.finish_reason == "stop"]
    questions = {p.id: p.question for p in problems}
    right, wrong, by_problem = [], [], {p.id: ([], []) for p in problems}
    for c, score in zip(made, load_reward_model(ASSETS / "reward_model").score(problems, made), strict=True):
        labels = arithmetic.check_steps(questions[c.problem_id], c.text)
        for label, value in zip(labels, score.step_log_odds, strict=True):
            (right if label else wrong).append(value)
        by_problem[c.problem_id][0 if labels[-1] else 1].append(score.log_odds)
    assert len(wrong) > 50
    assert sum(value > 0 for value in right) / len(right) > 0.9
    assert sum(value < 0 for value in wrong) / len(wrong) > 0.9
    pairs = [(a, b) for good, bad in by_problem.values() for a in good for b in bad]
    assert len(pairs) > 20
    assert sum(a > b for a, b in pairs) / len(pairs) > 0.8


def test_the_whole_job(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "quickstart"
    small = {"problems": 2, "num_samples": 2, "batch_size": 4, "live_steps": 2, "decode_batch_sizes": "1,2"}
    run(out=str(out), **small)
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"], "nothing is written elsewhere"
    for name in ("teacher", *STUDENTS):
        completions = list(read_jsonl(Completion, out / name / "completions.jsonl"))
        verdicts = list(read_jsonl(Verdict, out / name / "verdicts.jsonl"))
        assert len(completions) == len(verdicts) == 4
        assert all(0 <= v.score <= 1 for v in verdicts)
    live = json.loads((out / "live" / "progress.json").read_text())
    assert all(math.isfinite(v["kl_after"]) and v["steps"] == 2 for v in live.values())
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 6
    assert "Live distillation, 2 steps each" in page
    assert "weighted" in capsys.readouterr().out
    for name in STUDENTS:
        assert (out / "live" / name / "model" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="holds a run with num_samples 2, not 1; choose another --out"):
        run(out=str(out), **small | {"num_samples": 1})


@pytest.mark.parametrize(
    "bad",
    [
        {"problems": 0},
        {"num_samples": 0},
        {"live_steps": -1},
        {"batch_size": 0},
        {"temperature": -1.0},
        {"decode_batch_sizes": "1,0"},
        {"decode_batch_sizes": "1;4"},
    ],
)
def test_bad_settings_are_found_at_once(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        run(out=str(tmp_path / "out"), **bad)
    assert not (tmp_path / "out").exists()


def test_validation_counts_the_same_on_two_processes(monkeypatch):
    """``configs/arithmetic/validate.yaml`` as a user runs it at a terminal, with fewer problems."""
    from lit_thinkfast.cli import instantiate

    root = ASSETS.parent.parent
    monkeypatch.chdir(root)  # its paths are those of a checkout
    before = {path.name for path in root.iterdir()}
    evaluator = "--model.init_args.evaluator.init_args"
    small = (
        *("--config", str(config_file("validate"))),
        *("--data.init_args.num_problems", "3"),
        *(f"{evaluator}.sampling.num_samples", "4"),
        *(f"{evaluator}.ks", "[1, 4]"),
    )
    made = instantiate(list(small))
    one = dict(made.trainer.validate(made.model, made.datamodule, verbose=False)[0])
    command = [sys.executable, "-m", "lit_thinkfast", "validate", *small]
    shown = subprocess.run(
        [*command, "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "160"},
    ).stdout
    two = {name: float(value) for name, value in re.findall(r"(val/\S+)\s+\S\s+([\d.e-]+)", shown)}
    assert one.keys() >= {"val/kl", "val/coverage@4", "val/majority@4", "val/weighted_best_of_n@4"}
    assert one["val/coverage@4"] > 0
    assert two == pytest.approx(one, rel=1e-4)
    assert {path.name for path in root.iterdir()} == before, "validation leaves nothing behind"
