"""vLLM as a sampler, against a strict stand-in of its server; shares of time against a brute-force count."""

import contextlib
import dataclasses
import itertools
import json
import random
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from lit_thinkfast.generation import SamplingConfig
from lit_thinkfast.generation.in_flight import Answer, Job, Share, SharedClock, Tick, divide
from lit_thinkfast.generation.rng import problem_key
from lit_thinkfast.generation.run import generate_to_file
from lit_thinkfast.generation.vllm import VLLMSampler, sample_seed
from lit_thinkfast.generation.vllm_server import Reply, Server, _Calls
from lit_thinkfast.records import Completion, Problem, read_jsonl

from .stand_in_server import FIELDS, VERSION, StandIn, checked, letters, naive, offline_module

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]
CONFIG = SamplingConfig(temperature=0.9, top_p=0.95, num_samples=6, max_new_tokens=20, batch_size=4, seed=7)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vllm")]


@pytest.fixture
def stand_in(characters):
    with StandIn(characters) as server:
        yield server


def sampler_of(stand_in, tokenizer, config=CONFIG, *, name="tiny", end_tokens=(), **options):
    server = Server(stand_in.url, **{"backoff": 0.001, "timeout": 5.0, **options})
    return VLLMSampler(server, tokenizer, config, name=name, end_tokens=end_tokens)


def texts(completions):
    return {(c.problem_id, c.sample): (c.text, c.num_tokens, c.finish_reason) for c in completions}


def sampled(stand_in):
    """The requests after the first, which warms up."""
    return stand_in.requests[1:]


# time


def brute_force(intervals):
    """Cut the time at every start and end, and count who is there in each piece."""
    cuts = sorted({moment for pair in intervals for moment in pair})
    seconds, busy, finished = [0.0] * len(intervals), 0.0, {}
    for start, end in itertools.pairwise(cuts):
        there = [i for i, (begin, stop) in enumerate(intervals) if begin <= start and stop >= end]
        for i in there:
            seconds[i] += (end - start) / len(there)
        busy += (end - start) if there else 0.0
        finished[end] = busy
    return seconds, busy, finished


@pytest.mark.parametrize("seed", range(20))
def test_shares_of_time_are_those_of_a_brute_force_count(seed):
    numbers = random.Random(seed)
    starts = [numbers.choice([0.0, 1.0, numbers.uniform(0, 9)]) for _ in range(numbers.randrange(1, 30))]
    intervals = [(100 + start, 100 + start + numbers.uniform(0.01, 3)) for start in starts]
    shares = divide(intervals)
    seconds, busy, finished = brute_force(intervals)
    assert [s.seconds for s in shares] == pytest.approx(seconds)
    assert [s.latency for s in shares] == pytest.approx([end - start for start, end in intervals])
    assert [s.finished for s in shares] == pytest.approx([finished[end] for _, end in intervals])
    assert sum(s.seconds for s in shares) == pytest.approx(busy)


def test_the_clock_stands_still_with_nothing_in_flight():
    times = iter([0.0, 5.0, 7.0, 20.0, 21.0, 23.0])
    clock, shares = SharedClock(now=lambda: next(times)), []
    assert clock.busy == 0.0
    with clock.timing(shares):  # 5 to 7
        pass
    with contextlib.suppress(ValueError), clock.timing(shares):  # 20 to 23
        assert clock.busy == 3.0  # at 21
        raise ValueError("a failure counts as well")
    assert [tuple(share) for share in shares] == [(2.0, 2.0, 2.0), (3.0, 3.0, 5.0)]
    assert (clock.in_flight, clock.most) == (0, 1)


# what is asked


def test_greedy_texts_are_those_of_our_own_engine(model, characters, problems):
    from lit_thinkfast.generation.sampler import Sampler

    config = SamplingConfig(temperature=0.0, num_samples=1, max_new_tokens=20, batch_size=3, stop=("ab", "q"))
    own = texts(Sampler(model, characters, config).sample(problems))
    with StandIn(characters, stream=naive(model)) as stand_in:
        served = texts(sampler_of(stand_in, characters, config).sample(problems))
    assert served == own
    assert len(own) == 5


