"""Greedy layer choice: against brute force over models that were converted, saved and loaded, document by document."""

import io
import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from lit_thinkfast.distill import sensitivity
from lit_thinkfast.distill.measurements import MeasurementFile
from lit_thinkfast.distill.sensitivity import assemble, choose_layers, digest, measurements, rank_layers
from lit_thinkfast.models import convert, load_model

from .conftest import llama_config, pack

LAYERS = 4
ROWS = [[9, 11], [20], [5, 6, 7]]


def qwen2_config():
    """Biases, tied embeddings, and a sliding window in the last two layers only."""
    values = llama_config(layers=LAYERS).to_dict() | {"tie_word_embeddings": True, "sliding_window": 4}
    for name in ("model_type", "architectures", "layer_types", "attention_bias", "mlp_bias"):
        values.pop(name, None)
    return Qwen2Config(**values, use_sliding_window=True, max_window_layers=2)


FAMILIES = {"llama": lambda: llama_config(layers=LAYERS), "qwen2": qwen2_config}


def stock(family="llama", seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def trained(teacher, seed=1, amount=0.05):
    """A student without attention, all of whose weights have moved."""
    student = convert(teacher)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return student


def pair(family="llama"):
    teacher = stock(family)
    return convert(teacher, mixer="attention"), trained(teacher)


def batches():
    return [pack(ROWS), pack([[13], [4, 15]], seed=1)]


def documents(given):
    """Token ids and labels of every document that has labels, each by itself."""
    for batch in given:
        for ids, labels, index in zip(batch["input_ids"], batch["labels"], batch["seq_idx"], strict=True):
            for number in index.unique():
                if (labels[index == number] != -100).any():
                    yield ids[index == number], labels[index == number]


def naive_kl(teacher, hybrid, given):
    """Mean over labels of sum p_t (log p_t - log p_s), one document and one position at a time, in float64."""
    total, count = 0.0, 0
    for ids, labels in documents(given):
        theirs, ours = (model(input_ids=ids[None]).logits[0].double().log_softmax(-1) for model in (teacher, hybrid))
        for t in range(1, len(ids)):
            if labels[t] != -100:
                total += float((theirs[t - 1].exp() * (theirs[t - 1] - ours[t - 1])).sum())
                count += 1
    return total / count


def made_by_hand(teacher, student, layers, folder):
    """The hybrid as a user would make it: converted with this list, weights of the student put in, saved, loaded."""
    hybrid = convert(teacher, attention_layers=layers)
    theirs = tuple(f"model.layers.{i}." for i in layers)
    weights = {name: w for name, w in student.state_dict().items() if not name.startswith(theirs)}
    missing, unexpected = hybrid.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(theirs) for name in missing)
    hybrid.save_pretrained(folder)
    return load_model(folder)


# --- the choice


def test_the_choice_is_greedy_and_not_the_ranking_of_single_layers():
    """Layers 0 and 1 do the same work, so that the second best by itself is worth nothing after the first."""
    worth = {0: 5.0, 1: 4.9, 2: 1.0, 3: 0.5}
    seen = []

    def measure(layers):
        assert layers == tuple(sorted(layers))
        seen.append(layers)
        values = [worth[i] for i in layers]
        return 10 - sum(values) + (worth[1] if {0, 1} <= set(layers) else 0)

    ranking = choose_layers(4, measure, keep=2)
    assert [choice.layer for choice in ranking.choices] == [0, 2]
    assert ranking.attention_layers == (0, 2)
    assert ranking.start == 10
    assert ranking.choices[0].tried == {0: 5.0, 1: pytest.approx(5.1), 2: 9.0, 3: 9.5}
    assert ranking.choices[1].tried == {1: 5.0, 2: 4.0, 3: 4.5}
    assert seen == [(), (0,), (1,), (2,), (3,), (0, 1), (0, 2), (0, 3)]
    assert ranking.order == [0, 2]


