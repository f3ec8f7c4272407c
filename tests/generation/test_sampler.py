"""Completions do not depend on how they are batched; what they cost adds up."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.progress import Progress
from lit_thinkfast.generation.sampler import Sampler

CONFIG = SamplingConfig(temperature=0.9, top_p=0.95, max_new_tokens=20, num_samples=6, batch_size=8, seed=7)
TIMES = {"seconds": 0.0, "latency_seconds": 0.0}


def texts(completions):
    return {(c.problem_id, c.sample): dataclasses.replace(c, **TIMES) for c in completions}


@pytest.fixture
def sampler(model, characters):
    return Sampler(model, characters, CONFIG, name="tiny")


def test_completions_are_complete_records_in_order(sampler, problems, characters):
    found = list(sampler.sample(problems))
    assert [(c.problem_id, c.sample) for c in found] == [(p.id, s) for p in problems for s in range(6)]
    assert {c.finish_reason for c in found} == {"stop", "length"}
    lengths = {p.id: len(characters(f"Question: {p.question}\nAnswer:\n")["input_ids"]) for p in problems}
    for c in found:
        assert (c.model, c.seed, c.num_prompt_tokens) == ("tiny", 7, lengths[c.problem_id])
        assert "." not in c.text  # the end token is special
        assert c.num_tokens == 20 if c.finish_reason == "length" else c.num_tokens <= 20
        assert 0 < c.seconds < c.latency_seconds
    assert len({c.text for c in found}) > 20


@pytest.mark.parametrize("batch_size", [1, 3, 7, 30, 64])
def test_same_texts_whatever_the_batch_size_and_order(model, characters, problems, batch_size):
    whole = texts(Sampler(model, characters, CONFIG).sample(problems))
    config = dataclasses.replace(CONFIG, batch_size=batch_size)
    shuffled = [problems[i] for i in (3, 0, 4, 2, 1)]
    assert texts(Sampler(model, characters, config).sample(shuffled)) == whole
    alone = texts(Sampler(model, characters, config).sample(problems[2:3]))
    assert alone == {key: c for key, c in whole.items() if key[0] == problems[2].id}


def test_more_samples_leave_the_first_ones_alone(model, characters, problems):
    few = texts(Sampler(model, characters, CONFIG).sample(problems))
    many = texts(Sampler(model, characters, dataclasses.replace(CONFIG, num_samples=9)).sample(problems))
    assert few.items() <= many.items()
    assert len(many) == 45


def test_another_seed_gives_other_texts(model, characters, problems):
    one = texts(Sampler(model, characters, CONFIG).sample(problems))
    other = texts(Sampler(model, characters, dataclasses.replace(CONFIG, seed=8)).sample(problems))
    assert sum(one[key].text == other[key].text for key in one) < 3


def test_skipped_samples_are_not_drawn(sampler, problems):
    whole = texts(sampler.sample(problems))
    skip = {key for i, key in enumerate(whole) if i % 3 or key[0] == "toy/1"}
    rest = texts(sampler.sample(problems, skip=skip))
    assert rest == {key: c for key, c in whole.items() if key not in skip}
    assert list(sampler.sample(problems, skip=whole.keys())) == []
    assert list(sampler.sample([])) == []


def test_shares_add_up_and_the_warm_up_is_nobodys(sampler, problems):
    found = list(sampler.sample(problems))
    stats = sampler.stats
    assert sum(c.seconds for c in found) == pytest.approx(stats.engine_seconds, rel=1e-9)
    assert stats.warmup_seconds > 0
    assert (stats.samples, stats.batches) == (30, 4)
    assert stats.tokens == sum(c.num_tokens for c in found)
    assert stats.row_steps == stats.tokens - 30
    assert stats.cache_bytes > 0
    warm = stats.warmup_seconds
    list(sampler.sample(problems[:1]))
    assert sampler.stats.warmup_seconds == warm


def test_progress_counts_up_to_the_end(sampler, problems):
    seen: list[Progress] = []
    found = list(sampler.sample(problems, on_batch=seen.append))
    assert seen[-1].samples_done == seen[-1].samples_total == 30
    assert seen[-1].tokens == sum(c.num_tokens for c in found)
    assert seen[-1].eta_seconds == 0
    assert seen[-1].tokens_per_second > 0
    assert all(a.samples_done <= b.samples_done and a.tokens < b.tokens for a, b in pairwise(seen))
    assert Progress(0, 4, 10, 1.0).eta_seconds is None


def test_the_callback_drives_a_rich_bar(sampler, problems):
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(quiet=True)) as bar:
        task = bar.add_task("sampling", total=None)
        calls = sampler.sample(
            problems, on_batch=lambda p: bar.update(task, completed=p.samples_done, total=p.samples_total)
        )
        assert len(list(calls)) == 30
        assert bar.tasks[0].finished


def test_greedy_and_the_system_prompt(model, characters, problems):
    greedy = SamplingConfig(temperature=0.0, num_samples=1, max_new_tokens=20, batch_size=4)
    plain = texts(Sampler(model, characters, greedy).sample(problems))
    system = dataclasses.replace(greedy, system="be brief")
    longer = texts(Sampler(model, characters, system).sample(problems))
    assert all(longer[key].num_prompt_tokens == plain[key].num_prompt_tokens + len("be brief\n\n") for key in plain)


def test_training_mode_is_given_back(sampler, problems):
    sampler.model.train()
    try:
        list(sampler.sample(problems[:1]))
        assert sampler.model.training
    finally:
        sampler.model.eval()


def test_bad_problems_are_one_clear_line(sampler, problems):
    with pytest.raises(ValueError, match="two problems have the id 'toy/0'"):
        sampler.sample([problems[0], problems[0]])
    long = dataclasses.replace(problems[0], question="a" * 100)
    if sampler.model.config.attention_layers:
        with pytest.raises(ValueError, match=r"exceed the model's 128 positions; use max_new_tokens \d+ or less"):
            sampler.sample([long])
    else:  # there are no positions to run out of
        assert next(sampler.sample([long])).num_prompt_tokens > 100
    empty = Sampler(sampler.model, sampler.tokenizer, CONFIG, render=lambda problem: [])
    with pytest.raises(ValueError, match="has no tokens"):
        empty.sample(problems)


def test_a_model_of_another_kind_is_one_clear_line(llama, all_models, characters, problems):
    with pytest.raises(ValueError, match="cannot sample from a LlamaForCausalLM; load it with"):
        Sampler(llama, characters, CONFIG)
    foreign = Sampler(all_models["hybrid"], characters, CONFIG, render=lambda problem: [3, 99])
    with pytest.raises(ValueError, match="has token 99, but the model knows 45"):
        foreign.sample(problems)


def test_float32_and_half_precision_run(all_models, characters, problems):
    import copy

    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(all_models["hybrid"]).to(dtype)
        assert len(list(Sampler(model, characters, CONFIG).sample(problems[:2]))) == 12