def test_settings_reach_the_server_and_none_of_its_own_is_in_effect(characters, problems):
    config = dataclasses.replace(CONFIG, top_k=5, min_p=0.25, stop=("xy",), num_samples=2)
    own = {"temperature": 0.1, "top_p": 0.2, "top_k": 1, "min_p": 0.9, "repetition_penalty": 1.7,
           "presence_penalty": 1.0, "frequency_penalty": 1.0, "eos_token_id": 5}  # fmt: skip
    with StandIn(characters, generation_config=own) as stand_in:
        sampler = sampler_of(stand_in, characters, config, end_tokens=[9])
        found = texts(sampler.sample(problems))
    assert sampler.end_tokens() == [1, 9]
    prompts = sampler.prompts(problems)
    assert len(sampled(stand_in)) == len(found) == 10
    wanted = {sample_seed(7, problem.id, sample): prompts[problem.id] for problem in problems for sample in range(2)}
    for request in sampled(stand_in):
        effective = request.pop("effective")
        assert {name: effective[name] for name in request} == request
        assert request == {
            "model": "tiny", "prompt": wanted.pop(request["seed"]), "n": 1, "max_tokens": 20, "temperature": 0.9,
            "top_p": 0.95, "top_k": 5, "min_p": 0.25, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "seed": request["seed"], "stop": ["xy"], "stop_token_ids": [1, 9],
            "ignore_eos": True, "skip_special_tokens": True, "stream": False, "return_token_ids": True,
        }  # fmt: skip
        assert set(effective) == set(FIELDS)


def test_prompts_are_rendered_here(stand_in, characters, problems):
    from lit_thinkfast.data.prompts import render_prompt

    config = dataclasses.replace(CONFIG, system="be brief", num_samples=1, batch_size=1)
    found = list(sampler_of(stand_in, characters, config).sample(problems))
    expected = {p.id: render_prompt(characters, p.question, system="be brief") for p in problems}
    assert [request["prompt"] for request in sampled(stand_in)] == list(expected.values())
    assert {c.problem_id: c.num_prompt_tokens for c in found} == {name: len(ids) for name, ids in expected.items()}


