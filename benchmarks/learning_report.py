"""What :mod:`learning` measured: a Markdown table, a JSON file with every seed and its curve, and a figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_thinkfast.metrics.statistics import interval, resample_weights, weighted_means

COLUMNS = (
    "",
    "runs",
    "KL(teacher, student), nats a token",
    "same likeliest token",
    "cross-entropy on right solutions",
    "right samples (95 % interval)",
    "less the first row's",
)
Row = dict[str, Any]


def summary(runs: Sequence[Row]) -> Row:
    """Return means over runs, each run's values, and the accuracy's 95 % interval, a bootstrap over problems.

    Args:
        runs: Of one arm, a seed each: ``kl``, ``top1``, ``ce``, ``right`` (a problem's share of right samples),
            ``curve`` and ``steps``, the number of the last step.
    """
    right = np.mean([run["right"] for run in runs], axis=0).tolist()
    each = {key: [run[key] for run in runs] for key in ("kl", "top1", "ce")}
    return {
        **{key: statistics.fmean(values) for key, values in each.items()},
        "accuracy": statistics.fmean(right),
        "interval": over_problems(right),
        "right": right,
        "runs": {"seed": [run["seed"] for run in runs], **each}
        | {"accuracy": [statistics.fmean(run["right"]) for run in runs]},
        "curves": [whole_curve(run) for run in runs],
    }


def over_problems(values: Sequence[float]) -> list[float]:
    """Return the ends of the 95 % interval of the mean of one value a problem; equal lengths see equal resamples."""
    weights = resample_weights(len(values), resamples=2000, seed=0)
    low, high = interval(weighted_means(np.array(values)[:, None], weights))
    return [float(low[0]), float(high[0])]


def whole_curve(run: Row) -> list[Row]:
    """Return a run's curve with the model that it left as the last point."""
    last = {"step": run["steps"], "kl": run["kl"], "top1": run["top1"]}
    return [*(point for point in run["curve"] if point["step"] < run["steps"]), last]


def cells(row: Row) -> list[str]:
    """Return the cells of a row but the last: means and, in brackets, each run where there are several."""

    def shown(key: str, form: str) -> str:
        values = row["runs"][key]
        each = f" ({', '.join(format(value, form) for value in values)})" if len(values) > 1 else ""
        return format(row[key], form) + each

    low, high = row["interval"]
    accuracy = f"{100 * row['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return [str(len(row["curves"])), shown("kl", ".4f"), f"{100 * row['top1']:.2f} %", shown("ce", ".4f"), accuracy]


def difference(row: Row, first: Row) -> str:
    """Return in points how much more often ``row`` is right than ``first``, on the same problems."""
    paired = np.subtract(row["right"], first["right"]).tolist()
    low, high = over_problems(paired)
    return f"{100 * statistics.fmean(paired):+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def markdown(rows: Mapping[str, Row]) -> str:
    """Return the rows, by label, as a Markdown table."""
    first = next(iter(rows.values()))
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[label, *cells(row), "" if row is first else difference(row, first)] for label, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(rows: Mapping[str, Row], path: Path, *, tokens_per_step: int) -> None:
    """Write an SVG file: held-out KL against tokens, a line a run, one level where nothing was trained."""
    import matplotlib.pyplot as plt
    from matplotlib import rc_context, ticker

    from lit_thinkfast.analysis.style import PAPER, RC, model_styles

    styles = model_styles(rows)
    with rc_context({**RC, "svg.hashsalt": path.stem, "savefig.facecolor": PAPER[0]}):
        figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        for label, row in rows.items():
            style = styles[label]
            for i, curve in enumerate(row["curves"]):
                named = None if i else label
                # the teacher's own distance from itself is no point on this axis
                points = [(at["step"] * tokens_per_step / 1e6, at["kl"]) for at in curve if at["kl"] > 0]
                if len(curve) == 1:
                    for _, level in points:
                        axes.axhline(level, color=style.colour, lw=1.2, ls=(0, (5, 2)), label=named)
                else:
                    axes.plot(*zip(*points, strict=True), color=style.colour, marker=style.marker, ms=3, lw=1.2)
                    axes.lines[-1].set_label(named)
        axes.set(xlabel="million tokens, padding included", ylabel="held-out KL(teacher, student), nats", yscale="log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def write(name: str, rows: Mapping[str, Row], folder: Path, *, facts: Row, tokens_per_step: int) -> str:
    """Write ``name``.json and .svg, and return the table as Markdown.

    Args:
        name: Of the table.
        rows: What :func:`summary` gives, by label.
        folder: Where to.
        facts: What else the JSON file says.
        tokens_per_step: Tokens of a step, padding included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_rounded({"table": name, **facts, "arms": rows}), indent=1) + "\n")
    draw(rows, folder / f"{name}.svg", tokens_per_step=tokens_per_step)
    return markdown(rows)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
