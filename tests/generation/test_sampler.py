"""Completions do not depend on how they are batched; what they cost adds up; a clock ends them."""

import contextlib
import copy
import dataclasses
from collections import Counter
from itertools import pairwise

import pytest
import torch

from lit_thinkfast.generation import backends, memory
from lit_thinkfast.generation import engine as engine_module
from lit_thinkfast.generation import sampler as sampler_module
from lit_thinkfast.generation.backends import BucketedDecoder
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.progress import Progress
from lit_thinkfast.generation.rng import problem_key
from lit_thinkfast.generation.rows import Prompt
from lit_thinkfast.generation.sampler import Sampler
from lit_thinkfast.generation.sampling import in_rounds, one_after_the_other
from lit_thinkfast.models import HybridConfig, HybridForCausalLM

from .naive import Work, say

CONFIG = SamplingConfig(temperature=0.9, top_p=0.95, max_new_tokens=12, num_samples=6, batch_size=8, seed=7)
TIMES = {"seconds": 0.0, "latency_seconds": 0.0, "finished_seconds": None}


def texts(completions):
    found = {(c.problem_id, c.sample): dataclasses.replace(c, **TIMES) for c in completions}
    assert all(isinstance(c.text, str) for c in found.values())
    return found


def sampler_of(model, characters, **changes):
    return Sampler(model, characters, dataclasses.replace(CONFIG, **changes), name="tiny")


@pytest.fixture
def sampler(all_models, characters):
    return sampler_of(all_models["hybrid"], characters)


@pytest.fixture
def timed(monkeypatch, small, characters):
    """``timed(...)``: a sampler on a clock that moves when its model works, and the clock. No row ends by itself."""
    model = small("llama recurrent mamba2")
    work = Work(monkeypatch, model)
    for module in (sampler_module, engine_module):
        monkeypatch.setattr(module, "Stopwatch", lambda device: type(work.watch)(now=lambda: work.time))
    monkeypatch.setattr(Sampler, "end_tokens", lambda self: [])

    def make(**changes):
        work.steps.clear()
        return sampler_of(model, characters, **changes), work

    return make


def test_completions_are_whole_records(sampler, problems, characters):
    found = list(sampler.sample(problems))
    assert sorted((c.problem_id, c.sample) for c in found) == [(p.id, s) for p in problems for s in range(6)]
    assert {c.finish_reason for c in found} == {"stop", "length"}
    lengths = {p.id: len(characters(f"Question: {p.question}\nAnswer:\n")["input_ids"]) for p in problems}
    for c in found:
        assert (c.model, c.seed, c.num_prompt_tokens) == ("tiny", 7, lengths[c.problem_id])
        assert "." not in c.text  # the end token is special
        assert c.num_tokens == 12 if c.finish_reason == "length" else c.num_tokens <= 12
        assert 0 < c.seconds < c.latency_seconds <= c.finished_seconds
    assert len({c.text for c in found}) > 20
    finished = [c.finished_seconds for c in found]
    assert finished == sorted(finished)


def test_texts_are_those_of_a_loop_without_cache_or_batch(model, problems, characters):
    sampler = sampler_of(model, characters)
    found = texts(sampler.sample(problems[:2]))
    prompts = sampler.prompts(problems)
    for (name, sample), completion in list(found.items())[::4]:
        prompt = Prompt(prompts[name], problem_key(name), [sample], CONFIG)
        tokens, stopped, _ = say(sampler.model, prompt, sample, ends=[1])
        assert completion.text == characters.decode(tokens, skip_special_tokens=True)
        assert (completion.num_tokens, completion.finish_reason == "stop") == (len(tokens), stopped)


def test_same_texts_whatever_the_batch_size_and_order(model, characters, problems):
    few = {"num_samples": 3, "max_new_tokens": 8}
    whole = texts(sampler_of(model, characters, **few).sample(problems))
    shuffled = [problems[i] for i in (3, 0, 4, 2, 1)]
    for batch_size, chunk in ((1, 512), (7, 5), (64, 9)):
        other = sampler_of(model, characters, **few, batch_size=batch_size, prefill_chunk=chunk)
        assert texts(other.sample(shuffled)) == whole
        assert other.stats.peak_rows == min(batch_size, 15)
    alone = texts(sampler_of(model, characters, **few, batch_size=2).sample(problems[2:3]))
    assert alone == {key: c for key, c in whole.items() if key[0] == problems[2].id}


def test_more_samples_leave_the_first_ones_alone(small, characters, problems):
    model = small("llama hybrid mamba2")
    few = texts(sampler_of(model, characters, num_samples=2).sample(problems))
    many = texts(sampler_of(model, characters, num_samples=5).sample(problems))
    assert few.items() <= many.items()
    assert len(many) == 25