def philox_by_hand(counter, key):
    """Philox-4x32-10 on plain integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(second >> 32) ^ c[1] ^ k0, second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k1, first & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


@pytest.mark.parametrize(("seed", "problem", "sample"), [(0, "a", 0), (2**63 - 1, "math/17", 2**32 - 1), (5, "b", 3)])
def test_the_seed_of_a_sample_is_a_philox_number(seed, problem, sample):
    key = problem_key(problem) % 2**64
    words = philox_by_hand((key % 2**32, key >> 32, sample, 2**32 - 1), (seed % 2**32, seed >> 32))
    assert sample_seed(seed, problem, sample) == ((words[0] << 32) + words[1]) % 2**63


def test_no_two_samples_share_a_seed():
    seeds = [sample_seed(s, f"p{i}", k) for s in range(4) for i in range(8) for k in range(16)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0


def test_texts_do_not_depend_on_order_or_number_of_requests(stand_in, characters, problems):
    problems = problems[:3]
    whole = texts(sampler_of(stand_in, characters).sample(problems))
    for batch_size in (1, 30):
        config = dataclasses.replace(CONFIG, batch_size=batch_size)
        assert texts(sampler_of(stand_in, characters, config).sample(problems[::-1])) == whole
    skip = {key for i, key in enumerate(whole) if i % 3 or key[0] == "toy/1"}
    rest = texts(sampler_of(stand_in, characters).sample(problems, skip=skip))
    assert rest == {key: text for key, text in whole.items() if key not in skip}
    assert list(sampler_of(stand_in, characters).sample(problems, skip=set(whole))) == []
    other = texts(sampler_of(stand_in, characters, dataclasses.replace(CONFIG, seed=8)).sample(problems))
    assert sum(other[key] == whole[key] for key in whole) < 4


# what is answered


def test_completions_are_what_the_server_generated(stand_in, characters, problems):
    found = list(sampler_of(stand_in, characters).sample(problems))
    assert {c.finish_reason for c in found} == {"stop", "length"}
    for c in found:
        request = next(r for r in sampled(stand_in) if r["seed"] == sample_seed(7, c.problem_id, c.sample))
        stream = letters(request["prompt"], temperature=0.9, seed=request["seed"])
        tokens = [next(stream) for _ in range(20)]
        tokens = tokens[: tokens.index(1) + 1] if 1 in tokens else tokens
        assert (c.model, c.seed, c.num_tokens) == ("tiny", 7, len(tokens))
        assert c.finish_reason == ("stop" if tokens[-1] == 1 else "length")
        assert c.text == characters.decode(tokens, skip_special_tokens=True)
        assert "." not in c.text


def test_stop_strings_are_cut_off_and_their_tokens_counted(characters, problems):
    plain = SamplingConfig(temperature=0.9, num_samples=4, max_new_tokens=20, batch_size=8)
    with StandIn(characters) as stand_in:
        whole = texts(sampler_of(stand_in, characters, plain).sample(problems))
        stops = {key: text[3:5] for key, (text, _, _) in whole.items() if len(text) > 6}
        key, stop = next(iter(stops.items()))
        config = dataclasses.replace(plain, stop=(stop, "@"))
        cut = texts(sampler_of(stand_in, characters, config).sample(problems))
    assert cut[key] == (whole[key][0][: whole[key][0].index(stop)], whole[key][0].index(stop) + 2, "stop")
    for other, (text, count, reason) in whole.items():
        at = text.find(stop)
        assert cut[other] == ((text, count, reason) if at < 0 else (text[:at], at + 2, "stop"))


def test_seconds_add_up_to_the_time_with_a_request_in_flight(characters, problems):
    with StandIn(characters, seconds=lambda tokens: 0.004 * len(tokens)) as stand_in:
        sampler = sampler_of(stand_in, characters)
        found = list(sampler.sample(problems, spent=100.0))
        stats = dataclasses.replace(sampler.stats)
        list(sampler.sample(problems[:1]))
        assert sampler.stats.warmup_seconds == stats.warmup_seconds
        assert sampler.stats.samples == 36
        assert sampler.stats.engine_seconds > stats.engine_seconds
    assert sum(c.seconds for c in found) == pytest.approx(stats.engine_seconds)
    assert max(c.finished_seconds for c in found) == pytest.approx(100 + stats.engine_seconds)
    assert all(0 < c.seconds <= c.latency_seconds for c in found)
    assert sum(c.latency_seconds for c in found) > 2 * stats.engine_seconds  # several at a time
    assert stand_in.most == stats.peak_rows == CONFIG.batch_size
    assert (stats.samples, stats.tokens) == (30, sum(c.num_tokens for c in found))
    assert 0 < stats.warmup_seconds < stats.engine_seconds
    assert stand_in.requests[0]["max_tokens"] == 3


def test_progress_counts_up_to_the_end(characters, problems):
    seen = []
    with StandIn(characters, seconds=lambda tokens: 0.02) as stand_in:
        config = dataclasses.replace(CONFIG, batch_size=2)
        found = list(sampler_of(stand_in, characters, config).sample(problems, on_progress=seen.append))
    assert seen[-1].samples_done == seen[-1].samples_total == 30
    assert seen[-1].tokens == sum(c.num_tokens for c in found)
    assert seen[-1].eta_seconds == 0
    assert len(seen) >= 2
    assert [p.samples_done for p in seen] == sorted(p.samples_done for p in seen)
    assert all(p.seconds <= seen[-1].seconds for p in seen)


# the budget of time


def test_the_budget_ends_the_run_and_drops_what_is_unfinished(characters, problems):
    sampler = None
    # of each problem the second sample and later ones take longer than there is time
    long = {sample_seed(7, p.id, s) for p in problems for s in range(1, 6)}
    with StandIn(characters) as stand_in:
        stand_in.seconds = lambda tokens: 0.0 if stand_in.requests[-1]["seed"] not in long else 30.0
        sampler = sampler_of(stand_in, characters, dataclasses.replace(CONFIG, batch_size=1))
        found = list(sampler.sample(problems, time_budget=10.8, spent=10.0))
    assert [(c.problem_id, c.sample) for c in found] == [(p.id, 0) for p in problems]
    assert all(10 < c.finished_seconds <= 10.8 for c in found)
    assert len(sampled(stand_in)) == 6  # none after the one that the clock stopped
    assert 0.8 <= sampler.stats.engine_seconds < 5.0


def test_no_time_left_asks_for_nothing(stand_in, characters, problems):
    assert list(sampler_of(stand_in, characters).sample(problems, time_budget=10.0, spent=10.0)) == []
    assert stand_in.requests == []


def test_within_a_large_budget_all_is_drawn(stand_in, characters, problems):
    whole = texts(sampler_of(stand_in, characters).sample(problems))
    seen = []
    one_at_a_time = sampler_of(stand_in, characters, dataclasses.replace(CONFIG, batch_size=1))
    budgeted = one_at_a_time.sample(problems, time_budget=50.0, on_progress=seen.append)
    assert texts(budgeted) == whole
    assert (seen[-1].samples_total, seen[-1].time_budget) == (None, 50.0)
    order = [problem_of(request, problems) for request in stand_in.requests[-30:]]
    assert order[:10] == [p.id for p in problems] * 2  # in rounds
    assert order[10:12] == ["toy/0"] * 2


def problem_of(request, problems):
    return next(p.id for p in problems for s in range(6) if sample_seed(7, p.id, s) == request["seed"])


def test_nothing_is_begun_when_the_time_is_up():
    jobs = [Job("p", sample, [1], {}) for sample in range(3)]
    calls = _Calls(Server("http://localhost"), iter(jobs), seconds=1.0)
    times = iter([0.0, 0.5, 1.0])
    calls._clock = SharedClock(now=lambda: next(times))
    with calls._clock.timing([]):
        assert calls._next() == jobs[0]
        assert calls._next() is None
        calls._clock._now = lambda: 1.0


def test_what_was_finished_too_late_is_dropped():
    calls, job = _Calls(Server("http://localhost"), iter(()), seconds=1.0), Job("p", 0, [1], {})
    answers = [Answer(job, [1], "stop", Share(0.1, 0.1, finished)) for finished in (0.5, 1.0, 1.5)]
    for event in (*answers, None):
        calls._events.put(event)
    assert list(calls.events()) == [*answers[:2], Tick(0.0, 0, 0)]


def test_a_run_that_is_left_hangs_up(characters, problems):
    with StandIn(characters, seconds=lambda tokens: 30.0 if len(tokens) > 3 else 0.0) as stand_in:
        run = sampler_of(stand_in, characters, timeout=20.0).sample(problems)
        assert next(run).num_tokens <= 3
        start = time.monotonic()
        run.close()
        assert time.monotonic() - start < 10


# a run into a file


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(stand_in, characters, problems, tmp_path):
    def lines(name):
        return texts(read_jsonl(Completion, tmp_path / name))

    generate_to_file(sampler_of(stand_in, characters), problems, tmp_path / "whole.jsonl")
    stand_in.faults = deque([None] * 12 + ["500"])  # the first warms up
    with pytest.raises(ValueError, match=r"the server refused a request \(500: The engine is currently busy.*its log"):
        generate_to_file(sampler_of(stand_in, characters), problems, tmp_path / "broken.jsonl")
    assert 0 < len(lines("broken.jsonl")) < 30
    stand_in.faults.clear()
    meta = generate_to_file(sampler_of(stand_in, characters), problems, tmp_path / "broken.jsonl")
    assert lines("broken.jsonl") == lines("whole.jsonl")
    assert len(lines("whole.jsonl")) == 30
    assert meta["total_samples"] == 30
    written = (tmp_path / "broken.jsonl.meta.json").read_text()
    assert "127.0.0.1" not in written
    assert json.loads(written)["engine"] == "vllm"
    with pytest.raises(ValueError, match="belongs to another run"):
        generate_to_file(sampler_of(stand_in, characters, name="other"), problems, tmp_path / "broken.jsonl")


def test_what_it_says_of_itself(characters, problems):
    with StandIn(characters, served=("/home/someone/models/student",), max_model_len=99) as stand_in:
        sampler = sampler_of(stand_in, characters, end_tokens=[4])
        identity, facts = sampler.identity(), sampler.describe()
        assert (sampler.positions, sampler.vocabulary, sampler.calibrate()) == (99, None, None)
    assert identity == json.loads(json.dumps(identity))
    for said in (identity, facts):
        assert said["engine"] == "vllm"
        assert said["served_model"] == "student"
        assert said["end_tokens"] == [1, 4]
        assert "someone" not in str(said)
        assert "127.0.0.1" not in str(said)
    assert identity["weights"] == "served"
    assert identity["seed"] == 7
    assert facts["engine_version"] == VERSION
    assert "scheduling" in facts["times"]
    assert facts["device"] == "server"


# what goes wrong


@pytest.mark.parametrize("fault", ["429", "503", "drop", "reset"])
def test_passing_faults_are_tried_again(characters, problems, fault):
    with StandIn(characters) as stand_in:
        whole = texts(sampler_of(stand_in, characters).sample(problems))
        stand_in.faults = deque([None, None, fault, fault, None, None, fault])
        sampler = sampler_of(stand_in, characters)
        found = list(sampler.sample(problems))
        assert texts(found) == whole
        assert not stand_in.faults
        assert sum(c.seconds for c in found) == pytest.approx(sampler.stats.engine_seconds)


@pytest.mark.parametrize(("fault", "message"), [
    ("503", r"did not answer in 3 tries \(503: The engine is currently busy .*\); see whether it runs .* the same comm"),
    ("reset", r"did not answer in 3 tries \(RemoteDisconnected: .*\); see whether it runs"),
    ("drop", r"did not answer in 3 tries \(IncompleteRead.*\); see whether it runs"),
])  # fmt: skip
def test_lasting_faults_are_one_clear_error(stand_in, characters, problems, fault, message):
    stand_in.faults = deque([None] + [fault] * 1000)
    with pytest.raises(ConnectionError, match=message) as error:
        list(sampler_of(stand_in, characters, tries=3).sample(problems))
    assert "\n" not in str(error.value)


def test_a_server_that_dies_is_one_clear_error(characters, problems):
    with StandIn(characters) as stand_in:
        sampler = sampler_of(stand_in, characters, tries=2)
        list(sampler.sample(problems[:1]))
    with pytest.raises(ConnectionError, match=r"did not answer in 2 tries \(ConnectionRefusedError"):
        list(sampler.sample(problems))
    with pytest.raises(ConnectionError, match=r"no vLLM server answers at http://127.0.0.1:\d+ \(Conn.*vllm serve"):
        sampler_of(stand_in, characters).prompts(problems)


def test_waiting_longer_where_the_server_asks_for_it(monkeypatch):
    server = Server("http://localhost", tries=5, backoff=0.25)
    monkeypatch.setattr(Server, "facts", lambda self: type("F", (), {"model": "tiny"}))
    answers = iter([Reply(503, b"", None), Reply(429, b"", 7.0), Reply(503, b"", 1e9), Reply(503, b"", None)] * 2)
    monkeypatch.setattr(
        Server,
        "exchange",
        lambda self, *_, timing, **__: [timing.__enter__(), timing.__exit__(None, None, None), next(answers)][2],
    )
    calls, waits = _Calls(server, iter(()), seconds=None), []
    monkeypatch.setattr(calls._halt, "wait", lambda seconds: waits.append(seconds))
    with pytest.raises(ConnectionError, match=r"in 5 tries \(503: Service Unavailable\)"):
        calls._answer(Job("p", 0, [1], {}))
    assert waits[0] == 0
    assert 0.125 <= waits[1] <= 0.375
    assert waits[2:4] == [7.0, 30.0]
    assert 1.0 <= waits[4] <= 3.0


@pytest.mark.parametrize(("change", "message"), [
    ("garbage", r"is not a JSON object \(<html>502 Bad Gateway</html>\); is it a vLLM server\?"),
    (lambda r: {**r, "choices": []}, "has not one finished choice"),
    (lambda r: {"object": "list"}, "has not one finished choice"),
    (lambda r: [r], "is not a JSON object"),
    (lambda r: altered(r, token_ids=None), r"has no token_ids; vLLM 0\.26 or later"),
    (lambda r: altered(r, token_ids=["a"]), "has no token_ids"),
    (lambda r: altered(r, prompt_token_ids=[2, *r["choices"][0]["prompt_token_ids"]]), "saw another prompt"),
    (lambda r: altered(r, finish_reason=None), "has not one finished choice"),
    (lambda r: altered(r, finish_reason="abort"), r"problem 'toy/0', sample 0: vLLM ended the completion with 'abort'"),
    (lambda r: altered(r, finish_reason="error"), "vLLM ended the completion with 'error'"),
    (lambda r: altered(r, finish_reason="length"), r"cut the completion at \d+ tokens instead of 20; .*max-model-len"),
    (lambda r: {**r, "usage": {"completion_tokens": 99}}, "counts 99 completion tokens but sends"),
])  # fmt: skip
def test_a_strange_answer_is_one_clear_error(stand_in, characters, problems, change, message):
    stand_in.faults = deque([None, change])
    stopping = SamplingConfig(
        temperature=0.9, num_samples=1, max_new_tokens=20, batch_size=1, stop=("e", "a", "o", "i")
    )
    with pytest.raises(ValueError, match=message) as error:
        list(sampler_of(stand_in, characters, stopping).sample(problems))
    assert "\n" not in str(error.value)


def altered(response, **changes):
    return {**response, "choices": [{**response["choices"][0], **changes}]}


def test_a_server_that_takes_too_long_is_one_clear_error(characters, problems):
    with StandIn(characters, seconds=lambda tokens: 30.0 if len(tokens) > 3 else 0.0) as stand_in:
        sampler = sampler_of(stand_in, characters, timeout=0.5)
        with pytest.raises(TimeoutError, match=r"no completion within timeout 0.5 s; give a longer one, or a smaller"):
            list(sampler.sample(problems))


def test_the_wrong_model_is_one_clear_line(characters, problems):
    with StandIn(characters, served=("tiny", "little")) as stand_in:  # two names of one model
        assert sampler_of(stand_in, characters, model="little").describe()["served_model"] == "little"
        assert sampler_of(stand_in, characters).describe()["served_model"] == "tiny"
        with pytest.raises(ValueError, match="serves no 'large'; it has tiny, little; name one of them"):
            sampler_of(stand_in, characters, model="large").prompts(problems)
        sampler = sampler_of(stand_in, characters)
        list(sampler.sample(problems[:1]))
        stand_in.served = ("other",)  # the server was started anew with another model
        with pytest.raises(
            ValueError, match=r"\(404: The model `tiny` does not exist. Valid aliases: other.\); give its"
        ):
            list(sampler.sample(problems))


def test_several_models_ask_for_a_choice(characters, problems, monkeypatch):
    with StandIn(characters) as stand_in:
        cards = stand_in.models()["data"]
        adapter = {**cards[0], "id": "adapter", "root": "/adapters/a", "parent": "tiny"}
        monkeypatch.setattr(stand_in, "models", lambda: {"data": [*cards, adapter]})
        assert sampler_of(stand_in, characters).describe()["served_model"] == "tiny"
        assert sampler_of(stand_in, characters, model="adapter").describe()["served_model"] == "adapter"
        monkeypatch.setattr(stand_in, "models", lambda: {"data": [*cards, {**adapter, "parent": None}]})
        with pytest.raises(ValueError, match="serves more than one model; it has tiny, adapter; name one of them"):
            sampler_of(stand_in, characters).prompts(problems)
        monkeypatch.setattr(stand_in, "models", lambda: {"data": []})
        with pytest.raises(ValueError, match="it has nothing"):
            sampler_of(stand_in, characters).prompts(problems)


def test_a_context_too_long_is_refused_before_it_is_sent_and_by_the_server(characters, problems):
    with StandIn(characters, max_model_len=60) as stand_in:
        long = dataclasses.replace(problems[0], question="a" * 50)
        with pytest.raises(ValueError, match=r"exceed the model's 60 positions; use max_new_tokens 0 or less"):
            sampler_of(stand_in, characters).sample([long])
        body = {"max_tokens": 20, "seed": 0}
        job = Job("toy/0", 0, [2] * 61, body)
        with pytest.raises(ValueError, match=r"\(400: This model's maximum context length is 60 .* 61 input tokens"):
            list(Server(stand_in.url).run(iter([job]), width=1))
        with pytest.raises(ValueError, match=r"\(400: Token id 99 is out of vocabulary .*\); change the settings"):
            list(Server(stand_in.url).run(iter([dataclasses.replace(job, prompt=[99])]), width=1))
        (answer, tick) = Server(stand_in.url).run(iter([dataclasses.replace(job, prompt=[2] * 58)]), width=1)
        assert (len(answer.tokens), answer.finish_reason) == (2, "length")  # cut without a word; the sampler says it
        assert isinstance(tick, Tick)


def test_the_stand_in_is_strict(stand_in):
    fine = {"prompt": [2, 3], "seed": 1, "max_tokens": 2}
    assert len(list(Server(stand_in.url).run(iter([Job("p", 0, [2, 3], {"seed": 1, "max_tokens": 2})]), width=1))) == 2
    for wrong in ({"topk": 3}, {"top_k": 1.5}, {"prompt": "text"}, {"prompt": []}, {"seed": 2**63}, {"stop": "a"},
                  {"temperature": 2.5}, {"max_tokens": 0}, {"return_token_ids": 1}):  # fmt: skip
        name = next(iter(wrong))
        with pytest.raises(Exception, match=f"body.{name}"):
            checked(fine | wrong)
        job = Job("p", 0, wrong.get("prompt", [2, 3]), {"seed": 1, "max_tokens": 2} | wrong)
        with pytest.raises(ValueError, match=rf"refused a request \(400: .*body\.{name}.*change the settings"):
            list(Server(stand_in.url).run(iter([job]), width=1))


def test_an_api_key(characters, problems, monkeypatch, tiny_teacher, tokenizer):
    with StandIn(characters, api_key="sesame") as stand_in:
        with pytest.raises(ValueError, match=r"\(401: Unauthorized\); give the api_key"):
            sampler_of(stand_in, characters).prompts(problems)
        sampler = sampler_of(stand_in, characters, api_key="sesame")
        assert len(list(sampler.sample(problems[:1]))) == 6
        assert "sesame" not in str((sampler.identity(), sampler.describe()))
    with StandIn(tokenizer, api_key="sesame", max_model_len=1024) as stand_in:
        monkeypatch.setenv("VLLM_API_KEY", "sesame")
        sampler = VLLMSampler.connect(stand_in.url, tiny_teacher, CONFIG)
        assert sampler.name == Path(tiny_teacher).name
        assert sampler.end_tokens() == [tokenizer.eos_token_id]
        assert sampler.prompts([Problem("p", "1 + 1", "2")])
        with pytest.raises(ValueError, match="401"):
            VLLMSampler.connect(stand_in.url, tiny_teacher, CONFIG, api_key="simsim").positions  # noqa: B018


def test_end_tokens_are_read_beside_the_model(tmp_path, tiny_teacher, tokenizer):
    def ends(folder):
        return VLLMSampler.connect("http://localhost:1", folder, CONFIG).end_tokens()

    own = tokenizer.eos_token_id
    assert ends(tiny_teacher) == [own]
    tokenizer.save_pretrained(tmp_path)  # a tokenizer alone
    assert ends(tmp_path) == [own]
    config = json.loads(Path(tiny_teacher, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [own, 7]}))
    assert ends(tmp_path) == sorted([own, 7])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert ends(tmp_path) == sorted([own, 8, 9])


def test_the_tokenizer_of_another_model_is_one_clear_line(characters, tokenizer, problems):
    with StandIn(tokenizer) as stand_in:
        with pytest.raises(ValueError, match="has 'tiny', whose tokenizer splits texts otherwise than the one given"):
            sampler_of(stand_in, characters).prompts(problems)
        stand_in.hidden = frozenset(["/tokenize", "/version"])  # as behind a proxy
        hidden = sampler_of(stand_in, characters)
        assert hidden.prompts(problems)
        assert hidden.describe()["engine_version"] == "unknown"
        stand_in.hidden = frozenset(["/v1/models"])
        with pytest.raises(ValueError, match=r"\(404: Not Found\); give its address without a path"):
            sampler_of(stand_in, characters).prompts(problems)


@pytest.mark.parametrize(("changes", "message"), [
    ({"temperature": 0.001}, r"temperature 0.001 is not 0 or in \[0.01, 2\]"),
    ({"temperature": 2.5}, r"temperature 2.5 is not 0 or in \[0.01, 2\]"),
    ({"memory_budget_gib": 1.0}, "memory_budget_gib 1.0 is a setting of the local engine; leave it out"),
    ({"backend": "eager"}, "backend eager is a setting of the local engine"),
    ({"prefill_chunk": 64}, "prefill_chunk 64 is a setting of the local engine"),
])  # fmt: skip
def test_settings_that_vllm_does_not_take_are_refused(characters, changes, message):
    with pytest.raises(ValueError, match=message):
        VLLMSampler(Server("http://localhost:1"), characters, dataclasses.replace(CONFIG, **changes))
    with pytest.raises(ValueError, match=message):
        VLLMSampler.offline("nowhere", dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://localhost", "http://", "http://me:pw@localhost", "http://a?b"]
)
def test_a_wrong_address_is_one_clear_line(url):
    with pytest.raises(ValueError, match=r"is not the address of a server; write it like http://localhost:8000"):
        Server(url)


def test_wrong_numbers_of_a_server():
    for wrong in ({"tries": 0}, {"timeout": 0.0}, {"backoff": -1.0}):
        with pytest.raises(ValueError, match="must be at least 1, above 0 and 0"):
            Server("http://localhost", **wrong)


def test_a_path_before_v1_is_kept(stand_in, monkeypatch):
    sent = []
    monkeypatch.setattr(Server, "exchange", lambda self, method, path, *_, **__: sent.append(self._prefix + path))
    for tail in ("", "/", "/v1", "/v1/"):
        with pytest.raises(AttributeError):
            Server(stand_in.url + "/here" + tail).facts()
    assert sent == ["/here/v1/models"] * 4


# inside this process


@pytest.fixture
def offline(monkeypatch, tokenizer):
    stand_in = StandIn(tokenizer, max_model_len=1024, stream=digits)
    module = offline_module(stand_in)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def digits(prompt, *, temperature, seed):
    """As ``letters``, in the tokens of the embedded world, whose end token is 1."""
    yield from letters(prompt, temperature=temperature, seed=seed)


def test_offline_gives_the_texts_of_a_server_and_times_that_add_up(offline, tiny_teacher, tokenizer):
    ends = [tokenizer.eos_token_id]
    problems = [Problem(f"p{i}", f"{i} + {i}", str(2 * i)) for i in range(9)]
    with StandIn(tokenizer, max_model_len=1024, stream=digits) as stand_in:
        server = VLLMSampler.connect(stand_in.url, tiny_teacher, CONFIG)
        served = texts(server.sample(problems))
    sampler = VLLMSampler.offline(tiny_teacher, CONFIG, name="off", options={"dtype": "float32"})
    assert (sampler.engine._llm.width, sampler.engine._llm.dtype) == (4, "float32")
    found = list(sampler.sample(problems, spent=50.0))
    assert texts(found) == served
    assert len(served) == 54
    assert sampler.end_tokens() == server.end_tokens() == ends
    assert offline.LLM.calls == [1, 32, 22]  # warm-up, eight batches of four, the rest
    assert sum(c.seconds for c in found) == pytest.approx(sampler.stats.engine_seconds)
    assert [c.latency_seconds for c in found] == pytest.approx([0.01 * c.num_tokens for c in found])
    assert max(c.finished_seconds for c in found) == pytest.approx(50 + sampler.stats.engine_seconds)
    assert sampler.stats.engine_seconds < 0.01 * sum(c.num_tokens for c in found) / 2
    assert sampler.identity() == server.identity() | {"model": "off", "served_model": Path(tiny_teacher).name}
    described = sampler.describe()
    assert described["engine_version"] == VERSION
    assert described["device"] in ("cpu", "cuda")
    assert str(Path(tiny_teacher).parent) not in str(described)


def test_offline_keeps_to_a_budget(offline, tiny_teacher):
    problems = [Problem(f"p{i}", f"{i} + {i}", str(2 * i)) for i in range(9)]
    whole = {(c.problem_id, c.sample): c for c in VLLMSampler.offline(tiny_teacher, CONFIG).sample(problems)}
    sampler = VLLMSampler.offline(tiny_teacher, CONFIG)
    offline.LLM.calls.clear()
    found = list(sampler.sample(problems, time_budget=1.2, spent=1.0))
    assert 0 < len(found) < 54
    assert offline.LLM.calls == [1, 32]
    assert all(1 < c.finished_seconds <= 1.2 for c in found)
    assert sampler.stats.engine_seconds == pytest.approx(0.2)
    assert all(c.text == whole[c.problem_id, c.sample].text for c in found)


def test_offline_without_times_or_without_vllm_is_one_clear_line(offline, tiny_teacher, monkeypatch):
    with pytest.raises(ValueError, match="vLLM gives no times of its requests; leave disable_log_stats at False"):
        list(
            VLLMSampler.offline(tiny_teacher, CONFIG, options={"disable_log_stats": True}).sample(
                [Problem("p", "1", "1")]
            )
        )
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"vLLM cannot be imported .* pip install 'lit-thinkfast\[vllm\]', or sample"):
        VLLMSampler.offline(tiny_teacher, CONFIG)