@pytest.mark.parametrize("direction", ["restore", "replace"])
@pytest.mark.parametrize("keep", [None, 1, 2, 3])
def test_every_choice_is_the_best_of_what_was_left(direction, keep):
    """A twin by enumeration on random divergences of all 16 sets."""
    sets = [s for size in range(5) for s in itertools.combinations(range(4), size)]
    for seed in range(20):
        values = dict(zip(sets, torch.rand(16, generator=torch.Generator().manual_seed(seed)).tolist(), strict=True))
        calls = []
        ranking = choose_layers(4, lambda s: calls.append(s) or values[s], keep=keep, direction=direction)  # noqa: B023
        now = () if direction == "restore" else (0, 1, 2, 3)
        for choice in ranking.choices:
            nexts = [s for s in sets if len(set(s) ^ set(now)) == 1 and (len(s) > len(now)) == (direction == "restore")]
            now = min(nexts, key=values.__getitem__)
            assert (choice.attention_layers, choice.kl) == (now, values[now])
        end = {"restore": 4, "replace": 0}[direction] if keep is None else keep
        assert len(now) == end == len(ranking.attention_layers)
        assert len(calls) == measurements(4, keep=keep, direction=direction)
        assert len(set(calls)) == len(calls)


def test_of_equal_layers_the_first_is_chosen_and_the_order_is_by_need():
    assert choose_layers(3, lambda _: 1.0).order == [0, 1, 2]
    assert choose_layers(3, lambda _: 1.0, direction="replace").order == [2, 1, 0], "the last to go is needed most"


@pytest.mark.parametrize(
    ("direction", "keep", "words"),
    [("restore", 0, "1 to 4"), ("restore", 5, "1 to 4"), ("replace", 4, "0 to 3"), ("replace", -1, "0 to 3")],
)
def test_nothing_to_choose(direction, keep, words):
    with pytest.raises(ValueError, match=f"keep {keep} leaves nothing to {direction}; use {words}"):
        choose_layers(4, lambda _: 1.0, keep=keep, direction=direction)


def test_an_unknown_direction():
    with pytest.raises(ValueError, match="unknown direction 'forward'; known: restore, replace"):
        choose_layers(4, lambda _: 1.0, direction="forward")


# --- hybrids of two models


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [(), (1,), (0, 3), (0, 1, 2, 3)])
def test_an_assembled_model_equals_one_made_by_hand(family, layers, tmp_path):
    teacher, student = pair(family)
    hybrid, twin = assemble(teacher, student, layers), made_by_hand(stock(family), student, list(layers), tmp_path)
    assert hybrid.config.layer_types == twin.config.layer_types
    assert hybrid.config.attention_layers == list(layers)
    batch = pack(ROWS)
    inputs = {"input_ids": batch["input_ids"], "seq_idx": batch["seq_idx"], "use_cache": False}
    torch.testing.assert_close(hybrid(**inputs).logits, twin(**inputs).logits, rtol=0, atol=0)


def test_assembling_copies_nothing_and_draws_nothing():
    teacher, student = pair()
    before = torch.get_rng_state()
    hybrid = assemble(teacher, student, [2])
    assert torch.equal(torch.get_rng_state(), before)
    given = {p.data_ptr() for model in (teacher, student) for p in model.parameters()}
    assert {p.data_ptr() for p in hybrid.parameters()} <= given
    assert hybrid.model.layers[2] is teacher.model.layers[2]
    assert [hybrid.model.layers[i] is student.model.layers[i] for i in range(LAYERS)] == [True, True, False, True]
    assert (hybrid.model.embed_tokens, hybrid.lm_head) == (student.model.embed_tokens, student.lm_head)
    assert not [name for name, buffer in hybrid.named_buffers() if buffer.is_meta]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["restore", "replace"])
