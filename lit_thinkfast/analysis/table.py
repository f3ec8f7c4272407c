"""The terminal table: models, their values, and who is best within round budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_thinkfast.analysis.comparison import BestAt, Comparison, compare_models
from lit_thinkfast.analysis.gain import selection_gains
from lit_thinkfast.analysis.runs import ModelRun, untimed_in_words
from lit_thinkfast.analysis.story import tell, unmarked
from lit_thinkfast.analysis.text import count, duration, percent, points, shorten, whole

if TYPE_CHECKING:
    from rich.console import Group

SHORT_RULES = {
    "coverage": "coverage",
    "majority": "majority",
    "weighted_best_of_n": "weighted",
    "best_of_n": "best-of-N",
}


def table(runs: Mapping[str, ModelRun] | Comparison) -> Group:
    """Return a rich renderable: ``rich.print(table(runs))``.

    Foreign names are shown as they are: no markup is read from them and no control character passes.

    Args:
        runs: Runs by model, compared with the defaults of
            :func:`~lit_thinkfast.analysis.comparison.compare_models`, or a comparison that was made before.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    c = runs if isinstance(runs, Comparison) else compare_models(runs)
    looks: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False, "title_style": "bold"}
    models = Table(title=f"{c.num_problems} problems, {c.ks[-1]} sample{'s' * (c.ks[-1] > 1)} each", **looks)
    models.add_column("")
    for name in c.runs:
        models.add_column(Text(shorten(name, 24)), justify="right")
    columns = [model_cells(c, name) for name in c.runs]
    for fact in columns[0]:
        models.add_row(fact, *(Text(cells[fact]) for cells in columns))

    notes = [Text(note, style="dim") for note in [few_samples(c)] if note]

    budgets = Table(title="the best model within a budget of engine time per problem", **looks)
    budgets.add_column("budget", justify="right", no_wrap=True)
    for rule in c.rules:
        budgets.add_column(SHORT_RULES[rule], overflow="fold")
    for seconds, row in budget_rows(c).items():
        cells = [_budget_cell(row[rule]) if rule in row else "" for rule in c.rules]
        budgets.add_row(Text(duration(seconds)), *(Text(cell) for cell in cells))
    if len(c.runs) == 1:
        return Group(models, *notes)
    if not c.timed:
        untimed = ", ".join(untimed_in_words(shorten(name, 40), run) for name, run in c.runs.items() if run.num_untimed)
        return Group(models, *notes, Text(f"no engine seconds ({untimed}): nothing is said of time", style="dim"))
    legend = (
        f"k: samples finished by then. Lead in points over {shorten(c.baseline, 40)} (over the best other where that "
        "wins; none while it has no sample); *: its 95 % interval leaves out zero, and a permutation test gives p "
        "below 0.05."
    )
    return Group(models, *notes, budgets, Text(legend, style="dim"), Text(unmarked(tell(c).headline), style="bold"))


def few_samples(c: Comparison) -> str:
    """Return a sentence about the problems that are left out for lack of samples; nothing where there are none."""
    n = len(c.few_samples)
    if not n:
        return ""
    told = ", ".join(shorten(p, 40) for p in c.few_samples[:3]) + (", ..." if n > 3 else "")
    them, where = ("it", "is") if n == 1 else ("them", "are")
    short = "the run has" if len(c.runs) == 1 else "some run has"
    return (
        f"{n} problem{'s' * (n > 1)} ({told}) {where} left out, since {short} fewer than {c.ks[-1]} samples of {them}; "
        "only curves by a deadline count " + f"{them}."
    )


def shown_ks(c: Comparison) -> list[int]:
    """Return the two k of a table: one sample and all."""
    return sorted({c.ks[0], c.ks[-1]})


def model_cells(c: Comparison, name: str) -> dict[str, str]:
    """Return what is known of one model: size, attention layers, tokens, time, values at one sample and at all.

    Where samples are scored, also what choosing by score is worth, in points with 95 % intervals.
    """
    run, last = c.runs[name], c.ks[-1]
    keys = [(c.rules[0], k) for k in shown_ks(c)] + [(rule, last) for rule in c.rules[1:]]
    values = {
        f"{SHORT_RULES[rule]}@{k}": percent(p.value) if (p := c.point(name, rule, k)) else "-" for rule, k in keys
    }
    return {
        "parameters": "-" if run.num_parameters is None else count(run.num_parameters),
        "attention layers": attention_layers(run),
        "tokens per completion": whole(run.tokens_per_completion),
        "engine time per sample": duration(float(c.measured[name].sample_seconds.mean())),
        **values,
        **{
            f"{SHORT_RULES[g.rule]} over {g.over}": f"{points(g.difference)} ({points(g.low, 0)}, {points(g.high, 0)})"
            for g in selection_gains(c.measured[name])
        },
    }


def attention_layers(run: ModelRun) -> str:
    """Return ``4/16``, or ``-`` where the metadata does not say."""
    mixers = run.layer_mixers
    return "-" if mixers is None else f"{mixers.count('attention')}/{len(mixers)}"


def budget_rows(c: Comparison) -> dict[float, dict[str, BestAt]]:
    """Return budget -> rule -> who is best."""
    rows: dict[float, dict[str, BestAt]] = {}
    for b in c.best:
        rows.setdefault(b.seconds, {})[b.rule] = b
    return rows


def _budget_cell(b: BestAt) -> str:
    used_up = "all " if b.model in b.short_of_samples else ""
    cell = f"{shorten(b.model, 24)}\n{percent(b.value)} k={used_up}{b.k}"
    return cell if b.margin is None else f"{cell} {points(b.margin.difference)}{'*' if b.margin.resolved else ''}"
