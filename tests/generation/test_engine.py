"""The engine against a loop without cache, batch or schedule, transformers' generate, and a ledger kept by hand."""

import copy
import dataclasses
import functools

import pytest
import torch

from lit_thinkfast.generation import engine as engine_module
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.engine import EngineTimes, time_decode
from lit_thinkfast.generation.rng import problem_key
from lit_thinkfast.generation.rows import Prompt
from lit_thinkfast.generation.stops import StopStrings
from lit_thinkfast.models.slots import AttentionSlots

from .naive import Work, ledger, make_engine, run, say, say_all, say_padded, texts

ENDS = (1, 7, 20)
FEW = ("llama attention", "llama hybrid mamba2", "llama recurrent mamba1")
MODELS = (
    *FEW, "llama recurrent mamba2", "llama recurrent discrete_mamba2", "mistral hybrid mamba1",
    "mixed_windows attention", "qwen2 hybrid mamba2", "qwen3 attention",
)  # fmt: skip


def ask(length, samples, **settings):
    """A prompt of so many tokens; the same length is the same prompt."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(2, 45, (length,), generator=generator).tolist()
    config = SamplingConfig(**{"num_samples": 1, **settings})
    return Prompt(tokens, problem_key(f"p{length}"), samples, config)


MANY = (
    ask(6, [0], temperature=0.0, max_new_tokens=9),
    ask(1, range(3), temperature=0.9, max_new_tokens=8),
    ask(4, [], temperature=0.9, max_new_tokens=8),
    ask(2, [4, 2], temperature=1.3, top_k=5, max_new_tokens=11, seed=5),
    ask(11, range(4), temperature=0.8, top_p=0.7, max_new_tokens=7),
    ask(23, [7, 0], temperature=1.0, min_p=0.1, max_new_tokens=3),
    ask(8, [1], temperature=1.1, top_k=7, top_p=0.9, min_p=0.05, max_new_tokens=1, seed=2**60),
)
WANTED = ((3, range(4)), (9, range(3)), (1, range(3)), (6, [2]))
ALIKE = tuple(ask(length, samples, temperature=0.9, max_new_tokens=9) for length, samples in WANTED)


@pytest.fixture(scope="module")
def naive(small):
    """What the samples of ``MANY`` say."""
    return functools.cache(lambda name: say_all(small(name), MANY, ends=ENDS))


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_a_loop_without_cache_or_batch(small, naive, name):
    model, expected = small(name), naive(name)
    assert {stopped for _, stopped, _ in expected.values()} == {True, False}
    assert len({len(tokens) for tokens, _, _ in expected.values()}) > 3
    for slots, chunk in ((1, 512), (3, 5), (9, 1), (20, 3)) if name in FEW else ((4, 5), (13, 1)):
        engine = make_engine(model, MANY, slots=slots, end_tokens=ENDS, prefill_chunk=chunk)
        assert texts(run(engine, MANY)) == expected, f"{slots} slots, chunks of {chunk}"


@pytest.mark.parametrize("name", FEW)
def test_the_order_of_prompts_changes_nothing(small, naive, name):
    found = texts(run(make_engine(small(name), MANY, slots=4, end_tokens=ENDS), MANY[::-1]))
    assert {(len(MANY) - 1 - i, s): row for (i, s), row in found.items()} == naive(name)


def test_more_tokens_than_random_numbers_are_drawn_ahead(small):
    """Rows join at every place of a block of random numbers, and live through several."""
    prompts = [ask(5, [3], temperature=0.9, max_new_tokens=131), ask(1, [0], temperature=0.0, max_new_tokens=9)]
    prompts += [ask(2, [1, 9], temperature=1.0, max_new_tokens=30), ask(7, [0], temperature=0.9, max_new_tokens=68)]
    model = small("llama attention")
    expected = say_all(model, prompts)
    assert texts(run(make_engine(model, prompts, slots=2), prompts)) == expected


def test_random_numbers_of_rows_that_join_greedy_ones(small):
    """While all rows are greedy nobody draws; a row that is sampled may come at any time, and go on alone."""
    model = small("llama recurrent mamba2")
    greedy = [ask(n, [0], temperature=0.0, max_new_tokens=5 * n) for n in (1, 2, 3)]
    prompts = [*greedy, ask(4, [3], temperature=1.0, max_new_tokens=67)]
    assert texts(run(make_engine(model, prompts, slots=2), prompts)) == say_all(model, prompts)


def test_greedy_is_what_transformers_generates(all_models, llama):
    prompts = [ask(n, [0], temperature=0.0, max_new_tokens=25) for n in (7, 1)]
    for name, model in all_models.items():
        found = texts(run(make_engine(model, prompts, slots=3, end_tokens=[1]), prompts))
        for i, prompt in enumerate(prompts):
            for twin in [model, llama] if name == "attention" else [model]:
                ids = torch.tensor([prompt.tokens])
                stock = twin.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=25, use_cache=True
                )
                assert found[i, 0][0] == stock[0, len(prompt.tokens) :].tolist(), name


def test_all_attention_samples_as_the_stock_model(all_models, llama):
    expected = say_all(llama, MANY, ends=ENDS)
    engine = make_engine(all_models["attention"], MANY, slots=8, end_tokens=ENDS, prefill_chunk=4)
    assert texts(run(engine, MANY)) == expected


@pytest.mark.parametrize("name", FEW)
def test_alone_in_a_batch_padded_on_the_left_and_resumed_are_one(small, naive, name):
    model = small(name)
    padded = say_padded(model, MANY, ends=ENDS)
    assert padded == naive(name)
    engine = make_engine(model, MANY, slots=9, end_tokens=ENDS, prefill_chunk=4)
    assert texts(run(engine, MANY)) == padded
    alone = {}
    for i, s in padded:
        found = texts(run(engine, [dataclasses.replace(MANY[i], samples=[s])]))
        alone[i, s] = found[0, s]
    assert alone == padded
    begun = engine.run(MANY)
    first = texts([row for _ in range(4) for row in next(begun)])
    begun.close()
    left = [
        dataclasses.replace(prompt, samples=[s for s in prompt.samples if (i, s) not in first])
        for i, prompt in enumerate(MANY)
    ]
    second = texts(run(engine, left))
    assert first
    assert not first.keys() & second.keys()
    assert first | second == padded


def garbage(cache, rows):
    """Overwrite these slots with large numbers."""
    generator = torch.Generator().manual_seed(0)
    for layer in cache.layers:
        parts = (layer.keys, layer.values) if isinstance(layer, AttentionSlots) else (layer.conv, layer.state)
        for part in parts:
            part[rows] = 1e3 * torch.randn(part[rows].shape, generator=generator, dtype=part.dtype)
    cache.lengths[rows] = cache.capacity


@pytest.mark.parametrize("name", [*FEW, "mistral hybrid mamba1"])
def test_what_was_in_a_slot_before_leaves_no_trace(small, naive, name):
    engine = make_engine(small(name), MANY, slots=3, end_tokens=ENDS)
    garbage(engine.cache, torch.arange(3))
    found = []
    for ended in engine.run(MANY):
        found += ended
        garbage(engine.cache, torch.tensor(engine._rows.free))
    assert texts(found) == naive(name)


def test_an_abandoned_run_leaves_no_trace(small, naive):
    expected = naive("llama hybrid mamba2")
    engine = make_engine(small("llama hybrid mamba2"), MANY, slots=4, end_tokens=ENDS)
    for taken in (1, 3):
        begun = engine.run(MANY[::-1])
        for _ in range(taken):
            next(begun)
        begun.close()
        assert texts(run(engine, MANY)) == expected
    assert texts(run(engine, MANY[4:5])) == {(0, s): row for (i, s), row in expected.items() if i == 4}
    assert run(engine, []) == run(engine, [MANY[2]]) == []


def test_samples_begin_in_their_order(small):
    rows = run(make_engine(small("llama attention"), MANY, slots=1, end_tokens=ENDS), MANY)
    assert [(row.prompt, row.sample) for row in rows] == [(i, s) for i, p in enumerate(MANY) for s in p.samples]


def test_stop_strings_end_rows_where_the_text_says(small, characters):
    """Texts that were seen to be written, one of them across end tokens that write nothing; and a real end token."""
    model = small("llama hybrid mamba2")
    tokens = {key: tokens for key, (tokens, _, _) in say_all(model, ALIKE).items()}
    written = {key: characters.decode(row, skip_special_tokens=True) for key, row in tokens.items()}
    ends = (tokens[0, 1][3],)
    stops = (written[0, 2][:3], written[1, 2][3], written[2, 2][7:], written[1, 1][1:3])
    expected = say_all(model, ALIKE, ends=ends, stops=stops, tokenizer=characters)
    assert sum(cut is not None for _, _, cut in expected.values()) > 2
    assert sum(not stopped for _, stopped, _ in expected.values()) > 1
    assert sum(stopped and cut is None for _, stopped, cut in expected.values()) > 0
    for slots in (1, 5):
        found = make_engine(model, ALIKE, slots=slots, end_tokens=ends, stops=StopStrings(characters, stops))
        assert texts(run(found, ALIKE)) == expected


def test_a_stop_string_that_an_end_token_completes_is_cut_off(small, characters):
    """An end token need not be special; what it writes is text."""
    model, end = small("llama attention"), characters.convert_tokens_to_ids("e")
    expected = say_all(model, ALIKE, ends=[end], stops=["e"], tokenizer=characters)
    cuts = [cut for tokens, _, cut in expected.values() if tokens[-1] == end]
    assert cuts
    assert None not in cuts
    engine = make_engine(model, ALIKE, slots=3, end_tokens=[end], stops=StopStrings(characters, ["e"]))
    assert texts(run(engine, ALIKE)) == expected


@pytest.mark.parametrize(("slots", "chunk"), [(1, 512), (3, 5), (5, 2), (40, 1)])
def test_seconds_are_those_of_a_ledger_kept_by_hand(small, monkeypatch, slots, chunk):
    model = small("llama hybrid mamba2")
    work = Work(monkeypatch, model)
    engine = make_engine(model, MANY, slots=slots, end_tokens=ENDS, prefill_chunk=chunk, watch=work.watch)
    rows = run(engine, MANY)
    lengths = {(row.prompt, row.sample): len(row.tokens) for row in rows}
    expected = ledger(MANY, lengths, slots=slots, chunk=chunk)
    assert {(row.prompt, row.sample) for row in rows} == expected.keys()
    for row in rows:
        found = row.seconds, row.latency, row.finished
        assert found == pytest.approx(expected[row.prompt, row.sample], rel=1e-12)
    finished = [row.finished for row in rows]
    assert finished == sorted(finished)

    times = engine.times
    assert sum(row.seconds for row in rows) == pytest.approx(work.watch.elapsed, rel=1e-12)
    assert times.prefill_seconds + times.decode_seconds == pytest.approx(work.watch.elapsed, rel=1e-12)
    assert work.watch.elapsed == pytest.approx(work.time)
    assert times.model_seconds == pytest.approx(sum(work.step_cost(n, i) for i, n in enumerate(work.steps)))
    assert times.overhead_seconds == pytest.approx(0.125 * times.steps)
    assert times.warmup_seconds == 0
    # every prompt once, in chunks; every step with rows that are not finished, as many as there are
    stored = [len(prompt.tokens) - 1 for prompt in MANY if prompt.samples]
    assert work.chunks == [min(chunk, n - at) for n in stored for at in range(0, n, chunk)]
    assert times.prefills == len(stored)
    assert (len(work.steps), sum(work.steps)) == (times.steps, times.row_steps)
    assert times.row_steps == sum(lengths.values())


def test_seconds_add_up_over_runs_and_without_split_times(small, monkeypatch):
    model = small("llama attention")
    work = Work(monkeypatch, model)
    engine = make_engine(model, ALIKE, slots=3, end_tokens=ENDS, watch=work.watch, split_times=False)
    first = run(engine, ALIKE)
    again = run(engine, ALIKE)
    assert engine.times.overhead_seconds == engine.times.model_seconds == 0
    assert sum(row.seconds for row in first + again) == pytest.approx(work.watch.elapsed, rel=1e-12)
    assert engine.times.prefill_seconds + engine.times.decode_seconds == pytest.approx(work.watch.elapsed, rel=1e-12)
    assert min(row.finished for row in again) > max(row.finished for row in first)


@pytest.mark.parametrize("watched", [False, True])
def test_the_time_of_callers_is_nobodys(small, monkeypatch, watched):
    """Of who takes the rows, and of who is told how far things are."""
    model = small("llama attention")
    monkeypatch.setattr(engine_module, "_SECONDS_BETWEEN_CALLS", 0.0)
    work = Work(monkeypatch, model)
    prompts = MANY[:2] + MANY[3:5]
    undisturbed = run(make_engine(model, prompts, slots=3, end_tokens=ENDS, watch=work.watch), prompts)
    other = Work(monkeypatch, model)
    engine = make_engine(model, prompts, slots=3, end_tokens=ENDS, watch=other.watch)
    states, found = [], []

    def on_step(state):
        states.append(state)
        assert state.tokens + state.tokens_in_flight == engine.times.row_steps
        assert (state.finished, state.tokens) == (len(found), sum(len(row.tokens) for row in found))
        assert state.rows <= 3
        other.time += 1e6

    for rows in engine.run(prompts, on_step=on_step if watched else None):
        found += rows
        other.time += 1e6
    if watched:
        assert len(states) == engine.times.steps
        assert (states[-1].finished, states[-1].rows, states[-1].tokens_in_flight) == (10, 0, 0)
    assert [dataclasses.astuple(row)[:5] for row in found] == [dataclasses.astuple(row)[:5] for row in undisturbed]
    for row, twin in zip(found, undisturbed, strict=True):
        assert (row.seconds, row.latency, row.finished) == pytest.approx((twin.seconds, twin.latency, twin.finished))


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_at_the_deadline_rows_that_have_not_ended_are_dropped(small, monkeypatch, slots):
    model = small("llama attention")

    def timed(until):
        with monkeypatch.context() as patch:
            work = Work(patch, model)
            engine = make_engine(model, MANY, slots=slots, end_tokens=ENDS, watch=work.watch)
            return run(engine, MANY, until=until), work, engine

    whole, _, _ = timed(float("inf"))
    ends = sorted({row.finished for row in whole})
    for until in (0.0, ends[0] / 2, ends[0], ends[len(ends) // 2] - 0.01, ends[-1] - 0.01):
        found, work, engine = timed(until)
        assert found == [row for row in whole if row.finished <= until], until
        dearest = max(Work.step_cost(slots, 6) + 0.125, Work.chunk_cost(22))
        assert work.time < until + dearest + Work.admit_cost(slots)
    engine.watch.elapsed = 0.0
    assert texts(run(engine, MANY)) == texts(whole)


def test_time_decode_runs_every_row_to_its_budget(small, monkeypatch):
    model = small("llama hybrid mamba2")
    config = SamplingConfig(temperature=0.9, max_new_tokens=9, num_samples=4, prefill_chunk=4)
    with monkeypatch.context() as patch:
        work = Work(patch, model)
        patch.setattr(engine_module, "Stopwatch", lambda device: work.watch)
        found = time_decode(model, list(range(3, 14)), rows=5, config=config, warmup=3)
    warm, steps = sum(work.chunks) - 10, work.steps[3:]
    assert (warm, work.steps) == (10, [5] * 12)
    assert (found.steps, found.prefill_seconds) == (9, 3 * 20 + 10 + Work.admit_cost(5))
    assert found.model_seconds == sum(Work.step_cost(n, i) for i, n in enumerate(steps, start=3))
    assert found.decode_seconds == found.model_seconds + found.overhead_seconds
    assert found.overhead_seconds == 9 * 0.125
    other = make_engine(model, [ask(11, [0], max_new_tokens=9)], slots=5)
    assert found.cache_bytes == other.cache.nbytes


def test_logits_that_are_not_finite_are_reported(all_models, small):
    broken = copy.deepcopy(all_models["hybrid"])
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        run(make_engine(broken, ALIKE, slots=3), ALIKE)
    engine = make_engine(small("llama hybrid mamba2"), MANY, slots=3)
    later = engine.run(MANY)
    next(later)
    engine.cache.layers[0].state.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        list(later)


def test_prompts_that_do_not_fit_are_one_clear_line(small):
    engine = make_engine(small("llama attention"), [ask(5, [0], max_new_tokens=4)], slots=2)
    assert len(run(engine, [ask(5, [0], max_new_tokens=4)])) == 1
    for prompt in (ask(6, [0], max_new_tokens=4), ask(1, [0], max_new_tokens=5), ask(0, [0], max_new_tokens=1)):
        with pytest.raises(ValueError, match=r"do not fit slots of 8 tokens, 4 of them new"):
            run(engine, [prompt])


def test_half_precision_and_autocast_run(all_models):
    """As validation in mixed precision samples; what is stored is wider than what autocast computes, or not."""
    prompts = [ask(4, range(9), temperature=0.9, max_new_tokens=3)]
    for name, model in all_models.items():
        for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
            cast = copy.deepcopy(model).to(dtype)
            for slots in (2, 9):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    rows = run(make_engine(cast, prompts, slots=slots), prompts)
                assert len(rows) == 9, name


def test_float32_says_what_float64_says(all_models):
    """Near-ties apart, of which these texts have none."""
    for model in all_models.values():
        narrow = copy.deepcopy(model).float()
        found = texts(run(make_engine(narrow, MANY, slots=9, end_tokens=ENDS), MANY))
        assert found == texts(run(make_engine(model, MANY, slots=9, end_tokens=ENDS), MANY))


def test_times_start_at_nothing():
    assert EngineTimes().overhead_seconds == 0
    assert dataclasses.astuple(EngineTimes()) == (0,) * 7


def test_the_twin_says_what_it_is_told(small):
    """The loop above must stop at ends and budgets itself, or it would prove nothing."""
    model = small("llama attention")
    tokens, stopped, cut = say(model, ALIKE[0], 0)
    assert (len(tokens), stopped, cut) == (9, False, None)
    assert say(model, ALIKE[0], 0, ends=[tokens[3]])[0] == tokens[: tokens.index(tokens[3]) + 1]
    assert say(model, ALIKE[0], 1)[0] != tokens
