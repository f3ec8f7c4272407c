"""Sampling with vLLM: the same prompts, settings and records as the local engine, the work done elsewhere.

The prompts are rendered here and sent as token ids, and texts are decoded here from the token ids that come back, so
that a teacher and a student are asked and read exactly as the local engine would. Each sample is a request of its own
with a seed of its own, which is a function of (seed, problem, sample): asked again, after an interruption or a failure,
it is asked the same. What is drawn with that seed is vLLM's matter, and so are the last bits of its logits, which
depend on what else is in the batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_thinkfast.generation.calibration import describe_machine
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.in_flight import Answer, Engine, EngineFacts, Job
from lit_thinkfast.generation.progress import Progress, ProgressCallback
from lit_thinkfast.generation.rng import philox, problem_key
from lit_thinkfast.generation.sampling import BaseSampler, Request
from lit_thinkfast.generation.vllm_offline import OfflineEngine
from lit_thinkfast.generation.vllm_server import Server
from lit_thinkfast.records import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD = 0xFFFFFFFF
# The counter of a sample's seed: no token has this position
_SEED_POSITION = _WORD
_WARMUP_TOKENS = 3
_SECONDS_BETWEEN_CALLS = 0.25
# vLLM raises lower temperatures to this one, and refuses ones above the other
_TEMPERATURES = (0.01, 2.0)
_LOCAL_SETTINGS = ("memory_budget_gib", "prefill_chunk", "backend")
_PROBE = "Question: What is 12 + 345?\nAnswer: It is 357."


class VLLMSampler(BaseSampler):
    """Samples completions of problems with vLLM.

    ``config.batch_size`` is the number of requests in flight. A completion's ``latency_seconds`` is the time in which
    its request was in flight, vLLM's scheduling included; its ``seconds`` are its share of it, each instant being
    divided equally among the requests in flight, so that they add up to the time in which there was one.

    Args:
        engine: A :class:`~lit_thinkfast.generation.vllm_server.Server`, or what :meth:`offline` makes.
        tokenizer: Of the model.
        config: What to sample.
        name: Written into each completion as its ``model``.
        render: From a problem to prompt tokens; by default the tokenizer's chat template around the question.
        end_tokens: Tokens that end a completion, besides those of the tokenizer.

    Raises:
        ValueError: A setting that vLLM does not take, or one of the local engine.

    Example::

        sampler = VLLMSampler.connect("http://localhost:8000", "models/student_vllm", SamplingConfig(num_samples=16))
        for completion in sampler.sample(problems):
            print(completion.text, completion.seconds)
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        *,
        name: str = "",
        render: Callable[[Problem], list[int]] | None = None,
        end_tokens: Sequence[int] = (),
    ) -> None:
        check_settings(config)
        super().__init__(tokenizer, config, name=name, render=render)
        self.engine = engine
        self._more_ends = tuple(end_tokens)
        self._checked = self._warm = False

    @classmethod
    def connect(
        cls,
        url: str,
        folder: str | os.PathLike[str],
        config: SamplingConfig,
        *,
        name: str | None = None,
        render: Callable[[Problem], list[int]] | None = None,
        served_model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
    ) -> VLLMSampler:
        """Return a sampler of a running ``vllm serve``.

        Args:
            url: Of the server, like ``http://localhost:8000``.
            folder: Folder or hub id of the model that is served there, for its tokenizer and end tokens.
            config: What to sample.
            name: Of the model in records; the folder's name if not given.
            render: As for the class.
            served_model: Its name there; needed only where several models are served.
            api_key: Of the server; if not given, what the environment variable ``VLLM_API_KEY`` holds, if anything.
            timeout: Seconds for one completion.

        Raises:
            FileNotFoundError: No tokenizer in the folder.
        """
        key = api_key if api_key is not None else os.environ.get("VLLM_API_KEY")
        server = Server(url, model=served_model, api_key=key, timeout=timeout)
        return cls(server, **_of_folder(folder, name), config=config, render=render)

    @classmethod
    def offline(
        cls,
        folder: str | os.PathLike[str],
        config: SamplingConfig,
        *,
        name: str | None = None,
        render: Callable[[Problem], list[int]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> VLLMSampler:
        """Return a sampler with a model that vLLM loads in this process.

        Args:
            folder: Folder or hub id of a model that vLLM knows, such as an exported student.
            config: What to sample.
            name: Of the model in records; the folder's name if not given.
            render: As for the class.
            options: Further arguments of ``vllm.LLM``.

        Raises:
            FileNotFoundError: No tokenizer in the folder.
            ImportError: vLLM is not installed.
        """
        check_settings(config)
        found = _of_folder(folder, name)
        return cls(
            OfflineEngine(folder, width=config.batch_size, options=options), **found, config=config, render=render
        )

    @property
    def vocabulary(self) -> None:
        return None  # a server does not say; it refuses tokens that it does not know

    @property
    def positions(self) -> int | None:
        return self._facts().positions

    def calibrate(self) -> None:
        return None

    def end_tokens(self) -> list[int]:
        """Return the tokens that end a completion: the tokenizer's and those given. vLLM is told to mind no others."""
        from lit_thinkfast.data.prompts import end_token_id

        ends = {*self._more_ends}
        if (eos := self.tokenizer.eos_token_id) is not None:
            ends.add(eos)
        with suppress(ValueError):  # a tokenizer may have no end token of its own
            ends.add(end_token_id(self.tokenizer))
        return sorted(ends)

    def identity(self) -> dict[str, Any]:
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return {
            **self.config.identity(),
            "engine": "vllm",
            "model": self.name,
            "served_model": _without_folders(self._facts().model),
            "weights": "served",
            "vocabulary": hashlib.blake2b(vocabulary, digest_size=8).hexdigest(),
            "end_tokens": self.end_tokens(),
        }

    def describe(self) -> dict[str, Any]:
        facts = self._facts()
        return {
            "model": self.name,
            "engine": "vllm",
            "engine_version": facts.version,
            "served_model": _without_folders(facts.model),
            "times": "of requests in flight, vLLM's scheduling included",
            "sampling": dataclasses.asdict(self.config),
            "end_tokens": self.end_tokens(),
            "versions": describe_machine()["versions"],
            **self.engine.describe(),
        }

    def _facts(self) -> EngineFacts:
        """Return what the engine says of itself, having seen once that its tokenizer is ours."""
        facts = self.engine.facts()
        if not self._checked:
            theirs = self.engine.encode(_PROBE)
            if theirs is not None and theirs != self.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]:
                raise ValueError(
                    f"vLLM has {facts.model!r}, whose tokenizer splits texts otherwise than the one given here; "
                    "give the folder of the model that vLLM has"
                )
            self._checked = True
        return facts

    def _complete(
        self,
        wanted: Sequence[Request],
        *,
        on_progress: ProgressCallback | None,
        time_budget: float | None,
        spent: float,
    ) -> Iterator[Completion]:
        self._facts()
        left = None if time_budget is None else time_budget - spent
        if not wanted or (left is not None and left <= 0):
            return
        if not self._warm:
            self._warm_up(wanted[0])
        stats, before = self.stats, self.stats.decode_seconds
        total = None if time_budget is not None else sum(len(request.samples) for request in wanted)
        samples = tokens = rows = 0
        called = time.monotonic()
        with closing(self.engine.run(self._jobs(wanted), width=self.config.batch_size, seconds=left)) as events:
            for event in events:
                if isinstance(event, Answer):
                    completion = self._completion(event, spent=spent)
                    samples, tokens = samples + 1, tokens + completion.num_tokens
                    stats.samples, stats.tokens = stats.samples + 1, stats.tokens + completion.num_tokens
                    stats.decode_seconds = max(stats.decode_seconds, before + event.share.finished)
                    yield completion
                else:
                    rows = event.in_flight
                    stats.peak_rows = max(stats.peak_rows, event.most)
                    stats.decode_seconds = max(stats.decode_seconds, before + event.seconds)
                if on_progress is not None and time.monotonic() - called >= _SECONDS_BETWEEN_CALLS:
                    seconds = stats.decode_seconds - before
                    on_progress(Progress(samples, total, tokens, seconds, rows, time_budget, spent))
                    called = time.monotonic()
        if on_progress is not None:
            on_progress(Progress(samples, total, tokens, stats.decode_seconds - before, 0, time_budget, spent))

    def _jobs(self, wanted: Sequence[Request]) -> Iterator[Job]:
        ends = self.end_tokens()
        for request in wanted:
            for sample in request.samples:
                seed = sample_seed(self.config.seed, request.problem.id, sample)
                parameters = sampling_parameters(self.config, seed=seed, end_tokens=ends)
                yield Job(request.problem.id, sample, request.prompt, parameters)

    def _warm_up(self, request: Request) -> None:
        """Draw a few tokens that are not recorded: the first call pays for kernels that are compiled when needed."""
        job = next(self._jobs([request]))
        short = job.parameters | {"max_tokens": min(_WARMUP_TOKENS, self.config.max_new_tokens)}
        for event in self.engine.run(iter([dataclasses.replace(job, parameters=short)]), width=1):
            if isinstance(event, Answer):
                self.stats.warmup_seconds += event.share.finished
        self._warm = True

    def _completion(self, answer: Answer, *, spent: float) -> Completion:
        job, count, budget = answer.job, len(answer.tokens), self.config.max_new_tokens
        where = f"problem {job.problem_id!r}, sample {job.sample}"
        if answer.finish_reason not in ("stop", "length"):
            raise ValueError(
                f"{where}: vLLM ended the completion with {answer.finish_reason!r}; see its log, then go on with the "
                "same command"
            )
        if answer.finish_reason == "length" and count != budget:
            raise ValueError(
                f"{where}: vLLM cut the completion at {count} tokens instead of {budget}; start it with a larger "
                f"--max-model-len and no max_new_tokens of its own, or use max_new_tokens {count}"
            )
        return Completion(
            problem_id=job.problem_id,
            sample=job.sample,
            text=self._text(answer.tokens),
            num_prompt_tokens=len(job.prompt),
            num_tokens=count,
            finish_reason="stop" if answer.finish_reason == "stop" else "length",
            seconds=answer.share.seconds,
            latency_seconds=answer.share.latency,
            seed=self.config.seed,
            model=self.name,
            finished_seconds=spent + answer.share.finished,
        )

    def _text(self, tokens: list[int]) -> str:
        """Decode as the local engine does, and cut the first stop string off with all that follows."""
        decoded = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = str(decoded)
        return text[: min((at for stop in self.config.stop if (at := text.find(stop)) >= 0), default=None)]


def sampling_parameters(config: SamplingConfig, *, seed: int, end_tokens: Sequence[int]) -> dict[str, Any]:
    """Return settings under the names that vLLM has for them, in requests and in ``vllm.SamplingParams`` alike.

    All that shapes a distribution is named, also where it is neutral, since vLLM takes what is not named from the
    ``generation_config.json`` of the model. For the same reason it is to ignore the end tokens that it knows and to
    mind ours.
    """
    return {
        "n": 1,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": config.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop": list(config.stop),
        "stop_token_ids": list(end_tokens),
        "ignore_eos": True,
        "skip_special_tokens": True,
    }


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """Return the seed of one sample, 0 to 2**63 - 1, from the generator of :mod:`~lit_thinkfast.generation.rng`.

    >>> sample_seed(0, "gsm8k/0", 0) != sample_seed(0, "gsm8k/0", 1) != sample_seed(1, "gsm8k/0", 1)
    True
    """
    problem = problem_key(problem_id)
    counter: Any = (problem & _WORD, (problem >> 32) & _WORD, sample, _SEED_POSITION)  # integers do as well as tensors
    high, low, _, _ = (int(word) for word in philox(counter, (seed & _WORD, seed >> 32)))
    return (high << 32 | low) & (2**63 - 1)


def check_settings(config: SamplingConfig) -> None:
    """Check that vLLM samples as ``config`` says.

    Raises:
        ValueError: A temperature that it changes or refuses, or a setting of the local engine.
    """
    low, high = _TEMPERATURES
    if config.temperature > 0 and not low <= config.temperature <= high:
        raise ValueError(
            f"temperature {config.temperature} is not 0 or in [{low}, {high:g}], which is what vLLM samples at"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _LOCAL_SETTINGS:
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{name} {getattr(config, name)} is a setting of the local engine; leave it out, and give vLLM its own "
                "(--gpu-memory-utilization, --max-num-batched-tokens, --enforce-eager)"
            )


def _of_folder(folder: str | os.PathLike[str], name: str | None) -> dict[str, Any]:
    """Return tokenizer, name and end tokens of the model in a folder."""
    from lit_thinkfast.models import load_tokenizer

    return {
        "tokenizer": load_tokenizer(folder),
        "name": Path(folder).resolve().name if name is None else name,
        "end_tokens": _end_tokens_of(folder),
    }


def _end_tokens_of(folder: str | os.PathLike[str]) -> list[int]:
    """Return the end tokens that are written beside a model, which is where a loaded one has them from.

    A folder may hold a tokenizer alone; its own end tokens are known without this.
    """
    from transformers import AutoConfig, GenerationConfig

    from lit_thinkfast.models.loading import locate
    from lit_thinkfast.reading import told_in_one_line

    where, options = locate(folder)
    try:
        source: Any = GenerationConfig.from_pretrained(where, **options)
    except OSError:  # it is optional
        if Path(where).is_dir() and not Path(where, "config.json").is_file():
            return []
        with told_in_one_line(folder):
            source = AutoConfig.from_pretrained(where, **options)
    eos = source.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or [])


def _without_folders(model: str) -> str:
    """Return the name of a served model; of a path, which vLLM takes for a name by default, its last part.

    >>> _without_folders("/data/models/student"), _without_folders("org/student")
    ('student', 'org/student')
    """
    return Path(model).name if model.startswith(("/", ".", "~")) else model