def test_another_seed_gives_other_texts(small, characters, problems):
    model = small("llama attention")
    one = texts(sampler_of(model, characters).sample(problems))
    other = texts(sampler_of(model, characters, seed=8).sample(problems))
    assert sum(one[key].text == other[key].text for key in one) < 5


def test_skipped_samples_are_not_drawn(sampler, problems):
    whole = texts(sampler.sample(problems))
    skip = {key for i, key in enumerate(whole) if i % 3 or key[0] == "toy/1"}
    before = sampler.stats.samples
    rest = texts(sampler.sample(problems, skip=skip))
    assert rest == {key: c for key, c in whole.items() if key not in skip}
    assert sampler.stats.samples == before + len(rest)
    assert list(sampler.sample(problems, skip=whole.keys())) == []
    assert list(sampler.sample([])) == []


def test_a_run_that_was_given_up_is_gone_on_with(sampler, problems):
    whole = texts(sampler.sample(problems))
    calls = sampler.sample(problems)
    first = texts(next(calls) for _ in range(7))
    calls.close()
    second = texts(sampler.sample(problems, skip=first.keys()))
    assert first | second == whole
    assert len(first) + len(second) == len(whole)


def test_shares_add_up_and_the_warm_up_is_nobodys(sampler, problems):
    found = list(sampler.sample(problems))
    stats = sampler.stats
    assert sum(c.seconds for c in found) == pytest.approx(stats.engine_seconds, rel=1e-9)
    assert max(c.finished_seconds for c in found) == pytest.approx(stats.engine_seconds, rel=1e-9)
    assert (stats.samples, stats.prefills, stats.peak_rows) == (30, 5, 8)
    assert stats.tokens == stats.row_steps == sum(c.num_tokens for c in found)
    assert 0 < stats.overhead_seconds < stats.decode_seconds
    assert stats.cache_bytes > 0
    warm, engine = stats.warmup_seconds, stats.engine_seconds
    assert warm > 0
    more = list(sampler.sample(problems[:1]))
    assert stats.warmup_seconds > warm
    assert sum(c.seconds for c in more) == pytest.approx(stats.engine_seconds - engine, rel=1e-9)


def test_seconds_of_a_clock_that_tests_own(timed, problems):
    """Warm-up: the first prompt, then three steps of all eight slots."""
    sampler, work = timed(prefill_chunk=16)
    found = []
    for completion in sampler.sample(problems, on_progress=lambda progress: setattr(work, "time", work.time + 1e6)):
        found.append(completion)
        work.time += 1e6
    stats = sampler.stats
    stored = [len(prompt) - 1 for prompt in sampler.prompts(problems).values()]
    assert sum(work.chunks) == stored[0] + sum(stored)
    first = sum(Work.chunk_cost(min(16, stored[0] - at)) for at in range(0, stored[0], 16)) + Work.admit_cost(8)
    assert work.steps[:3] == [8, 8, 8]
    assert stats.warmup_seconds == first + sum(Work.step_cost(8, step) + 0.125 for step in range(3))
    steps = work.steps[3:]
    assert (stats.steps, stats.row_steps) == (len(steps), sum(steps))
    costs = sum(Work.step_cost(rows, step) + 0.125 for step, rows in enumerate(steps, start=3))
    assert stats.decode_seconds == pytest.approx(costs)
    assert stats.overhead_seconds == pytest.approx(0.125 * len(steps))
    assert sum(c.seconds for c in found) == pytest.approx(stats.engine_seconds)
    assert found[-1].finished_seconds == pytest.approx(stats.engine_seconds)


def test_what_is_captured_on_the_way_is_warm_up(timed, problems, monkeypatch):
    def make(model, cache, *, backend, aside):
        def capture(function):
            work.time += 1000
            return function

        step = backends.decode_step  # the one on the clock
        return BucketedDecoder(model, cache, capture=capture, step=step, aside=aside)

    monkeypatch.setattr(engine_module, "make_decoder", make)
    sampler, work = timed(max_new_tokens=5, num_samples=5)
    found = list(sampler.sample(problems))
    shapes = {backends.bucket(rows, 8) for rows in work.steps}
    assert len(shapes) > 1
    assert sampler.stats.warmup_seconds // 1000 == len(shapes)
    assert sampler.stats.engine_seconds < 1000
    assert sum(c.seconds for c in found) == pytest.approx(sampler.stats.engine_seconds)


