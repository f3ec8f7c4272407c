"""The decode loop against transformers' generate and against a loop without cache, batch or vectors."""

import pytest
import torch

from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.engine import RowKeys, decode_batch, fill_holes
from lit_thinkfast.generation.picking import pick_tokens
from lit_thinkfast.generation.rng import problem_key, uniforms

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20], [12, 30, 31, 3]]
END = 1


def keys(copies, seed=0):
    problems = [problem_key(f"p{i}") for i, n in enumerate(copies) for _ in range(n)]
    samples = [s for n in copies for s in range(n)]
    return RowKeys(problems=torch.tensor(problems), samples=torch.tensor(samples), seed=seed)


def decode(model, prompts, copies, **changes):
    settings = {"temperature": 0.9, "max_new_tokens": 70, "end_tokens": [END], **changes}
    return decode_batch(model, prompts, copies=copies, keys=keys(copies), **settings)


def token_lists(result):
    return [row[:length] for row, length in zip(result.tokens.tolist(), result.lengths.tolist(), strict=True)]


@torch.no_grad()
def sample_twin(model, prompt, problem, sample, *, temperature, top_p, budget, seed=0):
    """One row, the whole text through the model for every token."""
    tokens = []
    while len(tokens) < budget and END not in tokens:
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[:, -1]
        uniform = uniforms(torch.tensor([problem]), torch.tensor([sample]), torch.tensor([len(tokens)]), seed=seed)
        tokens.append(int(pick_tokens(logits, uniform, temperature=temperature, top_p=top_p)))
    return tokens


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [[4, 5], [6, 7]]])
def test_greedy_is_what_transformers_generates(all_models, llama, prompts):
    for name, model in {**all_models, "stock": llama}.items():
        ours = decode(all_models["attention"] if name == "stock" else model, prompts, [1] * len(prompts), temperature=0)
        for row, prompt in zip(token_lists(ours), prompts, strict=True):
            stock = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False, max_new_tokens=70,
            )  # fmt: skip
            assert row == stock[0, len(prompt) :].tolist(), name


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_sampling_is_what_a_loop_without_cache_samples(model, top_p):
    copies = [3, 1, 4]
    found = token_lists(decode(model, PROMPTS, copies, top_p=top_p, max_new_tokens=30))
    owners = [(i, s) for i, n in enumerate(copies) for s in range(n)]
    for row, (i, s) in zip(found, owners, strict=True):
        twin = sample_twin(model, PROMPTS[i], problem_key(f"p{i}"), s, temperature=0.9, top_p=top_p, budget=30)
        assert row == twin


def test_attention_hybrid_samples_as_the_stock_model(all_models, llama):
    found = token_lists(decode(all_models["attention"], PROMPTS, [2, 2, 2], max_new_tokens=25))
    for row in range(6):
        key = problem_key(f"p{row // 2}")
        twin = sample_twin(llama, PROMPTS[row // 2], key, row % 2, temperature=0.9, top_p=1, budget=25)
        assert found[row] == twin


def test_finished_rows_leave_and_take_no_step(model):
    result = decode(model, PROMPTS, [16, 16, 16])
    assert len(set(result.lengths.tolist())) > 8
    assert result.stopped.any()
    assert result.row_steps == int((result.lengths - 1).sum())
    assert result.steps == int(result.lengths.max()) - 1
    for row, stopped in zip(token_lists(result), result.stopped.tolist(), strict=True):
        assert (row[-1] == END) == stopped
        assert END not in row[:-1]
        assert stopped or len(row) == 70


def test_the_model_sees_only_rows_that_are_not_finished(model, monkeypatch):
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: seen.append(k["input_ids"].shape) or forward(*a, **k))
    result = decode(model, PROMPTS, [8, 8, 8])
    assert seen[0] == (3, 7)  # three prompts once, whatever their samples
    alive = [int((result.lengths > step).sum()) for step in range(1, int(result.lengths.max()))]
    assert [tuple(shape) for shape in seen[1:]] == [(n, 1) for n in alive]


def test_without_end_tokens_every_row_runs_to_the_budget(model):
    result = decode(model, PROMPTS[:1], [5], end_tokens=[], max_new_tokens=9)
    assert result.lengths.tolist() == [9] * 5
    assert not result.stopped.any()
    assert result.steps == 8
    assert result.row_steps == 40


def test_budget_of_one_token(model):
    result = decode(model, PROMPTS, [2, 2, 2], max_new_tokens=1)
    assert result.tokens.shape == (6, 1)
    assert (result.steps, result.row_steps, result.decode_seconds) == (0, 0, 0.0)


@pytest.mark.parametrize("ends", [[], [END]])
def test_shares_add_up_to_the_time_of_the_engine(model, ends):
    clock = iter(x * x * 0.5 for x in range(10_000))  # laps that differ: 0.5, 1.5, 2.5 ...
    watch = Stopwatch(now=lambda: next(clock))
    result = decode(model, PROMPTS, [6, 1, 3], end_tokens=ends, watch=watch)
    assert float(result.seconds.sum()) == pytest.approx(watch.elapsed, rel=1e-12)
    assert result.prefill_seconds + result.decode_seconds == pytest.approx(watch.elapsed, rel=1e-12)
    assert float(result.latency.max()) == pytest.approx(watch.elapsed)
    order = result.lengths.argsort()
    assert (result.latency[order].diff() >= 0).all()


def test_shares_equal_a_ledger_kept_by_hand(model):
    ticks = [0.0]

    def now():
        ticks.append(ticks[-1] + 1.0 + 0.1 * len(ticks))
        return ticks[-1]

    copies = [4, 1]
    watch = Stopwatch(now=now)
    result = decode(model, PROMPTS[:2], copies, watch=watch)
    laps = torch.tensor(ticks[2:], dtype=torch.float64).diff()
    laps = laps[: result.steps + 1]
    expected = torch.zeros(5, dtype=torch.float64)
    expected += laps[0] / 2 / torch.tensor([4, 4, 4, 4, 1])
    for step in range(1, result.steps + 1):
        alive = result.lengths > step
        expected[alive] += laps[step] / int(alive.sum())
    assert torch.allclose(result.seconds, expected, rtol=1e-12)
    assert torch.allclose(result.latency, laps.cumsum(0)[result.lengths - 1], rtol=1e-12)


def test_the_time_of_a_callback_is_nobodys(model):
    time = [0.0]

    def now():
        time[0] += 1.0
        return time[0]

    calls = []

    def on_step(tokens, finished, left):
        calls.append((tokens, finished, left))
        time[0] += 1000.0

    watch = Stopwatch(now=now)
    result = decode(model, PROMPTS, [4, 4, 4], watch=watch, on_step=on_step, seconds_between_calls=0.0)
    assert watch.elapsed == result.steps + 1
    assert len(calls) == result.steps
    for step, (tokens, finished, left) in enumerate(calls, start=1):
        assert tokens == int(result.lengths.clamp(max=step).sum())
        assert finished == int((result.lengths <= step).sum())
        assert left == 12 - finished


def test_logits_that_are_not_finite_are_reported(all_models):
    import copy

    broken = copy.deepcopy(all_models["hybrid"])
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        decode(broken, PROMPTS, [1, 1, 1])


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_holes_are_filled_with_the_fewest_moves(rows):
    for pattern in range(2**rows):
        done = torch.tensor([bool(pattern >> i & 1) for i in range(rows)])
        left, source, target = fill_holes(done)
        order = torch.arange(rows)
        order[target] = source
        assert sorted(order[:left].tolist()) == (~done).nonzero()[:, 0].tolist()
        assert len(source) == int(done[:left].sum())
