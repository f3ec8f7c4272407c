"""The terminal table in the shapes that comparisons have."""

import dataclasses
import io

from rich.console import Console

from lit_thinkfast.analysis import compare_models, table


def shown(runs):
    out = io.StringIO()
    Console(file=out, width=160).print(table(runs))
    return out.getvalue()


def test_models_and_budgets_are_shown(runs):
    text = shown(compare_models(runs, resamples=50))
    for told in (
        "12 problems, 8 samples each",
        "the best model within a budget",
        "weighted@8",
        "tokens per completion",
    ):
        assert told in text


def test_without_seconds_there_are_no_budgets(runs):
    free = [dataclasses.replace(c, seconds=0.0) for c in runs["student"].completions]
    text = shown(compare_models({**runs, "student": dataclasses.replace(runs["student"], completions=free)}))
    assert "no engine seconds (student): nothing is said of time" in text
    assert "best model within" not in text
    assert "coverage@8" in text