def test_ranking_against_brute_force(family, direction, tmp_path):
    """All single-layer changes of each round, with models from folders and documents apart."""
    teacher, student = pair(family)
    source, given = stock(family), batches()
    ranking = rank_layers(teacher, student, given, keep=2, direction=direction)

    def brute(layers):
        hybrid = made_by_hand(source, student, sorted(layers), tmp_path / "-".join(map(str, ["m", *layers])))
        return naive_kl(source, hybrid, given)

    with torch.no_grad():
        now = set() if direction == "restore" else set(range(LAYERS))
        assert ranking.start == pytest.approx(brute(now), rel=1e-5)
        for choice in ranking.choices:
            left = now if direction == "replace" else set(range(LAYERS)) - now
            values = {i: brute(now ^ {i}) for i in sorted(left)}
            assert choice.tried == pytest.approx(values, rel=1e-5)
            assert len(set(values.values())) == len(values), "layers must differ for the test to see anything"
            now ^= {min(values, key=values.get)}
            assert choice.attention_layers == tuple(sorted(now))
    assert len(ranking.choices) == 2
    assert ranking.attention_layers == tuple(sorted(now))


def test_a_student_with_the_teachers_body_comes_back_to_it():
    teacher = convert(stock(), mixer="attention")
    ranking = rank_layers(teacher, convert(teacher), batches())
    assert ranking.attention_layers == tuple(range(LAYERS))
    assert ranking.start > 0.1
    assert ranking.choices[-1].kl == pytest.approx(0, abs=1e-6)


def test_chunks_of_tokens_and_the_size_of_batches_do_not_matter():
    teacher, student = pair()
    given = batches()
    whole = rank_layers(teacher, student, given, keep=1)
    rows = [{name: x[i : i + 1] for name, x in batch.items()} for batch in given for i in range(len(batch["labels"]))]
    for parts in (
        rank_layers(teacher, student, given, keep=1, chunk_tokens=3),
        rank_layers(teacher, student, rows, keep=1),
    ):
        assert parts.choices[0].tried == pytest.approx(whole.choices[0].tried, rel=1e-5)


def test_the_models_are_left_as_they_were():
    teacher, student = pair()
    student.train()
    before = {name: w.clone() for name, w in student.state_dict().items()}
    rank_layers(teacher, student, batches(), keep=1)
    assert all(torch.equal(w, before[name]) for name, w in student.state_dict().items())
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in student.parameters())


# --- what does not fit


def test_models_that_do_not_fit():
    teacher, student = pair()
    given = batches()
    with pytest.raises(ValueError, match="layer 0 of the teacher has a mamba2 mixer"):
        rank_layers(student, student, given)
    with pytest.raises(ValueError, match="layer 2 of the student has attention"):
        rank_layers(teacher, convert(teacher, attention_layers=[2]), given)
    torch.manual_seed(0)
    narrow = AutoModelForCausalLM.from_config(llama_config(layers=LAYERS, hidden_size=32))
    with pytest.raises(ValueError, match="hidden_size is 16 in the teacher and 32 in the student"):
        rank_layers(teacher, convert(narrow), given)
    short = AutoModelForCausalLM.from_config(llama_config(layers=3))
    with pytest.raises(ValueError, match="num_hidden_layers is 4 in the teacher and 3 in the student"):
        rank_layers(teacher, convert(short), given)
    with pytest.raises(ValueError, match=r"dtype is torch.float32 and the student's torch.bfloat16"):
        rank_layers(teacher, trained(stock()).bfloat16(), given)


def test_texts_without_labels():
    teacher, student = pair()
    empty = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    with pytest.raises(ValueError, match="no labelled token"):
        rank_layers(teacher, student, empty)


def test_a_divergence_that_is_no_number_never_wins(tmp_path):
    teacher, student = pair()
    with torch.no_grad():
        student.model.layers[1].mixer.out_proj.weight.fill_(torch.nan)
    out = tmp_path / "m.jsonl"
    with pytest.raises(ValueError, match=r"attention in layers \[\] is nan"):
        rank_layers(teacher, student, batches(), out=out)
    assert len(out.read_text().splitlines()) == 1, "and is not written down"


