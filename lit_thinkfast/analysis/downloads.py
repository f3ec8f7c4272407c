"""The numbers as files: CSV of all points and of all problems, JSON of everything, and links that hold such files.

Spreadsheets run a text cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula, so such text gets an apostrophe
in front; numbers stay numbers. JSON has ``null`` where there is no number, among them times that were never reached.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lit_thinkfast
from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.provenance import origins
from lit_thinkfast.analysis.text import escape, memory, plain

_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def points_csv(c: Comparison) -> str:
    """Return every point of every curve; ``clock`` is ``mean`` (k samples' mean time) or ``deadline``."""
    head = ["clock", "model", "rule", "k", "seconds", "value", "low", "high", "num_problems"]
    priced = bool(c.prices)
    rows = []
    for clock, points in (("mean", c.points), ("deadline", c.deadline)):
        for p in points:
            row = [clock, p.model, p.rule, p.k, p.seconds, p.value, p.low, p.high, p.num_problems]
            rows.append([*row, c.dollars(p.model, p.seconds)] if priced else row)
    return csv_text([*head, "dollars"] if priced else head, rows)


def problems_csv(c: Comparison) -> str:
    """Return one row a problem and model: what is known of the problem, and each rule's value at each k."""
    columns = [(rule, i, k) for rule in c.rules for i, k in enumerate(c.ks)]
    head = ["problem", "level", "subject", "answer", "model", "samples", "correct", "seconds_per_sample"]
    rows = []
    for row, problem in enumerate(c.measured[c.baseline].problem_ids):
        known = c.problems.get(problem)
        about = [problem, known.level, known.subject, known.answer] if known else [problem, None, "", ""]
        for name, run in c.runs.items():
            m, samples = c.measured[name], run.by_problem[problem]
            right = sum(v.correct for _, v in samples)
            facts = [name, len(samples), right, m.sample_seconds[row]]
            rows.append([*about, *facts, *(m.values[rule][row, i] for rule, i, _ in columns)])
    return csv_text([*head, *(f"{rule}@{k}" for rule, _, k in columns)], rows)


def everything_json(c: Comparison, *, cautions: Sequence[str] = ()) -> str:
    """Return all numbers of the comparison and all that the runs recorded, as one JSON object."""
    ids = c.measured[c.baseline].problem_ids
    known = [c.problems.get(problem) for problem in ids]
    values = {
        "made_by": f"lit-thinkfast {lit_thinkfast.__version__}",
        "baseline": c.baseline,
        "bootstrap": {"resamples": c.resamples, "seed": c.seed},
        "rules": c.rules,
        "ks": c.ks,
        "timed": c.timed,
        "dollars_per_hour": c.prices,
        "cautions": cautions,
        "problems_with_few_samples": c.few_samples,
        "provenance": origins(c),
        "points": c.points,
        "deadline": c.deadline,
        "no_deadline": c.no_deadline,
        "fronts": c.fronts,
        "best": c.best,
        "landmarks": c.landmarks,
        "levels": c.groups("level"),
        "subjects": c.groups("subject"),
        "outcomes": {name: dict(sorted(Counter(v.outcome for v in r.verdicts).items())) for name, r in c.runs.items()},
        "problems": [
            {"id": problem, "level": p.level if p else None, "subject": p.subject if p else ""}
            for problem, p in zip(ids, known, strict=True)
        ],
        "seconds_per_sample": {name: m.sample_seconds.tolist() for name, m in c.measured.items()},
        "values": {name: {rule: v.tolist() for rule, v in m.values.items()} for name, m in c.measured.items()},
        "meta": {name: run.meta for name, run in c.runs.items()},
    }
    return json.dumps(_jsonable(values), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Return a CSV file; text that a spreadsheet would run is made text.

    >>> csv_text(["name", "x"], [["=1+1", -0.25], ["plain", float("nan")]])
    "name,x\n'=1+1,-0.25\nplain,\n"
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(h) for h in head])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def link(name: str, content: str, told: str) -> str:
    """Return a download link that holds its file: ``name`` with its ending, ``told`` the words of the link."""
    kind = {"csv": "text/csv", "json": "application/json", "md": "text/markdown", "tex": "text/x-tex"}
    data = content.encode("utf-8", "backslashreplace")
    address = f"data:{kind[name.rpartition('.')[2]]};charset=utf-8;base64,{base64.b64encode(data).decode()}"
    size = memory(len(data))
    return f'<a class="button" download="{escape(name)}" href="{address}">{escape(told)} <small>{size}</small></a>'


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return _short(value)
    text = plain(str(value))
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def _short(value: float) -> float | int:
    """Return a number without digits that nobody needs, and whole numbers without a point."""
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_jsonable(str(key)): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return _short(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()
