"""The records that pass between rooms, and how they are read from and written to JSON lines.

``corpus -Example-> packing -PackedBatch-> training`` and
``Problem -> generation -Completion-> verification -Verdict-> metrics -BudgetPoint-> analysis``.
Every record is a frozen dataclass of plain Python values, so that a line of JSON is the whole of it: each later
step can be run again alone, on another machine, or fed by another engine. Only this file knows the line format.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Outcome = Literal["correct", "incorrect", "unparsable", "timeout", "oom", "crashed", "truncated"]
FinishReason = Literal["stop", "length"]
Rule = Literal["coverage", "majority", "weighted_best_of_n", "best_of_n"]


@dataclass(frozen=True, slots=True)
class Example:
    """One training text.

    Attributes:
        id: Unique within its source.
        prompt: What the model is given. Empty for plain text.
        response: What the model should write; the loss is taken here.
        source: Name of the corpus.
        step_labels: For reward models, one truth value for each line of ``response``: is everything up to and
            including this line right?
        outcome: For reward models, one truth value for the whole of ``response``.
    """

    id: str
    prompt: str
    response: str
    source: str = ""
    step_labels: tuple[bool, ...] | None = None
    outcome: bool | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One evaluation problem.

    Attributes:
        id: Unique within an evaluation set.
        question: The text put to the model, without any prompt template.
        answer: The gold final answer.
        solution: The gold worked solution, where there is one.
        source: Name of the evaluation set.
        level: Difficulty, from 1, where the set grades it.
        subject: Field of mathematics, where the set names it.
    """

    id: str
    question: str
    answer: str
    solution: str | None = None
    source: str = ""
    level: int | None = None
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled chain of thought and what it cost.

    Attributes:
        problem_id: ``Problem.id``.
        sample: Index of this sample among those of its problem, from 0.
        text: Decoded completion, without prompt and special tokens.
        num_prompt_tokens: Length of the prompt in tokens.
        num_tokens: Tokens generated, the end token included.
        finish_reason: ``stop`` when the model ended by itself, ``length`` when the token budget cut it.
        seconds: This sample's share of the engine's time; over a run the shares add up to the engine's time.
        latency_seconds: Engine seconds from its admission to a batch to its own last token.
        seed: Seed of the run; random numbers are a function of (seed, problem, sample, position).
        model: Name of the model that wrote it.
        finished_seconds: Engine seconds of the whole run, sessions added up, when it was finished: with them, one run
            answers for every shorter time budget. ``None`` where nobody noted them.
    """

    problem_id: str
    sample: int
    text: str
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: FinishReason
    seconds: float
    latency_seconds: float
    seed: int = 0
    model: str = ""
    finished_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one completion.

    Attributes:
        problem_id: ``Problem.id``.
        sample: ``Completion.sample``.
        outcome: How grading ended; only ``correct`` counts as solved.
        answer: The extracted answer, or ``None``.
        canonical: The form under which equal answers share a vote, or ``None`` when there is no answer.
        grader: Name, version and settings of the grader.
        score: Aggregated reward as a probability, or ``None`` when no reward model was asked.
        step_scores: Reward of each step as log-odds (natural logarithm), in order.
        reward_model: Name of the reward model, or an empty string.
        log_odds: The aggregated reward as log-odds, which still tell samples apart where ``score`` rounds to 1;
            ``None`` where it is not known.
    """

    problem_id: str
    sample: int
    outcome: Outcome
    answer: str | None = None
    canonical: str | None = None
    grader: str = ""
    score: float | None = None
    step_scores: tuple[float, ...] | None = None
    reward_model: str = ""
    log_odds: float | None = None

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """One point of a curve over time.

    Attributes:
        model: Name of the model.
        rule: How the answer is selected from k samples.
        k: Samples a problem.
        seconds: Engine time for ``k`` samples of one problem, mean over problems.
        value: Share of problems solved, 0 to 1, mean over problems.
        low: Lower end of the 95 % interval over problems.
        high: Upper end of the 95 % interval over problems.
        num_problems: Problems behind ``value``.
    """

    model: str
    rule: Rule
    k: int
    seconds: float
    value: float
    low: float
    high: float
    num_problems: int