# --- the file


class Stopped(Exception):
    pass


@pytest.fixture
def computed(monkeypatch):
    """The layer sets that were computed, not remembered."""
    seen = []
    whole = sensitivity.assemble
    monkeypatch.setattr(sensitivity, "assemble", lambda t, s, layers: seen.append(layers) or whole(t, s, layers))
    return seen


@pytest.mark.parametrize("tail", [b"", b'{"attention_layers": [0, 1], "val', b"\xff"])
def test_a_run_that_was_killed_goes_on(tail, tmp_path, computed):
    teacher, student = pair()
    given = batches()
    whole = rank_layers(teacher, student, given, keep=2, out=tmp_path / "whole.jsonl")
    assert len(computed) == measurements(LAYERS, keep=2, direction="restore") == 8
    computed.clear()

    def stop(layers, kl):
        if len(layers) == 1 and layers[0] == 2:
            raise Stopped

    out = tmp_path / "parts" / "m.jsonl"
    with pytest.raises(Stopped):
        rank_layers(teacher, student, given, keep=2, out=out, on_measure=stop)
    assert computed == [(), (0,), (1,), (2,)]
    computed.clear()
    with open(out, "ab") as file:
        file.write(tail)
    told = []
    again = rank_layers(teacher, student, given, keep=2, out=out, on_measure=lambda *args: told.append(args))
    assert again == whole, "bit for bit"
    assert computed[0] == (3,)
    assert len(computed) == 4
    assert len(told) == 8
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_file_serves_either_direction_and_any_length(tmp_path, computed):
    teacher, student = pair()
    out = tmp_path / "m.jsonl"
    restored = rank_layers(teacher, student, batches(), out=out)
    assert len(computed) == 11
    computed.clear()
    assert rank_layers(teacher, student, batches(), keep=2, out=out).choices == restored.choices[:2]
    assert computed == []
    replaced = rank_layers(teacher, student, batches(), direction="replace", out=out)
    assert all(layers not in restored.choices[0].tried for layers in computed)
    assert replaced == rank_layers(teacher, student, batches(), direction="replace")
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    keys = [tuple(line["attention_layers"]) for line in lines]
    assert len(set(keys)) == len(keys)


def test_measurements_of_something_else_are_refused(tmp_path):
    teacher, student = pair()
    given = batches()
    out = tmp_path / "m.jsonl"
    rank_layers(teacher, student, given, keep=1, out=out)
    written = out.read_bytes()
    other = convert(stock(seed=5), mixer="attention")
    with pytest.raises(ValueError, match=r"m.jsonl holds measurements of another teacher: .* choose another file"):
        rank_layers(other, student, given, keep=1, out=out)
    with pytest.raises(ValueError, match="another student"):
        rank_layers(teacher, trained(stock(), seed=2), given, keep=1, out=out)
    with pytest.raises(ValueError, match="another student"):
        rank_layers(teacher, convert(stock(), mixer_options={"d_conv": 3}), given, keep=1, out=out)
    with pytest.raises(ValueError, match="another corpus"):
        rank_layers(teacher, student, given[:1], keep=1, out=out)
    moved = given[0] | {"labels": given[0]["labels"].roll(1, 1)}
    with pytest.raises(ValueError, match="another corpus"):
        rank_layers(teacher, student, [moved, given[1]], keep=1, out=out)
    assert out.read_bytes() == written


def test_a_digest_is_of_what_is_computed_with(tmp_path):
    student = trained(stock())
    student.save_pretrained(tmp_path / "a")
    student.save_pretrained(tmp_path / "b")
    assert digest(load_model(tmp_path / "a")) == digest(load_model(tmp_path / "b"))
    changed = load_model(tmp_path / "a")
    with torch.no_grad():
        changed.model.layers[3].mixer.D[-1] += 1e-6
    assert digest(changed) != digest(load_model(tmp_path / "a"))
    wider = load_model(tmp_path / "a")
    wider.config.rms_norm_eps *= 2
    assert digest(wider) != digest(load_model(tmp_path / "a"))
    assert digest(load_model(tmp_path / "a", dtype=torch.bfloat16)) != digest(load_model(tmp_path / "a"))


