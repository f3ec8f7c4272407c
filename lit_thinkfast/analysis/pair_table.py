"""The terminal view of two models compared: rows of differences, then problems that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_thinkfast.analysis.flips import Flip, Side
from lit_thinkfast.analysis.pairs import Basis, PairComparison, PairRow
from lit_thinkfast.analysis.table import SHORT_RULES
from lit_thinkfast.analysis.text import RULES_IN_TEXT, clip, duration, percent, points, shorten

if TYPE_CHECKING:
    from rich.console import Group

_TITLES: dict[Basis, str] = {
    "samples": "equal samples a problem",
    "time": "equal engine time a problem",
    "deadline": "equal deadline: what each run had finished by then",
}


def pair_table(c: PairComparison, *, rows: int = 4, examples: int = 3) -> Group:
    """Return a rich renderable: ``rich.print(pair_table(compare_pair(a, b)))``.

    Foreign text is shown as it is: no markup is read from it and no control character passes.

    Args:
        c: The comparison.
        rows: Rows shown at most for each rule and kind of budget, from the first to the last.
        examples: Flipped problems shown at most for each rule and model.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    first, second = shorten(c.first, 24), shorten(c.second, 24)
    looks: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False, "title_style": "bold"}
    parts: list[Any] = [Text(f"{first} against {second}: {c.num_problems} problems, up to {c.k} samples", style="bold")]
    for basis, title in _TITLES.items():
        shown = Table(title=title, **looks)
        shown.add_column("", no_wrap=True)
        shown.add_column("k" if basis == "samples" else "budget", justify="right", no_wrap=True)
        for name in (first, second):
            shown.add_column(Text(name), justify="right", overflow="fold", min_width=8, max_width=12)
        for name in ("difference", "p", "w/l/t"):
            shown.add_column(name, justify="right", no_wrap=True)
        for rule in dict.fromkeys(r.rule for r in c.rows):
            for row in _thinned([r for r in c.rows if (r.basis, r.rule) == (basis, rule)], rows):
                shown.add_row(*(Text(cell) for cell in _cells(row, c.first, c.second)))
        if shown.row_count:
            parts.append(shown)
    parts.append(
        Text(
            f"Difference: {first} less {second}, in points, with its 95 % interval. p: paired permutation test over "
            f"problems; *: below 0.05; **: also when adjusted for all {len(c.rows)} rows (Holm). w/l/t: problems won, "
            f"lost and tied by {first}. ^: the model has used all its samples.",
            style="dim",
        )
    )
    parts += [Text(shorten(note, 300), style="dim") for note in c.notes]
    for rule in dict.fromkeys(flip.rule for flip in c.flips):
        for name, told in ((c.first, second), (c.second, first)):
            own = [flip for flip in c.flips if (flip.rule, flip.solved_by) == (rule, name)]
            heading = f"{len(own)} problem{'s' * (len(own) != 1)} that {shorten(name, 24)} solves and {told} does not"
            ending = ":" if own and examples else ""
            parts.append(Text(f"{heading}, by {RULES_IN_TEXT[rule]} of {c.k}{ending}", style="bold"))
            parts += [Text("\n".join(_lines(flip, first, second))) for flip in own[:examples]]
    return Group(*parts)


def _thinned(rows: Sequence[PairRow], most: int) -> list[PairRow]:
    """Return at most ``most`` rows, evenly chosen, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / max(most - 1, 1))] for i in range(most)]


def _cells(row: PairRow, first: str, second: str) -> list[str]:
    one, other = (
        percent(value) + ("^" if name in row.short_of_samples else "")
        for name, value in ((first, row.first), (second, row.second))
    )
    stars = "**" if row.adjusted < 0.05 else "*" if row.p_value < 0.05 else ""
    return [
        SHORT_RULES[row.rule],
        f"{row.at:.0f}" if row.basis == "samples" else duration(row.at),
        one,
        other,
        f"{points(row.difference)} ({points(row.low, 0)}, {points(row.high, 0)})",
        f"{row.p_value:.3f}{stars}" if row.p_value >= 0.001 else f"<.001{stars}",
        f"{row.won}/{row.lost}/{row.tied}",
    ]


def _lines(flip: Flip, first: str, second: str) -> list[str]:
    head = f"  {shorten(flip.problem_id, 40)}"
    if flip.question:
        head += f": {clip(flip.question, 160)}"
    gold = [f"    right: {shorten(flip.gold, 60)}"] if flip.gold else []
    return [head, *gold, _side(first, flip.first), _side(second, flip.second)]


def _side(name: str, side: Side) -> str:
    answer = "no answer" if side.answer is None else f"{shorten(side.answer, 60)} ({side.votes} of {side.samples})"
    return f"    {name}: {answer}; {side.correct} of {side.samples} right; see sample {side.example}"