class PackedBatch(TypedDict):
    """Token rows made of whole documents laid end to end.

    All four are of shape ``(batch, tokens)``. ``labels`` follow Hugging Face: ``labels[t]`` is the target *at* position
    t, predicted from position t-1, and -100 where there is none (the first token of a document always has none).
    ``position_ids`` restart at 0 and ``seq_idx`` (int32, from 0) rises by one at every document boundary of a row.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    seq_idx: Tensor


R = TypeVar("R")
_SEAL = ', "crc32": "'


class RecordError(ValueError):
    """A line that is not a record; the message says file, line and reason."""


def to_json(record: Any) -> str:
    """Return the record as one line of JSON, without the newline."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False)


def from_json(kind: type[R], line: str, where: str = "line") -> R:
    """Read one line of JSON as a record of type ``kind``.

    Raises:
        RecordError: Not JSON, not an object, a field unknown, missing, or of the wrong type, or a checksum (see
            :func:`sealed`) that does not fit. The message starts with ``where``.
    """
    return from_dict(kind, parse_object(_unsealed(line, where), where), where)


def sealed(line: str) -> str:
    """Return a line of JSON with a checksum as its last key: the CRC-32 of the line as it was, in UTF-8.

    >>> sealed('{"a": 1}')
    '{"a": 1, "crc32": "fba18e97"}'
    """
    return f'{line[:-1]}{_SEAL}{zlib.crc32(line.encode()):08x}"}}'


def _unsealed(line: str, where: str) -> str:
    """Return a line without its checksum, if it has one, after checking it."""
    body, found, checksum = line.rpartition(_SEAL)  # never within a text of the line: JSON spells its quotes \"
    if not found:
        return line
    line = body + "}"
    made = f"{zlib.crc32(line.encode(errors='surrogatepass')):08x}"
    if checksum != f'{made}"}}':
        raise RecordError(
            f"{where}: damaged, or edited by hand: it should have the checksum {checksum[:8]!r}, but has {made!r}; "
            "delete the line (generate draws its sample again), or its crc32 if the edit is meant"
        )
    return line


def decoded(line: bytes, where: str) -> str:
    """Return a line of a file as text, without a byte-order mark.

    Raises:
        RecordError: Not UTF-8.
    """
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: not UTF-8 ({error.reason})") from None


def parse_object(line: str, where: str = "line") -> dict[str, Any]:
    """Read one line of JSON that is an object.

    Raises:
        RecordError: It is not. The message starts with ``where``.
    """
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: not a line of JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand open brackets
        raise RecordError(f"{where}: not a readable line of JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise RecordError(f"{where}: expected a JSON object, got {type(values).__name__}")
    return values


def from_dict(kind: type[R], values: Any, where: str = "record") -> R:
    """Make a record of type ``kind`` from a mapping, checking names and types. Errors as :func:`from_json`."""
    if not isinstance(values, dict):
        raise RecordError(f"{where}: expected a JSON object for {kind.__name__}, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise RecordError(f"{where}: {kind.__name__} has no field {unknown[0]!r}; its fields are {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    made = {}
    for name, spec in fields.items():
        if name in values:
            made[name] = _checked(values[name], hints[name], f"{where}: field {name!r}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where}: {kind.__name__} lacks the field {name!r}")
    return kind(**made)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` asks (lists become tuples, ints become floats) or raise ``RecordError``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _checked(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value not in args:
            raise RecordError(f"{where}: {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecordError(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_checked(item, args[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecordError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    if hint is float and not math.isfinite(value):
        raise RecordError(f"{where}: {value} is not a finite number")
    if hint is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a character
            raise RecordError(f"{where}: not valid text ({error.reason})") from None
    return value


def read_jsonl(kind: type[R], path: str | os.PathLike[str]) -> Iterator[R]:
    """Yield the records of a JSON-lines file; blank lines are passed over.

    Raises:
        FileNotFoundError: No such file.
        RecordError: A line is not a ``kind``; the message starts with ``path:line``.
    """
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if line := decoded(raw, where).strip():
                yield from_json(kind, line, where)


def write_jsonl(records: Iterable[Any], path: str | os.PathLike[str]) -> int:
    """Write records to ``path``, one a line, and return how many. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        with open(partial, "w", encoding="utf-8") as lines:
            for record in records:
                lines.write(to_json(record) + "\n")
                count += 1
            lines.flush()
            os.fsync(lines.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count
