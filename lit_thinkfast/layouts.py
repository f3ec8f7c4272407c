"""Completions that other programs have written, as records of ours.

Each reader takes the lines of one program's file and yields what they hold: the problem, where the file tells it, the
completions, and rewards if a reward model has scored them. Nothing is guessed: engine seconds that a file lacks are 0,
tokens that nobody counted are 0, and what follows from them is then left out of tables and figures. Correctness is
never taken over: who reads a file grades it anew, so that all models are graded alike.

Written after the code of search-and-learn (6f81cac), NeMo-Skills (``evaluation/metrics``), lm-evaluation-harness 0.4
(``loggers/evaluation_tracker.py``) and the batch format of OpenAI, which vLLM's ``run-batch`` writes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_thinkfast.records import Completion, FinishReason, Problem, RecordError, decoded, from_json, parse_object

_log = logging.getLogger(__name__)

Layout = Literal["native", "search-and-learn", "nemo-skills", "lm-eval", "openai-batch"]


@dataclass(frozen=True)
class Samples:
    """What files of completions hold.

    Attributes:
        layout: Whose form it was.
        problems: Those that the files tell, once each; none in the ``native`` and ``openai-batch`` layouts.
        completions: In order of problem and sample for foreign files, as they stand for native ones.
        rewards: (problem id, sample) -> log-odds of each step, or of the whole, by the reward model of that program.
    """

    layout: Layout
    problems: list[Problem]
    completions: list[Completion]
    rewards: dict[tuple[str, int], tuple[float, ...]]


def read_samples(path: str | os.PathLike[str], *, layout: Layout | None = None, model: str = "") -> Samples:
    """Read completions of ours or of another program.

    Args:
        path: A JSON-lines file, or a folder whose ``.jsonl`` files belong together: NeMo-Skills writes one for each
            random seed (``output-rs0.jsonl``), lm-evaluation-harness one a task (``samples_<task>_<date>.jsonl``).
        layout: Default: that of the first line.
        model: Name of the model, for layouts that have none.

    Raises:
        FileNotFoundError: Nothing there, or no JSON-lines file in the folder.
        RecordError: A line that is not of its layout; the message starts with ``path:line``.
        ValueError: No completions, an unknown layout, two texts for one sample, or two problems with one id.
    """
    files = _files(Path(path))
    found = layout or _layout_of(files[0])
    if found not in Layout.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"layout {found!r} is not one of {', '.join(Layout.__args__)}")  # type: ignore[attr-defined]
    problems: dict[str, Problem] = {}
    completions: dict[tuple[str, int], Completion] = {}
    rewards: dict[tuple[str, int], tuple[float, ...]] = {}
    for sample in _READERS[found](files):
        own = sample.completion if sample.completion.model else dataclasses.replace(sample.completion, model=model)
        key = own.problem_id, own.sample
        if completions.setdefault(key, own) != own:
            raise ValueError(f"{sample.where}: problem {key[0]!r} sample {key[1]} has two texts that differ; keep one")
        if sample.problem is not None and problems.setdefault(key[0], sample.problem) != sample.problem:
            raise ValueError(f"{sample.where}: two different problems have the id {key[0]!r}")
        if sample.rewards is not None:
            rewards[key] = sample.rewards
    if not completions:
        raise ValueError(f"{path}: there are no completions in it; generate some first")
    return Samples(found, list(problems.values()), list(completions.values()), rewards)


def with_engine_seconds(completions: Iterable[Completion], seconds: float) -> list[Completion]:
    """Share the engine seconds of a whole run among its completions, by tokens, or evenly where nobody counted them.

    Raises:
        ValueError: Not a positive number of seconds, or tokens counted of some completions only.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"engine_seconds {seconds} is not a positive number of seconds")
    given = list(completions)
    counted = any(c.num_tokens for c in given)
    if counted and (missing := [c for c in given if c.text and not c.num_tokens]):
        first = missing[0]
        raise ValueError(
            f"engine_seconds are shared out by tokens, but {len(missing)} of {len(given)} completions have no count, "
            f"the first is problem {first.problem_id!r} sample {first.sample}"
        )
    weights = [c.num_tokens or 1 for c in given]  # nothing was written but the end
    share = seconds / sum(weights)
    return [dataclasses.replace(c, seconds=share * w) for c, w in zip(given, weights, strict=True)]