@pytest.mark.parametrize("content", [b"hello\n", b'{"a": 1}\n', b'{"a": 1}', b"[]\n", b"\xff\xfe"])
def test_a_file_of_something_else_is_not_touched(content, tmp_path):
    out = tmp_path / "notes.jsonl"
    out.write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"notes.jsonl is not a file of layer measurements; choose another file"),
        MeasurementFile(out, identity={"teacher": "x"}),
    ):
        pass
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"attention_layers": [1]}',
        '{"attention_layers": "1", "value": 0.5}',
        '{"attention_layers": [1], "value": "0.5"}',
    ],
)
def test_a_damaged_line_is_named(line, tmp_path):
    out = tmp_path / "m.jsonl"
    with MeasurementFile(out, identity={"teacher": "x"}) as known:
        known[1, 2] = 0.25
        known[()] = 1.0
    lines = out.read_text().splitlines()
    out.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"m.jsonl:3: "), MeasurementFile(out, identity={"teacher": "x"}):
        pass


def test_a_torn_header_is_written_anew(tmp_path):
    out = tmp_path / "m.jsonl"
    with MeasurementFile(out, identity={"teacher": "x"}):
        header = out.read_bytes()
    out.write_bytes(header[:-9])
    with MeasurementFile(out, identity={"teacher": "x"}) as known:
        known[3,] = 0.125
    with MeasurementFile(out, identity={"teacher": "x"}) as known:
        assert known == {(3,): 0.125}
    assert out.read_bytes().startswith(header)


def test_one_process_writes_at_a_time(tmp_path):
    out = tmp_path / "m.jsonl"
    with (
        MeasurementFile(out, identity={}),
        pytest.raises(ValueError, match="being written by another process"),
        MeasurementFile(out, identity={}),
    ):
        pass


# --- the verb


def refused(result, *words):
    code, _, err = result
    lines = [line for line in err.splitlines() if "lit-thinkfast: error: " in line]
    assert (code, len(lines)) == (2, 1), err
    for word in words:
        assert word in lines[0]


SMALL = ("--seq-len", 128, "--batch-size", 2, "--batches", 1, "--device", "cpu")


def test_the_verb_ranks_and_goes_on(cli, tiny_teacher, tmp_path):
    out = tmp_path / "m.jsonl"
    call = ("sensitivity", "--teacher", tiny_teacher, "--corpus", "arithmetic", "--out", out, *SMALL)
    code, shown, err = cli(*call, "--keep", 1)
    assert code == 0, err
    values = {
        tuple(line["attention_layers"]): line["value"] for line in map(json.loads, out.read_text().splitlines()[1:])
    }
    assert sorted(values) == [(), (0,), (1,)]
    best = min((0, 1), key=lambda i: values[i,])
    assert f"--attention-layers {best}" in shown.splitlines()
    assert f"{values[best,]:.4f}*" in shown
    assert f"{values[1 - best,]:.4f} " in shown
    assert max(map(len, shown.splitlines()[1:-4])) < 80
    written = out.read_bytes()
    assert cli(*call, "--keep", 1)[:2] == (0, shown)
    assert out.read_bytes() == written
    code, shown, err = cli(*call, "--direction", "replace")
    assert code == 0, err
    assert f"in need of attention, most first: {best}" in shown
    assert out.read_bytes().startswith(written)
    # the list is one that convert takes, and the student that was measured is the one it makes
    assert cli("convert", "--teacher", tiny_teacher, "--attention-layers", best, "--out", tmp_path / "student")[0] == 0
    refused(cli(*call, "--seed", 1), "another student")
    refused(cli(*call, "--seq-len", 96), "another corpus")


