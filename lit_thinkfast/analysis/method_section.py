"""How the numbers were made, where they come from, and the files to take home."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lit_thinkfast.analysis.budget import SCORED
from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.downloads import everything_json, link, points_csv, problems_csv
from lit_thinkfast.analysis.page import data_table, details, section
from lit_thinkfast.analysis.provenance import LABELS, origins
from lit_thinkfast.analysis.text import escape, shorten


def method_section(c: Comparison) -> str:
    """Return how times, values and intervals were made."""
    facts = [
        "<b>Values.</b> Expectations over random k-subsets of the samples, averaged over problems: exact for coverage, "
        "majority vote and best-of-N; for weighted best-of-N over all subsets or, where they are more than 1,000, over "
        "seeded random orders. Ties share the credit.",
        "<b>Intervals.</b> Percentile bootstrap over problems, the same seeded resamples for all models. They cover "
        "the choice of problems, not a new training run. Of problems that all have the same value Wilson's interval is "
        "taken, and of a single one there is none. A star also asks for p below 0.05 in a permutation test, which "
        "swaps two models on random problems. With a test for every budget, and the best of several models at each, "
        "some stars are luck.",
        f"<b>Problems.</b> All curves but those by a deadline are of the same {c.num_problems} problems, at every "
        f"k and for every model: those with {c.ks[-1]} or more samples in every run.",
    ]
    if c.timed:
        facts.insert(
            0,
            "<b>Time.</b> Each completion carries its share of the engine's time: prefill and decode steps are divided "
            "among the rows they serve. k samples of a problem cost k times the mean share of its samples; budgets are "
            "means over problems. This is throughput time at the batch size of the run, not the latency of one "
            "request.",
        )
        facts.append(
            "<b>Between measured k</b> some problems get the smaller and some the larger number, hence lines that are "
            "straight in time and fall where a larger number is worse. A model that has used all its samples keeps its "
            "last value; nothing is extrapolated."
        )
        if SCORED & set(c.rules) and any(run.scoring_seconds is not None for run in c.runs.values()):
            facts.append("<b>Reward model.</b> Its time is added to the budgets of the two rules that need it.")
    if c.no_deadline and not c.deadline:
        told = "; ".join(f"{escape(shorten(name, 40))}: {escape(why)}" for name, why in c.no_deadline.items())
        facts.append(f"<b>No curves by a real deadline.</b> {told}.")
    if c.landmarks.reach or c.landmarks.crossings:
        facts.append(
            "<b>Landmarks.</b> In each resample of problems the curve is followed to the value or the crossing; a "
            "resample that never gets there counts as infinity, so an interval may end in never."
        )
    return section(
        "How this was measured",
        "",
        f'<ul class="plain">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>',
        anchor="method",
    )


def provenance_section(c: Comparison) -> str:
    """Return the table of what each run recorded about itself and, folded, all of it."""
    found = origins(c)
    rows = [
        [f'<th scope="row">{label}</th>', *(f'<td class="left wrap">{escape(getattr(o, field))}</td>' for o in found)]
        for field, label in LABELS.items()
    ]
    return section(
        "Provenance",
        "What each run recorded about itself. What it did not record is not made up.",
        data_table(["run", *(shorten(o.run, 40) for o in found)], rows, left=True, label="Provenance"),
        *(
            details(
                f"Everything recorded about {escape(shorten(name, 40))}",
                f"<pre>{escape(json.dumps(run.meta, indent=2, ensure_ascii=False, default=str))}</pre>",
            )
            for name, run in c.runs.items()
            if run.meta
        ),
        anchor="provenance",
    )


def downloads_section(c: Comparison, cautions: Sequence[str]) -> str:
    """Return links that hold the numbers: CSV of points, CSV of problems, JSON of everything."""
    links = [
        link("points.csv", points_csv(c), "All points of all curves, CSV"),
        link("problems.csv", problems_csv(c), "All problems, CSV"),
        link("comparison.json", everything_json(c, cautions=cautions), "Everything with provenance, JSON"),
    ]
    return section(
        "Download",
        "The files are inside this page; nothing is loaded.",
        f'<p class="buttons">{" ".join(links)}</p>',
        anchor="download",
    )