@dataclass(frozen=True)
class _Sample:
    where: str
    completion: Completion
    problem: Problem | None = None
    rewards: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Line:
    """An object of a file, with typed access that tells the place."""

    values: dict[str, Any]
    where: str
    number: int

    def get(self, kind: type, *names: str) -> Any:
        """Return the first value there is under ``names``, of type ``kind``."""
        for name in names:
            if self.values.get(name) is not None:
                return self._typed(self.values[name], kind, name)
        raise RecordError(f"{self.where}: no {' or '.join(map(repr, names))}; is this file of another layout?")

    def named(self, prefix: str, *names: str) -> str:
        """Return the problem's name, or one made of its line where there is none."""
        found = (self.values[name] for name in names if self.values.get(name) is not None)
        return str(next(found, f"{prefix}/{self.number}"))

    def part(self, name: str) -> _Line:
        """Return the object under ``name``."""
        return _Line(self.get(dict, name), self.where, self.number)

    def maybe(self, kind: type, name: str) -> Any:
        """Return the value under ``name``, of type ``kind``, or ``None`` where there is none."""
        value = self.values.get(name)
        return None if value is None else self._typed(value, kind, name)

    def _typed(self, value: Any, kind: type, name: str) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)  # answers such as 18
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise RecordError(f"{self.where}: {name!r} holds {type(value).__name__}, expected {kind.__name__}")
        return value


def _native(files: list[Path]) -> Iterator[_Sample]:
    for text, where, _ in _texts(files):
        yield _Sample(where, from_json(Completion, text, where))


def _search_and_learn(files: list[Path]) -> Iterator[_Sample]:
    """One line a problem, with lists of completions, scores of steps, and counts of tokens."""
    for line in _lines(files):
        problem = _problem(line, line.named("search-and-learn", "unique_id"), "answer", "math500")
        texts = line.get(list, "completions")
        scores, counts = line.maybe(list, "scores"), line.maybe(list, "completion_tokens")
        for name, values in (("scores", scores), ("completion_tokens", counts)):
            if values is not None and len(values) != len(texts):
                raise RecordError(f"{line.where}: {len(values)} {name} for {len(texts)} completions")
        for i, text in enumerate(texts):
            tokens = counts[i] if counts is not None else 0
            rewards = None if scores is None else _step_rewards(scores[i], line.where)
            yield _Sample(line.where, _completion(line, problem.id, i, text, tokens), problem, rewards)


def _nemo_skills(files: list[Path]) -> Iterator[_Sample]:
    """One line a problem and one file a seed, in the order of their numbers."""
    for sample, file in enumerate([f for f in files if "-rs" in f.stem] or files):
        for line in _lines([file]):
            problem = _problem(line, line.named("nemo-skills", "id", "problem_id"), "expected_answer", "")
            reward = line.maybe(float, "reward_model_score")
            made = _completion(
                line,
                problem.id,
                sample,
                line.get(str, "generation"),
                line.maybe(int, "num_generated_tokens") or 0,
                finish="length" if line.values.get("finish_reason") == "length" else "stop",
            )
            yield _Sample(line.where, made, problem, None if reward is None else (_finite(reward, line.where),))


def _lm_eval(files: list[Path]) -> Iterator[_Sample]:
    """One line a problem and filter; ``resps`` holds a list of texts for each request."""
    from lit_thinkfast.verification.answers import extract_answer

    for file in files:
        task = file.stem.removeprefix("samples_").rsplit("_", 1)[0]
        for line in _lines([file]):
            doc = line.part("doc")
            target = line.get(str, "target")
            responses = line.get(list, "resps")
            texts = responses[0] if responses and isinstance(responses[0], list) else responses
            problem = Problem(
                f"{task}/{line.values.get('doc_id', line.number)}",
                doc.get(str, "question", "problem", "Problem", "query", "input"),
                extract_answer(target) or target,
                source="gsm8k" if task.startswith("gsm8k") else task,
                level=_level(doc.values.get("level")),
                subject=str(doc.values.get("subject") or doc.values.get("type") or ""),
            )
            for i, text in enumerate(texts):
                yield _Sample(line.where, _completion(line, problem.id, i, text, 0), problem)


