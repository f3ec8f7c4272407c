"""Training texts as a stream of :class:`~lit_thinkfast.records.Example`.

A corpus is any object with ``examples(split, start=...)``: one pass over a split in a fixed order, which may have no
end. One that can also give example number i is an :class:`IndexedCorpus`; it is shuffled anew each pass. Nothing is
read before the first example is asked for, so that configurations can be checked without data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from lit_thinkfast.data import arithmetic
from lit_thinkfast.data.tables import JsonlTable, ParquetTable, Row, Table, string
from lit_thinkfast.records import Example, RecordError

Split = Literal["train", "validation"]


@runtime_checkable
class Corpus(Protocol):
    """Source of training texts."""

    def examples(self, split: Split, *, start: int = 0) -> Iterator[Example]:
        """Yield the examples of ``split`` in a fixed order, from number ``start`` on."""
        ...


@runtime_checkable
class IndexedCorpus(Corpus, Protocol):
    """A corpus that can be read at random."""

    def size(self, split: Split) -> int | None:
        """Return the number of examples, or ``None`` if there is no end."""
        ...

    def example(self, split: Split, index: int) -> Example:
        """Return example number ``index`` of ``split``."""
        ...


class _Indexed:
    """``examples`` by way of ``size`` and ``example``."""

    def size(self, split: Split) -> int | None:
        raise NotImplementedError

    def example(self, split: Split, index: int) -> Example:
        raise NotImplementedError

    def examples(self, split: Split, *, start: int = 0) -> Iterator[Example]:
        """Yield the examples of ``split`` in a fixed order, from number ``start`` on."""
        size = self.size(split)
        for index in itertools.count(start) if size is None else range(start, size):
            yield self.example(split, index)


class ArithmeticCorpus(_Indexed):
    """The embedded word problems with worked solutions, without end.

    Args:
        level: Difficulty, a key of :data:`lit_thinkfast.data.arithmetic.LEVELS`, or several that take turns.
        seed: Of the problems.
    """

    def __init__(self, level: int | Sequence[int] = arithmetic.DEFAULT_LEVEL, *, seed: int = 0) -> None:
        self.levels = [level] if isinstance(level, int) else list(level)
        self.seed = seed
        if not self.levels:
            raise ValueError("level is an empty list; name at least one")
        for one in self.levels:
            if one not in arithmetic.LEVELS:
                raise ValueError(f"level {one!r} is not one of {', '.join(map(str, arithmetic.LEVELS))}")

    def size(self, split: Split) -> int | None:
        return None

    def example(self, split: Split, index: int) -> Example:
        turn, which = divmod(index, len(self.levels))
        made = arithmetic.generate_problem(turn, split=split, level=self.levels[which], seed=self.seed)
        return Example(made.id, made.question, made.solution, "arithmetic")


class _TableCorpus(_Indexed):
    """Rows of a local file as examples; validation is a file of its own or every n-th row."""

    table: Callable[[str], Table]

    def __init__(
        self,
        path: str,
        *,
        prompt_column: str | None = "prompt",
        response_column: str = "response",
        step_labels_column: str | None = None,
        outcome_column: str | None = None,
        id_column: str | None = None,
        validation_path: str | None = None,
        validation_every: int = 50,
    ) -> None:
        if validation_every < 2:
            raise ValueError(f"validation_every {validation_every} leaves nothing to train on; use at least 2")
        self.path, self.validation_path, self.validation_every = path, validation_path, validation_every
        self.prompt_column, self.response_column = prompt_column, response_column
        self.step_labels_column, self.outcome_column, self.id_column = step_labels_column, outcome_column, id_column
        self._tables: dict[str, Table] = {}

    def size(self, split: Split) -> int | None:
        rows = len(self._table(split))
        if self.validation_path is not None:
            return rows
        held_out = -(-rows // self.validation_every)
        return held_out if split == "validation" else rows - held_out

    def example(self, split: Split, index: int) -> Example:
        if self.validation_path is None:
            every = self.validation_every
            index = index * every if split == "validation" else index + index // (every - 1) + 1
        return self.to_example(self._table(split).row(index))

    def to_example(self, row: Row) -> Example:
        """Make an example of one row; override it for files of another shape.

        Raises:
            RecordError: A column is missing or holds something else than text; the message starts with file and line.
        """
        return row_to_example(
            row,
            prompt_column=self.prompt_column,
            response_column=self.response_column,
            step_labels_column=self.step_labels_column,
            outcome_column=self.outcome_column,
            id_column=self.id_column,
        )

    def _table(self, split: Split) -> Table:
        path = self.validation_path if split == "validation" and self.validation_path is not None else self.path
        if path not in self._tables:
            self._tables[path] = type(self).table(path)
        return self._tables[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}


class JsonlCorpus(_TableCorpus):
    """A local file of JSON lines, one object a line.

    The defaults read what ``write_jsonl`` writes of :class:`~lit_thinkfast.records.Example`.

    Args:
        path: The file.
        prompt_column: Key of the text given to the model; ``null`` for plain text.
        response_column: Key of the text to be written, on which the loss is taken.
        step_labels_column: Key of a list of truth values, one for each line of the response (reward models), which
            may then be a list of steps.
        outcome_column: Key of one truth value for the whole response, which may be a list of steps (reward models); of
            a list of them, one a step, the last counts.
        id_column: Key of a unique id; by default file and line.
        validation_path: A second file to validate on.
        validation_every: Without ``validation_path``, rows 0, n, 2n, ... are kept for validation.

    Raises:
        FileNotFoundError: No such file, when the first example is asked for.
        RecordError: A line is not an object, or lacks a column; the message starts with ``path:line``.
    """

    table = JsonlTable


class ParquetCorpus(_TableCorpus):
    """A local Parquet file. Arguments and errors as :class:`JsonlCorpus`; rows are counted from 0."""

    table = ParquetTable


class Gsm8kCorpus(JsonlCorpus):
    r"""The training problems of GSM8K in their published format, from a local file or the Hugging Face hub.

    The calculator annotations ``<<48/2=24>>`` are taken out, and the last line ``#### 72`` becomes
    ``The answer is \boxed{72}.``

    Args:
        path: ``train.jsonl`` of the repository; by default ``openai/gsm8k`` from the hub or its cache.
        revision: Of the hub's dataset.
        validation_every: Rows 0, n, 2n, ... are kept for validation.
    """

    def __init__(self, path: str | None = None, *, revision: str | None = None, validation_every: int = 50) -> None:
        super().__init__(path or "openai/gsm8k", validation_every=validation_every)
        self.local, self.revision = path is not None, revision

    def to_example(self, row: Row) -> Example:
        from lit_thinkfast.data.problems import split_gsm8k_answer

        solution, answer = split_gsm8k_answer(string(row, "answer"), row.where)
        return Example(row.where, string(row, "question"), f"{solution}\nThe answer is \\boxed{{{answer}}}.", "gsm8k")

    def _table(self, split: Split) -> Table:
        if self.local:
            return super()._table(split)
        if self.path not in self._tables:
            from lit_thinkfast.data.tables import HubTable

            self._tables[self.path] = HubTable(self.path, name="main", split="train", revision=self.revision)
        return self._tables[self.path]


class HubCorpus:
    """A dataset of the Hugging Face hub (or any folder that ``datasets.load_dataset`` reads), in its own order.

    Rows come in the order of the dataset: one that is sorted should be shuffled when it is prepared.

    Args:
        path: Name on the hub, or a folder.
        name: Configuration of the dataset.
        split: Its split to train on.
        validation_split: Its split to validate on.
        validation_every: Without ``validation_split``, rows 0, n, 2n, ... are kept for validation.
        revision: Branch, tag or commit.
        streaming: Read over the network as needed, instead of downloading everything first.
        prompt_column: Column of the text given to the model; ``null`` for plain text.
        response_column: Column of the text to be written, on which the loss is taken.
        step_labels_column: Column of truth values, one for each line of the response (reward models), which may then
            be a list of steps.
        outcome_column: Column of one truth value for the whole response, which may be a list of steps (reward models);
            of a list of them, one a step, the last counts.
        id_column: Column of a unique id; by default the number of the row.

    Raises:
        ValueError: The dataset, configuration or split cannot be loaded, when the first example is asked for.
        RecordError: A column is missing or holds something else than text.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        validation_every: int = 50,
        revision: str | None = None,
        streaming: bool = True,
        prompt_column: str | None = "prompt",
        response_column: str = "response",
        step_labels_column: str | None = None,
        outcome_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        if validation_every < 2:
            raise ValueError(f"validation_every {validation_every} leaves nothing to train on; use at least 2")
        self.path, self.name, self.revision, self.streaming = path, name, revision, streaming
        self.split, self.validation_split, self.validation_every = split, validation_split, validation_every
        self.prompt_column, self.response_column = prompt_column, response_column
        self.step_labels_column, self.outcome_column, self.id_column = step_labels_column, outcome_column, id_column

    def examples(self, split: Split, *, start: int = 0) -> Iterator[Example]:
        """Yield the examples of ``split`` in the order of the dataset, from number ``start`` on."""
        from lit_thinkfast.data.tables import load_hub

        every = self.validation_every
        whole = self.validation_split is not None
        source = self.validation_split if self.validation_split is not None and split == "validation" else self.split
        first = start if whole else start * every if split == "validation" else start + start // (every - 1) + 1
        rows = load_hub(self.path, self.name, source, self.revision, streaming=self.streaming)
        if not self.streaming and first >= len(rows):
            return
        rows = rows.skip(first)
        if self.streaming:  # iterated plainly, in a worker process, it would leave out the files of the other workers
            rows = ({name: column[0] for name, column in one.items()} for one in rows.iter(batch_size=1))
        for number, values in enumerate(rows, start=first):
            if whole or (number % every == 0) == (split == "validation"):
                yield row_to_example(
                    Row(values, f"{self.path}[{source}]:{number}"),
                    prompt_column=self.prompt_column,
                    response_column=self.response_column,
                    step_labels_column=self.step_labels_column,
                    outcome_column=self.outcome_column,
                    id_column=self.id_column,
                )


