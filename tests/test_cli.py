"""The command line: verbs end to end on tiny models, and one clear line with exit code 2 for every mistake."""

import dataclasses
import json
import resource
import subprocess
import sys
import textwrap

import pytest
import yaml

from lit_thinkfast.cli import TOOL_VERBS, TRAINER_VERBS, _one_line
from lit_thinkfast.records import Completion, Problem, Verdict, read_jsonl, write_jsonl

SAMPLING = ("--num-samples", 2, "--max-new-tokens", 6, "--batch-size", 4)


def fit_config(teacher, tmp_path, **overrides):
    """A fit of two steps on the embedded world, as a file."""
    config = {
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "devices": 1,
            "limit_val_batches": 1,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "default_root_dir": str(tmp_path),
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        },
        "model": {
            "class_path": "lit_thinkfast.DistillationModule",
            "init_args": {
                "student": str(teacher),
                "teacher": {"class_path": "lit_thinkfast.HFTeacher", "init_args": {"path": str(teacher)}},
                "losses": {"kl": {"class_path": "lit_thinkfast.ForwardKL", "init_args": {"temperature": 2.0}}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            },
        },
        "data": {
            "class_path": "lit_thinkfast.MathDataModule",
            "init_args": {
                "corpus": {"class_path": "lit_thinkfast.data.corpora.ArithmeticCorpus", "init_args": {"level": 1}},
                "tokenizer": str(teacher),
                "seq_len": 64,
                "batch_size": 2,
                "val_batches": 1,
                "block_size": 4,
            },
        },
    }
    for path, value in overrides.items():
        *parents, last = path.split("__")
        block = config
        for parent in parents:
            block = block[parent]
        block[last] = value
    file = tmp_path / "fit.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def refused(result, *words):
    """Assert that a run ended with one line on stderr that holds ``words``."""
    code, _, err = result
    lines = [line for line in err.splitlines() if "lit-thinkfast: error: " in line]
    assert code == 2, err
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0]), "nothing comes after the error"
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


# --- the dispatcher


def test_help_names_every_verb_and_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-m", "lit_thinkfast", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor seconds: those of the clock are also other people's
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    for verb in (*TOOL_VERBS, *TRAINER_VERBS):
        assert f"  {verb} " in ran.stdout