def test_progress_counts_up_to_the_end(sampler, problems, monkeypatch):
    monkeypatch.setattr(engine_module, "_SECONDS_BETWEEN_CALLS", 0.0)
    seen: list[Progress] = []
    found = list(sampler.sample(problems, on_progress=seen.append))
    assert seen[-1].samples_done == seen[-1].samples_total == 30
    assert seen[-1].tokens == sum(c.num_tokens for c in found)
    assert seen[-1].eta_seconds == 0
    assert seen[-1].seconds == pytest.approx(sampler.stats.engine_seconds)
    assert len(seen) == sampler.stats.steps + 1
    assert all(a.samples_done <= b.samples_done and a.tokens < b.tokens for a, b in pairwise(seen[:-1]))
    assert {p.rows for p in seen} <= set(range(9))
    assert {(p.time_budget, p.spent) for p in seen} == {(None, 0.0)}


@pytest.mark.parametrize("rows", [1, 4])
def test_a_time_budget_ends_the_run(timed, problems, rows):
    settings = {"num_samples": 9, "batch_size": rows, "max_new_tokens": 3}
    ample, _ = timed(**settings)
    whole = list(ample.sample(problems, time_budget=1e9))
    assert texts(whole) == texts(timed(**settings)[0].sample(problems))
    for part in (0.3, 0.8):
        sampler, _ = timed(**settings)
        seen, budget = [], part * ample.stats.engine_seconds
        found = list(sampler.sample(problems, time_budget=budget, on_progress=seen.append))
        assert found == [c for c in whole if c.finished_seconds <= budget]
        assert 2 < len(found) < 45
        assert budget <= sampler.stats.engine_seconds < budget + 100
        assert sampler.stats.samples == len(found)
        assert sampler.stats.tokens == 3 * len(found) <= sampler.stats.row_steps
        counts = [Counter(c.problem_id for c in found)[p.id] for p in problems]
        assert max(counts) <= 2 * min(counts) + 1
        assert (seen[-1].samples_total, seen[-1].time_budget, seen[-1].samples_done) == (None, budget, len(found))


def test_a_time_budget_goes_on_where_it_was_left(timed, problems):
    settings = {"num_samples": 4, "max_new_tokens": 4, "batch_size": 2}
    ample, _ = timed(**settings)
    whole = texts(ample.sample(problems, time_budget=1e9))
    done, spent = [], 0.0
    for budget in (0.4 * ample.stats.engine_seconds, 0.8 * ample.stats.engine_seconds, 1e9):
        sampler, _ = timed(**settings)
        skip = {(c.problem_id, c.sample) for c in done}
        new = list(sampler.sample(problems, skip=skip, time_budget=budget, spent=spent))
        assert new
        assert all(spent < c.finished_seconds <= budget for c in new)
        assert not skip & {(c.problem_id, c.sample) for c in new}
        done, spent = done + new, spent + sampler.stats.engine_seconds
    assert texts(done) == whole
    sampler, work = timed(**settings)
    before = work.time
    assert list(sampler.sample(problems, time_budget=50.0, spent=50.0)) == []
    assert work.time == before  # not even a warm-up
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"time_budget .* is not a positive number of seconds"):
            sampler.sample(problems, time_budget=wrong)


@pytest.mark.parametrize("num_samples", [1, 2, 7, 64])
def test_rounds_keep_counts_within_a_factor_of_two(problems, num_samples):
    drawn = {p.id: [] for p in problems}
    for problem, samples in in_rounds(problems, num_samples):
        for sample in samples:
            drawn[problem.id].append(sample)
            counts = [len(found) for found in drawn.values()]
            assert max(counts) <= 2 * min(counts) + 1
    assert all(found == list(range(num_samples)) for found in drawn.values())
    plain = [(problem.id, list(samples)) for problem, samples in one_after_the_other(problems, num_samples)]
    assert plain == list(drawn.items())


def test_memory_decides_how_many_rows(model, characters, problems):
    problems = problems[:3]
    free = sampler_of(model, characters, batch_size=16, max_new_tokens=5)
    whole = texts(free.sample(problems))
    longest = max(map(len, free.prompts(problems).values()))
    sizes = memory.model_bytes(model.config, dtype=torch.float64)
    bound = {"length": longest - 1 + 5, "prompt": longest - 1, "prefill_chunk": 512}
    gib = sizes.total(3, **bound) / 2**30
    small = sampler_of(model, characters, batch_size=16, max_new_tokens=5, memory_budget_gib=gib)
    assert texts(small.sample(problems)) == whole
    assert small.plan(list(free.prompts(problems).values())) == small.stats.peak_rows == 3
    assert free.stats.peak_rows == 16
    assert small.stats.cache_bytes < free.stats.cache_bytes
    ample = sampler_of(model, characters, batch_size=16, memory_budget_gib=4.0)
    assert ample.plan([[3]] * 2) == 12
    assert ample.plan([[3]] * 20) == 16
    with pytest.raises(ValueError, match="exceeds the memory budget"):
        list(sampler_of(model, characters, memory_budget_gib=gib / 1e4).sample(problems))