def test_the_verb_takes_a_student_and_any_corpus(cli, tiny_teacher, tmp_path):
    assert (
        cli("convert", "--teacher", tiny_teacher, "--attention-layers", "none", "--out", tmp_path / "student")[0] == 0
    )
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Tom has {i} apples and eats {i // 2}."}) + "\n" for i in range(9)))
    corpus = (
        "--corpus",
        "lit_thinkfast.data.corpora.JsonlCorpus",
        "--corpus.path",
        texts,
        "--corpus.prompt_column",
        "null",
    )
    call = ("sensitivity", "--teacher", tiny_teacher, "--out", tmp_path / "m.jsonl", *SMALL, "--keep", 1)
    code, shown, err = cli(*call, "--student", tmp_path / "student", *corpus, "--corpus.response_column", "text")
    assert code == 0, err
    assert "--attention-layers" in shown
    # the student was converted with the verb's own defaults, so that without it the same is measured
    written = (tmp_path / "m.jsonl").read_bytes()
    assert cli(*call, *corpus, "--corpus.response_column", "text")[:2] == (0, shown)
    assert (tmp_path / "m.jsonl").read_bytes() == written
    refused(cli(*call, "--student", tmp_path / "student", "--mixer", "mamba2", *corpus), "mixer is of a student")
    refused(cli(*call, "--corpus", texts), "texts.jsonl:1", "no column 'response'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--corpus", "shakespeare"), ("unknown corpus 'shakespeare'", "arithmetic")),
        (("--corpus", "none.jsonl"), ("no file none.jsonl",)),
        (("--corpus", "arithmetic", "--batches", 0), ("batches 0 is below 1",)),
        (("--corpus", "arithmetic", "--keep", 3), ("keep 3 leaves nothing to restore", "1 to 2 of 2")),
        (("--corpus", "arithmetic", "--direction", "both"), ("direction",)),
        (("--corpus", "arithmetic", "--mixer", "nope"), ("unknown mixer 'nope'",)),
        (("--corpus", "lit_thinkfast.data.corpora.JsonlCorpus", "--corpus.pth", "x"), ("pth",)),
        (("--corpus", "os.system"), ("os.system",)),
    ],
)
def test_mistakes_in_the_verb(options, words, cli, tiny_teacher, tmp_path):
    refused(cli("sensitivity", "--teacher", tiny_teacher, "--out", tmp_path / "m.jsonl", *SMALL, *options), *words)
    assert not (tmp_path / "m.jsonl").exists()


def test_many_rounds_fit_the_screen():
    import rich.console

    from lit_thinkfast.layer_choice import summary, tables

    ranking = choose_layers(9, lambda layers: 12.0 - sum(layers) / 3)
    console = rich.console.Console(width=80, file=io.StringIO())
    found = list(tables(ranking))
    for table in found:
        console.print(table)
    text = console.file.getvalue()
    assert len(found) == 2
    assert "…" not in text
    for choice in ranking.choices:
        assert f"{choice.kl:.3f}*" in text or f"{choice.kl:.4f}*" in text
    assert summary(ranking).splitlines()[-1] == "in need of attention, most first: 8,7,6,5,4,3,2,1,0"
    assert summary(choose_layers(3, lambda s: float(len(s)), keep=2, direction="replace")).startswith(
        "3.0000 nats/token with attention everywhere, 2.0000"
    )


def test_a_student_that_the_teachers_layers_do_not_fit_is_told():
    from lit_thinkfast.layer_choice import summary

    fits, worse = (lambda s: 3.0 - len(s)), (lambda s: float(len(s)))
    for direction in ("restore", "replace"):
        assert "do not fit" not in summary(choose_layers(3, fits, direction=direction))
        assert "do not fit" in summary(choose_layers(3, worse, direction=direction))