@pytest.mark.parametrize("verb", TOOL_VERBS)
def test_help_of_a_tool_imports_nothing_heavy(verb):
    script = f"""
        import sys
        from lit_thinkfast.cli import main
        try:
            main(["{verb}", "--help"])
        except SystemExit as end:
            assert not end.code
        print([name for name in ("lightning", "torch", "datasets", "matplotlib") if name in sys.modules])
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "--config" in ran.stdout


def test_version(cli):
    import lit_thinkfast

    assert cli("--version") == (0, f"lit-thinkfast {lit_thinkfast.__version__}\n", "")


def test_an_unknown_verb(cli):
    refused(cli("evalute"), "unknown verb 'evalute'", "did you mean 'evaluate'?")
    refused(cli("xyzzy"), "unknown verb 'xyzzy'", "convert")
    refused(cli(), "no verb", "--help")


def test_errors_of_ours_keep_their_traceback(cli, monkeypatch):
    import lit_thinkfast.tools

    def report(*, out: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(lit_thinkfast.tools, "report", report)
    with pytest.raises(RuntimeError, match="a bug"):
        cli("report", "--out", "x")


def test_debug_shows_the_traceback(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_THINKFAST_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli("convert", "--teacher", tmp_path / "none", "--out", tmp_path / "out")


def test_nested_parser_messages_become_one_line():
    message = textwrap.dedent("""\
        Parser key "model":
          Does not validate against any of the Union subtypes
          Subtypes: [<class 'a.M'>, <class 'NoneType'>]
          Errors:
            - Problem with given class_path 'a.M':
                Parser key "losses":
                  Problem with given class_path 'a.KL':
                    Option 'temprature' is not accepted
            - Expected a <class 'NoneType'>
          Given value type: <class 'dict'>
          Given value: {'class_path': 'a.M'}""")
    assert _one_line(message) == "model: a.M: losses: a.KL: Option 'temprature' is not accepted"


# --- tool verbs


@pytest.fixture(scope="module")
def evaluation(tiny_teacher, tmp_path_factory):
    """A folder that the verb evaluate wrote."""
    from lit_thinkfast.tools import evaluate

    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(
        model=str(tiny_teacher),
        problems="arithmetic",
        level=1,
        limit=3,
        out=str(folder),
        num_samples=4,
        max_new_tokens=6,
        batch_size=8,
        reward_model=str(tiny_teacher),
        name="teacher",
    )
    return folder


def test_convert_keeps_the_layers_that_are_asked_for(cli, tiny_teacher, tmp_path):
    out = tmp_path / "student"
    code, said, _ = cli("convert", "--teacher", tiny_teacher, "--out", out, "--attention-layers", "1")
    assert code == 0
    assert "mamba2 attention" in said
    assert json.loads((out / "config.json").read_text())["layer_mixers"] == ["mamba2", "attention"]
    assert (out / "tokenizer.json").is_file()


def test_convert_reads_a_config_and_prints_one(cli, tiny_teacher, tmp_path):
    file = tmp_path / "convert.yaml"
    file.write_text(f"teacher: {tiny_teacher}\nout: {tmp_path / 'student'}\nattention_layers: [0, 1]\n")
    code, said, _ = cli("convert", "--config", file, "--print_config")
    assert code == 0
    assert yaml.safe_load(said)["attention_layers"] == [0, 1]
    assert cli("convert", "--config", file)[0] == 0
    assert json.loads((tmp_path / "student" / "config.json").read_text())["layer_mixers"] == ["attention"] * 2


def test_evaluate_writes_all_that_a_report_needs(evaluation):
    problems = list(read_jsonl(Problem, evaluation / "problems.jsonl"))
    completions = list(read_jsonl(Completion, evaluation / "completions.jsonl"))
    verdicts = list(read_jsonl(Verdict, evaluation / "verdicts.jsonl"))
    assert len(problems) == 3
    assert len(completions) == len(verdicts) == 12
    assert all(verdict.score is not None for verdict in verdicts)
    points = json.loads((evaluation / "metrics.json").read_text())
    assert {point["rule"] for point in points} == {"coverage", "majority", "weighted_best_of_n", "best_of_n"}
    assert max(point["k"] for point in points) == 4


def test_generate_then_verify_gives_what_evaluate_gives(cli, tiny_teacher, evaluation, tmp_path):
    """One verb at a time, in two sessions of sampling with another batch size: the same texts and verdicts."""
    texts, problems = tmp_path / "texts.jsonl", evaluation / "problems.jsonl"
    common = ("--model", tiny_teacher, "--problems", problems, "--out", texts, "--max-new-tokens", 6)
    for samples in (1, 4):
        assert cli("generate", *common, "--num-samples", samples, "--batch-size", 3, "--name", "teacher")[0] == 0
    once = {(c.problem_id, c.sample): c.text for c in read_jsonl(Completion, evaluation / "completions.jsonl")}
    twice = {(c.problem_id, c.sample): c.text for c in read_jsonl(Completion, texts)}
    assert once == twice

    verdicts = tmp_path / "verdicts.jsonl"
    assert cli("verify", "--problems", problems, "--completions", texts, "--out", verdicts)[0] == 0
    outcome = {(v.problem_id, v.sample): v.outcome for v in read_jsonl(Verdict, evaluation / "verdicts.jsonl")}
    assert {(v.problem_id, v.sample): v.outcome for v in read_jsonl(Verdict, verdicts)} == outcome

    code, said, _ = cli(
        *("evaluate", "--completions", texts, "--verdicts", verdicts, "--out", tmp_path / "again", "--ks", "[1,4]")
    )
    assert code == 0
    assert "teacher" in said
    points = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert {point["k"] for point in points} == {1, 4}


def test_benchmark_and_report(cli, tiny_teacher, evaluation, tmp_path):
    speed, page = tmp_path / "speed.json", tmp_path / "report.html"
    code, said, _ = cli(
        *("benchmark", "decode", "--models.teacher", tiny_teacher, "--out", speed, "--prompt-tokens", 4),
        *("--generate-tokens", 3, "--batch-sizes", "1,2", "--rounds", 1, "--memory-budget-gib", 0.5),
    )
    assert code == 0
    assert "tokens/s" in said
    document = json.loads(speed.read_text())
    assert [point["batch_size"] for point in document["points"]] == [1, 2]
    assert document["settings"]["memory_budget_bytes"] == 2**29
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "speed.json", "speed.memory.png", "speed.memory.svg", "speed.seconds.png", "speed.seconds.svg",
    ]  # fmt: skip
    code, _, err = cli("report", "--runs.teacher", evaluation, "--out", page, "--benchmark", speed)
    assert code == 0, err
    assert page.read_text().startswith("<!")


def test_a_report_comes_with_figures_tables_and_numbers(cli, evaluation, tmp_path):
    page = tmp_path / "r.html"
    code, said, err = cli(
        "report", "--runs.a", evaluation, "--runs.b", evaluation, "--out", page, "--price-per-hour", 2
    )
    assert code == 0, err
    files = sorted(path.name for path in (tmp_path / "r-files").iterdir())
    assert {"comparison.json", "points.csv", "problems.csv", "summary.md", "table.tex"} < set(files)
    assert any(name.endswith(".svg") for name in files)
    assert "files to" in said
    first = {path.name: path.read_bytes() for path in (tmp_path / "r-files").iterdir()}
    again = ("report", "--runs.a", evaluation, "--runs.b", evaluation, "--out", page, "--price-per-hour", 2)
    assert cli(*again)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "r-files").iterdir()} == first
    refused(cli(*again[:-1], -2), "price -2.0", "not above 0")


def test_compare_takes_two_folders(cli, evaluation, tmp_path):
    code, said, err = cli("compare", evaluation, evaluation, "--names", "a,b", "--out", tmp_path / "pair.json")
    assert code == 0, err
    assert "a" in said
    pair = json.loads((tmp_path / "pair.json").read_text())
    assert (pair["first"], pair["second"], pair["num_problems"], pair["flips"]) == ("a", "b", 3, [])
    assert {row["basis"] for row in pair["rows"]} >= {"samples", "time"}
    assert all(row["difference"] == 0 and row["p_value"] == 1 for row in pair["rows"] if row["basis"] == "samples")
    refused(cli("compare", evaluation), "second")
    refused(cli("compare", evaluation, evaluation, evaluation), "compare FIRST SECOND has no place for")
    refused(cli("compare", evaluation, evaluation, "--names", "a"), "names 'a' are not two")
    refused(cli("compare", evaluation, tmp_path / "none"), "no evaluation folder")
    refused(cli("compare", evaluation, evaluation, "--examples", -1), "examples -1")


def test_completions_of_another_program_are_graded_anew(cli, tmp_path):
    """Without engine seconds there are curves over samples; with them, over time. Scores of theirs are taken over."""
    theirs, out = tmp_path / "theirs.jsonl", tmp_path / "run"
    rows = [
        {"problem": f"{i} + 1?", "answer": str(i + 1), "unique_id": f"p/{i}", "completions": [f"\\boxed{{{i + 1}}}", "?"],
         "scores": [[0.5, 0.75], [0.25]], "completion_tokens": [3, 1]}
        for i in range(3)
    ]  # fmt: skip
    theirs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(cli("evaluate", "--completions", theirs, "--out", out, "--layout", "lm-eval"), f"{theirs}:1", "'doc'")
    refused(cli("evaluate", "--completions", theirs, "--out", out, "--engine-seconds", 0), "engine_seconds 0")
    assert not out.exists()
    code, said, err = cli("evaluate", "--completions", theirs, "--out", out, "--name", "llama")
    assert code == 0, err
    assert "llama" in said
    points = {(p["rule"], p["k"]): p for p in json.loads((out / "metrics.json").read_text())}
    assert points["coverage", 1]["value"] == 0.5
    assert points["best_of_n", 2]["value"] == 1.0
    assert points["coverage", 1]["seconds"] is None
    assert [p.id for p in read_jsonl(Problem, out / "problems.jsonl")] == ["p/0", "p/1", "p/2"]
    assert json.loads((out / "completions.jsonl.meta.json").read_text())["taken_from"]["layout"] == "search-and-learn"
    assert json.loads((out / "verdicts.jsonl.meta.json").read_text())["scoring_seconds"] is None, "nobody measured it"
    assert cli("report", "--runs.theirs", out, "--out", tmp_path / "r.html")[0] == 0
    timed = tmp_path / "timed"
    assert cli("evaluate", "--completions", theirs, "--out", timed, "--engine-seconds", 12)[0] == 0
    points = {(p["rule"], p["k"]): p for p in json.loads((timed / "metrics.json").read_text())}
    assert points["coverage", 2]["seconds"] == pytest.approx(4)
    assert cli("report", "--runs.a", timed, "--runs.b", out, "--out", tmp_path / "r.html")[0] == 0
    refused(
        cli("evaluate", "--completions", timed / "completions.jsonl", "--out", out, "--engine-seconds", 3),
        "engine seconds of their own",
    )


def test_an_evaluation_of_given_files_keeps_what_belongs_to_them(cli, evaluation, tmp_path):
    """Meta files go along; what was in the folder of other completions does not stay; a name that was given does."""
    files = tmp_path / "files"
    files.mkdir()
    for name in ("completions", "verdicts"):
        (files / f"{name}.jsonl").write_bytes((evaluation / f"{name}.jsonl").read_bytes())
    (files / "verdicts.jsonl.meta.json").write_text('{"scoring_seconds": 77.0}')
    given = ("--completions", files / "completions.jsonl", "--verdicts", files / "verdicts.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    (out / "completions.jsonl.meta.json").write_text('{"num_parameters": 123}')
    (out / "problems.jsonl").write_text("{}")
    code, _, err = cli("evaluate", *given, "--out", out)
    assert code == 0, err
    assert json.loads((out / "verdicts.jsonl.meta.json").read_text()) == {"scoring_seconds": 77.0}
    assert not (out / "completions.jsonl.meta.json").exists()
    assert not (out / "problems.jsonl").exists()
    nameless = [dataclasses.replace(c, model="") for c in read_jsonl(Completion, files / "completions.jsonl")]
    write_jsonl(nameless, files / "completions.jsonl")
    assert cli("evaluate", *given, "--out", out, "--name", "ours")[0] == 0
    assert {c.model for c in read_jsonl(Completion, out / "completions.jsonl")} == {"ours"}
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_jsonl([Problem("p", "?", "1")], out / "problems.jsonl")
    again = ("evaluate", "--completions", out / "completions.jsonl", "--verdicts", out / "verdicts.jsonl", "--out", out)
    assert cli(*again)[0] == 0
    assert (out / "problems.jsonl").exists(), "measured again in its own folder"
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in before} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mixer", "mmba"], ["mmba", "mamba2"]),
        (["--attention-layers", "3,7"], ["layer 3", "0 to 1"]),
        (["--attention-layers", "a"], ["attention_layers 'a'", "3,7"]),
        (["--attention-ratio", "1.5"], ["1.5"]),
        (["--init", "zeros"], ["zeros"]),
        (["--outt", "x"], ["--outt"]),
        (["--seed", "one"], ["seed", "one"]),
        (["--teacher", "no/such/folder"], ["no/such/folder"]),
        (["--config", "no.yaml"], ["no.yaml"]),
    ],
)
def test_convert_refuses(cli, tiny_teacher, tmp_path, options, words):
    refused(cli("convert", "--teacher", tiny_teacher, "--out", tmp_path / "student", *options), *words)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda"], ["cuda", "--device cpu"]),
        (["--device", "gpu9"], ["gpu9"]),
        (["--temperature", "-1"], ["temperature -1"]),
        (["--top-p", "0"], ["top_p 0"]),
        (["--limit", "0"], ["limit 0"]),
        (["--problems", "gsm9k"], ["gsm9k", "gsm8k"]),
        (["--problems", "none.jsonl"], ["none.jsonl"]),
        (["--dtype", "int8"], ["int8"]),
        (["--top-k", "-1"], ["top_k -1"]),
        (["--min-p", "1"], ["min_p 1.0"]),
        (["--backend", "fast"], ["backend", "fast", "cuda_graphs"]),
        (["--memory-budget-gib", "0"], ["memory_budget_gib 0"]),
        (["--time-budget", "5d"], ["'5d' is not a duration", "60s"]),
        (["--time-budget", "0"], ["is not a duration above 0"]),
        (["--engine", "vllm"], ["engine vllm", "--url"]),
        (["--url", "http://localhost:8000"], ["engine local", "--engine vllm"]),
        (["--rank", "8/8"], ["rank 8 of 8"]),
        (["--rank", "third"], ["rank 'third'", "3/8"]),
    ],
)
def test_generate_refuses(cli, tiny_teacher, tmp_path, options, words):
    import torch

    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    command = ("generate", "--model", tiny_teacher, "--out", tmp_path / "texts.jsonl", *SAMPLING)
    refused(cli(*command, "--problems", "arithmetic", *options), *words)
    assert not (tmp_path / "texts.jsonl").exists()


def test_places_that_cannot_be_written_are_refused_before_a_model_is_loaded(cli, tiny_teacher, tmp_path):
    command = ("generate", "--model", tmp_path / "none", "--problems", "arithmetic", *SAMPLING, "--out")
    refused(cli(*command, tmp_path), "is a folder")
    refused(cli(*command, tiny_teacher / "config.json" / "texts.jsonl"), "cannot be written", "config.json")


def test_a_memory_budget_that_is_too_small_is_refused(cli, tiny_teacher, tmp_path):
    command = ("generate", "--model", tiny_teacher, "--problems", "arithmetic", "--out", tmp_path / "out", *SAMPLING)
    refused(cli(*command, "--memory-budget-gib", "1e-6"), "GiB", "raise the budget")
    assert not list(tmp_path.glob("out*")), "nothing was begun"


def test_sampling_options_are_those_of_evaluate_too(cli):
    """Both take them from one function, so a change reaches both."""
    import inspect

    from lit_thinkfast.jobs import sampling_job

    names = [name.replace("_", "-") for name in inspect.signature(sampling_job).parameters]
    assert {"top-k", "min-p", "stop", "memory-budget-gib", "prefill-chunk", "backend", "time-budget", "rank"} < {*names}
    helps = [cli(verb, "--help")[1] for verb in ("generate", "evaluate")]
    for name in names:
        for said in helps:
            assert f"--{name.replace('-', '_')} " in said
    assert all("Changes no text" in " ".join(said.split()) for said in helps)


def test_options_become_settings():
    from lit_thinkfast.jobs import sampling_job

    assert sampling_job().config.num_samples == 64
    assert sampling_job(temperature=0).config.num_samples == 1
    assert sampling_job(time_budget="2m").config.num_samples == 10_000
    assert sampling_job(time_budget="2m", num_samples=8).config.num_samples == 8
    assert sampling_job(time_budget="2m").time_budget == 120.0
    assert sampling_job(stop="Q:").config.stop == ("Q:",)
    assert sampling_job(stop=["Q:", "\n\n"]).config.stop == ("Q:", "\n\n")
    with pytest.raises(TypeError, match="temprature"):
        sampling_job(temprature=1)


def test_devices_of_several_processes(monkeypatch):
    import torch

    from lit_thinkfast.jobs import sampling_job

    def device(rank, **options):
        return sampling_job(rank=rank, **options).placed()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device("0/1"), device("3/4")] == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [device("0/1"), device("0/4"), device("3/4")] == ["cuda", "cuda", "cuda:3"]
    assert device("3/8", device="cpu") == "cpu"
    with pytest.raises(ValueError, match="process 4 here has none of the 4 GPUs"):
        device("4/8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device("3/4") == "cuda", "its launcher shows it one"


def test_generate_for_a_time(cli, tiny_teacher, tmp_path):
    out = tmp_path / "texts.jsonl"
    command = ("generate", "--model", tiny_teacher, "--problems", "arithmetic", "--limit", 2, "--max-new-tokens", 6)
    code, said, err = cli(*command, "--time-budget", "0.3s", "--out", out)
    assert code == 0, err
    found = list(read_jsonl(Completion, out))
    assert found
    assert max(c.finished_seconds for c in found) <= 0.3
    counts = [sum(c.problem_id == p for c in found) for p in {c.problem_id for c in found}]
    assert "s of 0.3, " in said
    assert f"{min(counts)} to {max(counts)} samples a problem" in said
    meta = json.loads(out.with_name("texts.jsonl.meta.json").read_text())
    assert meta["time_budget_seconds"] == 0.3
    assert meta["engine_seconds"] >= 0.3


def test_several_processes_evaluate_what_one_does(cli, tiny_teacher, evaluation, tmp_path):
    """One after the other here: the last one grades."""
    command = ("evaluate", "--model", tiny_teacher, "--problems", evaluation / "problems.jsonl", "--num-samples", 4)
    command += ("--max-new-tokens", 6, "--name", "teacher", "--out", tmp_path)
    code, said, err = cli(*command, "--rank", "1/2")
    assert code == 0, err
    assert "rank 1 of 2 is done" in said
    assert not (tmp_path / "verdicts.jsonl").exists()
    assert cli(*command, "--rank", "0/2")[0] == 0
    for name, kind in {"completions.jsonl": Completion, "verdicts.jsonl": Verdict}.items():
        one, two = (
            {
                (r.problem_id, r.sample): r.text if kind is Completion else r.outcome
                for r in read_jsonl(kind, path / name)
            }
            for path in (evaluation, tmp_path)
        )
        assert one == two
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in before if "rank" in name} == set()
    files = ("--completions", tmp_path / "completions.jsonl", "--verdicts", tmp_path / "verdicts.jsonl")
    assert cli("evaluate", *files, "--out", tmp_path, "--rank", "1/2") == (0, "", ""), "one process is enough"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_parts_of_a_job_that_did_not_finish_are_merged_by_hand(cli, tiny_teacher, tmp_path):
    out = tmp_path / "texts.jsonl"
    refused(cli("merge", "--out", out), "no parts of", "texts.rank-00000-of-00008.jsonl")
    command = ("generate", "--model", tiny_teacher, "--problems", "arithmetic", "--limit", 3, *SAMPLING, "--out", out)
    assert cli(*command, "--rank", "0/2")[0] == 0
    assert out.read_text() == ""
    code, said, _ = cli("merge", "--out", out)
    assert code == 0
    # two problems, one of them shared sample by sample
    assert f"{out}: 3 completions" in said
    assert cli(*command)[0] == 0
    assert len(list(read_jsonl(Completion, out))) == 6


def test_generate_asks_a_server_of_vllm(cli, tiny_teacher, tmp_path, monkeypatch):
    from lit_thinkfast.generation.vllm import VLLMSampler

    from .generation.fake_sampler import FakeSampler

    asked = []

    def connect(url, folder, config, *, name=None):
        asked.append((url, folder, config.num_samples, config.top_k, config.stop, name))
        return FakeSampler(num_samples=config.num_samples)

    monkeypatch.setattr(VLLMSampler, "connect", connect)
    command = ("generate", "--model", tiny_teacher, "--problems", "arithmetic", "--limit", 2, *SAMPLING)
    server = ("--engine", "vllm", "--url", "http://localhost:8000", "--top-k", 5, "--stop", '["Q:", "\\n"]')
    code, said, err = cli(*command, *server, "--name", "served", "--out", tmp_path / "texts.jsonl")
    assert code == 0, err
    assert asked == [("http://localhost:8000", str(tiny_teacher), 2, 5, ("Q:", "\n"), "served")]
    assert "4 completions" in said


def test_files_that_are_wrong_are_named_with_their_line(cli, evaluation, tmp_path):
    problems, torn = evaluation / "problems.jsonl", tmp_path / "torn.jsonl"
    torn.write_text((evaluation / "completions.jsonl").read_text() + '{"problem_id": 3}\n')
    out = ("--problems", problems, "--out", tmp_path / "verdicts.jsonl")
    refused(cli("verify", "--completions", torn, *out), f"{torn}:13", "problem_id")
    refused(cli("verify", "--completions", tmp_path / "none.jsonl", *out), "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    refused(cli("verify", "--completions", empty, *out), "empty.jsonl")
    refused(
        cli("verify", "--problems", empty, "--completions", torn, "--out", tmp_path / "verdicts.jsonl"), "no problem"
    )
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_evaluate_refuses_what_does_not_fit(cli, tiny_teacher, evaluation, tmp_path):
    out = ("--out", tmp_path / "evaluation")
    sample = ("evaluate", "--model", tiny_teacher, "--problems", "arithmetic", *out, *SAMPLING)
    refused(cli(*sample, "--ks", "1,3"), "k 3", "num_samples 2")
    refused(cli(*sample, "--ks", "0,1"), "ks 0,1", "from 1")
    refused(cli(*sample, "--judge", "likelihood"), "--reward-model")
    refused(cli(*sample, "--reward-model", tmp_path / "none"), "none")
    refused(cli(*sample[:2], tmp_path / "none", *sample[3:]), "none")
    files = ("--completions", evaluation / "completions.jsonl", "--verdicts", evaluation / "verdicts.jsonl")
    refused(cli("evaluate", *files, *out, "--ks", "[8]"), "k 8", "4 samples")
    refused(cli("evaluate", *out), "model", "completions")
    refused(cli("evaluate", *out, "--model", tiny_teacher), "--problems")
    refused(cli("evaluate", *files, *out, "--reward-model", tiny_teacher), "drop one of the two")
    refused(cli("evaluate", *files, *out, "--name", "other"), "drop --name")
    ungraded = ("evaluate", *files[:2], *out, "--problems", evaluation / "problems.jsonl")
    refused(cli(*ungraded, "--ks", "1,8"), "k 8", "completions.jsonl", "4")
    assert not (tmp_path / "evaluation").exists(), "a refused evaluation leaves nothing behind"
    refused(cli("report", "--runs.teacher", tmp_path / "none", "--out", tmp_path / "r.html"), "none")


def test_a_refused_evaluation_leaves_a_finished_one_alone(cli, tiny_teacher, tmp_path):
    command = ("evaluate", "--model", tiny_teacher, "--problems", "arithmetic", "--out", tmp_path / "run", *SAMPLING)
    assert cli(*command, "--limit", 2)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused(cli(*command, "--limit", 1), "which is not asked for")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_three_steps_make_what_a_report_needs(cli, tiny_teacher, tmp_path):
    """As ``docs/command-line.md`` shows them; names of runs keep their dashes."""
    run, asked = tmp_path / "run", ("--problems", "arithmetic", "--limit", 2)
    files = ("--completions", run / "completions.jsonl", "--verdicts", run / "verdicts.jsonl")
    assert cli("generate", "--model", tiny_teacher, *asked, *SAMPLING, "--out", files[1])[0] == 0
    refused(cli("report", "--runs.a-b", run, "--out", tmp_path / "r.html"), "lacks verdicts.jsonl")
    assert cli("verify", *asked, *files[:2], "--out", files[3])[0] == 0
    assert cli("evaluate", *files, "--ks", "1,2", "--out", run)[0] == 0
    code, said, err = cli("report", "--runs.a-b", run, "--out", tmp_path / "r.html")
    assert code == 0, err
    assert "a-b" in said
    assert "a-b" in (tmp_path / "r.html").read_text()


def test_benchmark_of_a_preset(cli, tmp_path, monkeypatch):
    from lit_thinkfast.generation import shapes

    monkeypatch.setitem(shapes._REGIME, "num_hidden_layers", 2)
    file, out = tmp_path / "decode.yaml", tmp_path / "speed.json"
    file.write_text(
        "preset: paper-regime\nprompt_tokens: 3\ngenerate_tokens: 2\nrounds: 1\nthreads: 1\ndtype: bfloat16\n"
    )
    code, said, err = cli("benchmark", "decode", "--config", file, "--batch_sizes=[1]", "--out", out)
    assert code == 0, err
    assert "transformer" in said
    document = json.loads(out.read_text())
    assert {point["model"]: point["baseline"] for point in document["points"]} == dict.fromkeys(
        ("transformer", "hybrid", "pure"), "transformer"
    )
    assert set(document["settings"]["dtype"].values()) == {"bfloat16"}


def test_benchmark_says_what_it_measures(cli, tiny_teacher, tmp_path):
    out = tmp_path / "out.json"
    refused(cli("benchmark", "--models.teacher", tiny_teacher, "--out", out), "benchmark decode --models.teacher")
    refused(cli("benchmark"), "needs what to measure", "benchmark decode --help")
    refused(cli("benchmark", "speed"), "cannot measure 'speed'", "knows decode")
    code, said, _ = cli("benchmark", "--help")
    assert (code, "decode" in said) == (0, True)
    decode = ("benchmark", "decode", "--out", out)
    refused(cli(*decode), "--models.teacher DIR, or a --preset")
    refused(cli(*decode, "--preset", "smollm2", "--models.teacher", tiny_teacher), "give one of them")
    refused(cli(*decode, "--preset", "other"), "smollm2", "other")
    refused(cli(*decode, "--preset", "smollm2", "--threads", 0), "threads 0", "at least 1")
    refused(cli(*decode, "--preset", "smollm2", "--memory-budget-gib", -1), "memory_budget_gib -1")
    refused(cli(*decode, "--models.a", tiny_teacher, "--memory-budget-gib", 1e-3), "a: one row", "memory budget")
    refused(cli("benchmark", "decode", "--preset", "smollm2", "--out", tmp_path), "is a folder")
    assert not out.exists()


def test_a_device_that_is_not_here(cli, tiny_teacher, evaluation, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out, files = tmp_path / "out", ("--problems", evaluation / "problems.jsonl")
    for command in (
        ("evaluate", "--model", tiny_teacher, *files),
        ("verify", *files, "--completions", evaluation / "completions.jsonl", "--reward-model", tiny_teacher),
        ("benchmark", "decode", "--models.teacher", tiny_teacher),
    ):
        refused(cli(*command, "--out", out, "--device", "cuda"), "cuda", "--device cpu")
        refused(cli(*command, "--out", out, "--device", "meta"), "meta", "use cpu or cuda")
    assert not out.exists()


def test_a_model_that_is_damaged_or_of_another_kind(cli, tiny_teacher, tmp_path):
    import shutil

    damaged, encoder = tmp_path / "damaged", tmp_path / "encoder"
    shutil.copytree(tiny_teacher, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    for teacher, words in ((damaged, ["damaged"]), (encoder, ["bert", "known families"])):
        refused(cli("convert", "--teacher", teacher, "--out", tmp_path / "student"), *words)
        assert not (tmp_path / "student").exists()


def test_verdicts_of_other_completions_are_refused(cli, evaluation, tmp_path):
    fewer = tmp_path / "fewer.jsonl"
    write_jsonl(list(read_jsonl(Verdict, evaluation / "verdicts.jsonl"))[:-1], fewer)
    refused(
        cli("evaluate", "--completions", evaluation / "completions.jsonl", "--verdicts", fewer, "--out", tmp_path),
        "no verdict",
    )


# --- trainer verbs


def test_fit_runs_from_a_file_and_saves_it(cli, tiny_teacher, tmp_path):
    config = fit_config(tiny_teacher, tmp_path)
    for _ in range(2):  # the second run writes over the first one's configuration
        code, _, err = cli("fit", "--config", config, "--trainer.max_steps", 1)
        assert code == 0, err
    saved = next(tmp_path.rglob("config.yaml"))
    assert yaml.safe_load(saved.read_text())["trainer"]["max_steps"] == 1


def test_a_class_of_ones_own_by_its_path(cli, tiny_teacher, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        textwrap.dedent('''
        from lit_thinkfast import DistillLoss


        class Nothing(DistillLoss):
            """No loss."""

            needs = frozenset({"logits"})

            def __init__(self, *, scale: float = 1.0) -> None:
                super().__init__()
                self.scale = scale

            def forward(self, student, teacher, batch):
                return self.scale * 0 * student.logits().sum()
        ''')
    )
    monkeypatch.chdir(tmp_path)
    losses = {"mine": {"class_path": "my_losses.Nothing", "init_args": {"scale": 3.0}}}
    config = fit_config(tiny_teacher, tmp_path, model__init_args__losses=losses)
    refused(cli("fit", "--config", config), "my_losses.Nothing", "--allow-import my_losses")
    refused(cli("fit", "--config", config, "--allow-import", "my_lossez"), "--allow-import my_lossez")
    monkeypatch.setenv("LIT_THINKFAST_ALLOW_IMPORT", "")  # where the flag is kept for child processes
    code, _, err = cli("fit", "--config", config, "--allow-import", "my_losses")
    assert code == 0, err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"model__init_args__losses": {"kl": {"class_path": "lit_thinkfast.ForwardKL", "init_args": {"temprature": 2}}}},
         ["ForwardKL", "temprature"]),
        ({"trainer__max_stepz": 3}, ["max_stepz"]),
        ({"data__init_args__seq_len": "long"}, ["seq_len", "int", "long"]),
        ({"data__init_args__seq_len": 1}, ["seq_len 1"]),
        ({"model__init_args__student": "no/such/student"}, ["no/such/student"]),
        ({"model__init_args__losses": {"kl": {"class_path": "lit_thinkfast.ForwardKLL"}}}, ["ForwardKLL"]),
        ({"trainer__precision": "int3"}, ["int3"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_fit_refuses(cli, tiny_teacher, tmp_path, override, words):
    refused(cli("fit", "--config", fit_config(tiny_teacher, tmp_path, **override)), *words)


def test_fit_refuses_a_teacher_of_another_vocabulary_or_kind(cli, tiny_teacher, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=7)).save_pretrained(tmp_path / "other")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    for name, words in {"other": ["vocabulary of 7", "same tokens"], "encoder": ["bert"], "none": ["none"]}.items():
        teacher = {"class_path": "lit_thinkfast.HFTeacher", "init_args": {"path": str(tmp_path / name)}}
        config = fit_config(tiny_teacher, tmp_path, model__init_args__teacher=teacher)
        refused(cli("fit", "--config", config), *words)


def test_validate_refuses_an_empty_problem_set(cli, tiny_teacher, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    config = fit_config(tiny_teacher, tmp_path, data__init_args__problems=str(tmp_path / "empty.jsonl"))
    for verb in ("fit", "validate"):
        refused(cli(verb, "--config", config), "no problem", "empty.jsonl")


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "jsonargparse.set_parsing_settings",
    ],
)
@pytest.mark.parametrize(
    "place", ["model__init_args__optimizer", "model__init_args__teacher", "data", "trainer__logger"]
)
def test_a_configuration_cannot_reach_outside(cli, tiny_teacher, tmp_path, path, place):
    config = fit_config(tiny_teacher, tmp_path, **{place: {"class_path": path}})
    refused(cli("fit", "--config", config), "may not name", path)


# --- export to other formats


def test_a_student_is_exported_to_a_stock_class_and_verified(cli, tiny_teacher, tmp_path):
    from safetensors.torch import load_file, save_file

    code, _, err = cli("convert", "--teacher", tiny_teacher, "--attention-layers", "1", "--out", tmp_path / "student")
    assert code == 0, err
    out = tmp_path / "out"
    code, said, err = cli(
        "export", "--model", tmp_path / "student", "--to", "bamba", "--dtype", "bfloat16", "--out", out
    )
    assert code == 0, err
    assert "bamba in torch.bfloat16, largest relative error" in said
    assert json.loads((out / "config.json").read_text())["model_type"] == "bamba"
    assert (out / "chat_template.jinja").is_file()
    code, said, err = cli("export", "--verify", out)
    assert code == 0, err
    assert f"{out}: gives the logits of its student" in said

    weights = load_file(out / "model.safetensors")
    weights["model.layers.0.mamba.out_proj.weight"][0] += 1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    refused(cli("export", "--verify", out), str(out), "does not give the logits", "tolerance 1e-04")


def test_export_to_another_format_refuses(cli, tiny_teacher, tmp_path):
    out = tmp_path / "out"
    to = ("export", "--model", tiny_teacher, "--out", out, "--to")
    refused(cli(*to, "granite_hybrid"), "LlamaForCausalLM is not a student")
    refused(cli(*to, "gguf"), "gguf", "granite_hybrid")
    refused(cli(*to, "bamba", "--judge", "signs"), "--judge", "--to")
    refused(cli("export", "--out", out), "needs --model and --out")
    refused(cli("export", "--model", tiny_teacher), "needs --model and --out")
    refused(cli("export", "--verify", out), "no folder at")
    refused(cli("export", "--verify", tiny_teacher, "--out", out, "--to", "bamba"), "drop --out, --to")
    refused(cli("export", "--verify", tiny_teacher), "has no expected_logits.npz")
    assert not out.exists()