def test_stop_strings_end_and_cut_texts(small, characters, problems):
    model = small("qwen2 hybrid mamba2")
    plain = texts(sampler_of(model, characters, max_new_tokens=20).sample(problems))
    pairs = Counter(c.text[i : i + 2] for c in plain.values() for i in range(len(c.text) - 1))
    stops = tuple(pair for pair, _ in pairs.most_common(2))
    found = texts(sampler_of(model, characters, max_new_tokens=20, stop=stops).sample(problems))
    assert found.keys() == plain.keys()
    ended = 0
    for key, whole in plain.items():
        places = [place for stop in stops if (place := whole.text.find(stop)) >= 0]
        if places:
            ended += 1
            assert (found[key].text, found[key].finish_reason) == (whole.text[: min(places)], "stop")
            assert found[key].num_tokens < whole.num_tokens or whole.text.endswith(stops)
        else:
            assert found[key] == whole
    assert 1 < ended < 30


def test_a_model_with_more_tokens_than_its_tokenizer(characters, problems):
    """Embeddings are often padded to a round number; what such a token says is nothing."""
    config = HybridConfig(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        layer_mixers=["mamba2"], initializer_range=0.5,
    )  # fmt: skip
    model = HybridForCausalLM(config)
    found = list(sampler_of(model, characters, temperature=5.0, stop=("a", "b c")).sample(problems))
    assert len(found) == 30
    assert any(len(c.text) < c.num_tokens - 1 for c in found)


def test_greedy_and_the_system_prompt(small, characters, problems):
    model = small("llama attention")
    greedy = {"temperature": 0.0, "num_samples": 1, "top_p": 1.0, "batch_size": 4}
    plain = texts(sampler_of(model, characters, **greedy).sample(problems))
    longer = texts(sampler_of(model, characters, **greedy, system="be brief").sample(problems))
    assert all(longer[key].num_prompt_tokens == plain[key].num_prompt_tokens + len("be brief\n\n") for key in plain)


def test_training_mode_is_given_back(sampler, problems):
    model = sampler.model
    modes = []
    with contextlib.ExitStack() as stack:
        stack.callback(model.eval)
        model.train()
        handle = model.model.norm.register_forward_hook(lambda module, *_: modes.append(module.training))
        stack.callback(handle.remove)
        whole = texts(sampler.sample(problems[:1]))
        assert model.training
        assert all(module.training for module in model.modules())
        calls = sampler.sample(problems)
        next(calls)
        assert not model.training
        calls.close()
        assert model.training
        model.eval()
        assert texts(sampler.sample(problems[:1])) == whole
        assert not model.training
    assert modes
    assert not any(modes)


def test_sampling_leaves_no_gradients_and_no_random_state(sampler, problems):
    state = torch.get_rng_state()
    list(sampler.sample(problems[:1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in sampler.model.parameters())
    sampler.model(torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()
    sampler.model.zero_grad()


def test_bad_problems_are_one_clear_line(model, characters, problems):
    sampler = sampler_of(model, characters)
    with pytest.raises(ValueError, match="two problems have the id 'toy/0'"):
        sampler.sample([problems[0], problems[0]])
    long = dataclasses.replace(problems[0], question="a" * 110)
    if sampler.model.config.attention_layers:
        with pytest.raises(ValueError, match=r"exceed the model's 128 positions; use max_new_tokens \d+ or less"):
            sampler.sample([long])
    else:  # there are no positions to run out of
        assert next(sampler.sample([long])).num_prompt_tokens > 110
    empty = Sampler(sampler.model, sampler.tokenizer, CONFIG, render=lambda problem: [])
    with pytest.raises(ValueError, match="has no tokens"):
        empty.sample(problems)


def test_a_model_of_another_kind_is_one_clear_line(llama, all_models, characters, problems):
    with pytest.raises(ValueError, match="cannot sample from a LlamaForCausalLM; load it with"):
        Sampler(llama, characters, CONFIG)
    foreign = Sampler(all_models["hybrid"], characters, CONFIG, render=lambda problem: [3, 99])
    with pytest.raises(ValueError, match="has token 99, but the model knows 45"):
        foreign.sample(problems)
    on_gpu = sampler_of(all_models["hybrid"], characters, backend="cuda_graphs")
    with pytest.raises(ValueError, match="needs a model on CUDA"):
        list(on_gpu.sample(problems))


def test_half_precision_runs(small, characters, problems):
    model = copy.deepcopy(small("llama hybrid mamba2")).to(torch.bfloat16)
    assert len(list(sampler_of(model, characters, max_new_tokens=4).sample(problems[:2]))) == 12