def _openai_batch(files: list[Path]) -> Iterator[_Sample]:
    """One line a request; ``custom_id`` is the problem, with ``#`` and the sample's number where it was asked often."""
    failed = []
    for line in _lines(files):
        name = line.get(str, "custom_id")
        response = line.maybe(dict, "response") or {}
        body: dict[str, Any] = found if isinstance(found := response.get("body"), dict) else {}
        error = line.values.get("error") or body.get("error") or (None if response else "no response")
        if error is not None:
            failed.append((line.where, str(error)[:120]))
            continue
        choices = body.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise RecordError(f"{line.where}: the response holds no choices")
        problem, mark, first = name.rpartition("#")
        if not mark or not first.isdecimal():
            problem, first = name, "0"
        usage = _Line(body, line.where, line.number).part("usage") if body.get("usage") else _Line({}, line.where, 0)
        for i, values in enumerate(choices):
            choice = _Line(values, line.where, line.number)
            number = choice.maybe(int, "index")
            message = choice if "text" in values else choice.part("message")
            made = _completion(
                line,
                problem,
                int(first) + (i if number is None else number),
                message.get(str, "text" if "text" in values else "content"),
                (usage.maybe(int, "completion_tokens") or 0) if len(choices) == 1 else 0,
                finish="length" if values.get("finish_reason") == "length" else "stop",
            )
            prompt = usage.maybe(int, "prompt_tokens") or 0
            yield _Sample(
                line.where, dataclasses.replace(made, num_prompt_tokens=prompt, model=str(body.get("model") or ""))
            )
    if failed:
        _log.warning("%d requests have failed and are left out, the first at %s (%s)", len(failed), *failed[0])


_READERS: dict[str, Callable[[list[Path]], Iterator[_Sample]]] = {
    "native": _native,
    "search-and-learn": _search_and_learn,
    "nemo-skills": _nemo_skills,
    "lm-eval": _lm_eval,
    "openai-batch": _openai_batch,
}
_TELLTALE: dict[Layout, set[str]] = {
    "native": {"problem_id", "sample", "text"},
    "search-and-learn": {"completions", "answer"},
    "nemo-skills": {"generation", "expected_answer"},
    "lm-eval": {"doc", "resps", "target"},
    "openai-batch": {"custom_id", "response"},
}


def _layout_of(file: Path) -> Layout:
    first = next(_lines([file]), None)
    if first is None:
        raise ValueError(f"{file}: there are no completions in this file; generate some first")
    for layout, names in _TELLTALE.items():
        if names <= first.values.keys():
            return layout
    raise RecordError(
        f"{first.where}: not a completion in any layout that is known ({', '.join(_TELLTALE)}); its keys are "
        f"{', '.join(map(repr, list(first.values)[:8]))}"
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder {path}; name completions that are there")
    found = sorted(path.glob("*.jsonl"), key=lambda file: (len(file.name), file.name))  # rs2 before rs10
    if not found:
        raise FileNotFoundError(f"{path}: there is no .jsonl file in this folder")
    return found


def _texts(files: Iterable[Path]) -> Iterator[tuple[str, str, int]]:
    """Yield each line with its place, and its number from 0."""
    for file in files:
        with open(file, "rb") as lines:
            for number, raw in enumerate(lines):
                where = f"{file}:{number + 1}"
                if text := decoded(raw, where).strip():
                    yield text, where, number


def _lines(files: Iterable[Path]) -> Iterator[_Line]:
    for text, where, number in _texts(files):
        yield _Line(parse_object(text, where), where, number)


def _problem(line: _Line, name: str, gold: str, source: str) -> Problem:
    return Problem(
        name,
        line.get(str, "problem", "question"),
        line.get(str, gold),
        line.maybe(str, "solution"),
        source,
        _level(line.values.get("level")),
        line.maybe(str, "subject") or "",
    )


def _level(value: Any) -> int | None:
    """Return 3 for 3 and for "Level 3"."""
    word = str(value).split()[-1:] if value is not None else []
    return int(word[0]) if word and re.fullmatch("[0-9]{1,3}", word[0]) else None


def _completion(
    line: _Line, problem: str, sample: int, text: Any, tokens: Any, *, finish: FinishReason = "stop"
) -> Completion:
    if not isinstance(text, str):
        raise RecordError(f"{line.where}: sample {sample} is {type(text).__name__}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character
        raise RecordError(f"{line.where}: sample {sample} is not valid text ({error.reason})") from None
    count = tokens if isinstance(tokens, int) and tokens >= 0 else 0
    return Completion(problem, sample, text, 0, count, finish, 0.0, 0.0)


def _step_rewards(scores: Any, where: str) -> tuple[float, ...]:
    """Return the log-odds of probabilities, of one step or of several."""
    from lit_thinkfast.verification.scores import log_odds_of

    values = [_finite(value, where) for value in (scores if isinstance(scores, list) else [scores])]
    if wrong := [value for value in values if not 0 <= value <= 1]:
        raise RecordError(f"{where}: the score {wrong[0]:g} is no probability")
    return tuple(log_odds_of(value) for value in values)


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordError(f"{where}: the score {value!r} is not a finite number")
    return float(value)