class HubTableCorpus(_TableCorpus):
    """A split of a dataset of the Hugging Face hub, downloaded whole, so that each pass has another order.

    Arguments and errors as :class:`HubCorpus`. Of ``split``, rows 0, n, 2n, ... are kept for validation, with n
    ``validation_every``.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        split: str = "train",
        validation_every: int = 50,
        revision: str | None = None,
        prompt_column: str | None = "prompt",
        response_column: str = "response",
        step_labels_column: str | None = None,
        outcome_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        super().__init__(
            path,
            prompt_column=prompt_column,
            response_column=response_column,
            step_labels_column=step_labels_column,
            outcome_column=outcome_column,
            id_column=id_column,
            validation_every=validation_every,
        )
        self.name, self.split, self.revision = name, split, revision

    def _table(self, split: Split) -> Table:
        if self.path not in self._tables:
            from lit_thinkfast.data.tables import HubTable

            self._tables[self.path] = HubTable(self.path, name=self.name, split=self.split, revision=self.revision)
        return self._tables[self.path]


def row_to_example(
    row: Row,
    *,
    prompt_column: str | None,
    response_column: str,
    step_labels_column: str | None = None,
    outcome_column: str | None = None,
    id_column: str | None = None,
) -> Example:
    """Make an example of the named columns of ``row``.

    With step labels or an outcome, the response may be a list of steps: each becomes a line.

    Raises:
        RecordError: A column is missing, empty, or of another type; the message starts with the row's place.
    """
    of_reward = step_labels_column is not None or outcome_column is not None
    response = _steps(row, response_column) if of_reward else string(row, response_column)
    if not response:
        raise RecordError(f"{row.where}: column {response_column!r} is empty")
    labels = None
    if step_labels_column is not None:
        values = row.column(step_labels_column)
        if not isinstance(values, (list, tuple)) or any(value not in (0, 1) for value in values):
            raise RecordError(f"{row.where}: column {step_labels_column!r} is not a list of truth values")
        labels = tuple(bool(value) for value in values)
    outcome = row.column(outcome_column) if outcome_column is not None else None
    if isinstance(outcome, (list, tuple)) and outcome:
        outcome = outcome[-1]
    if outcome_column is not None and outcome not in (0, 1):
        raise RecordError(f"{row.where}: column {outcome_column!r} is not a truth value")
    return Example(
        id=str(row.column(id_column)) if id_column is not None else row.where,
        prompt=string(row, prompt_column) if prompt_column is not None else "",
        response=response,
        source=row.where.rpartition(":")[0],
        step_labels=labels,
        outcome=None if outcome is None else bool(outcome),
    )


def _steps(row: Row, name: str) -> str:
    """Return the text in a column, or its list of steps as one line each, line breaks within a step as spaces."""
    steps = row.column(name)
    if not isinstance(steps, (list, tuple)):
        return string(row, name)
    if any(not isinstance(step, str) or not step.strip() for step in steps):
        raise RecordError(f"{row.where}: column {name!r} is not a list of steps, each a text that is not empty")
    return "\n".join(" ".join(step.split()) for step in steps)
