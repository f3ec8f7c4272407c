"""Sample completions with their verdicts, for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.page import chip, details
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.text import clip, duration, escape, shorten
from lit_thinkfast.records import Completion, Problem, Verdict

_MOST_CHARACTERS = 6000


def sample_section(
    c: Comparison, styles: Mapping[str, ModelStyle], problems: Mapping[str, Problem], *, count: int = 4
) -> str:
    """Return one folded part a problem: of each model the first right and the first wrong sample.

    The problems are spread evenly over the order of difficulty, as measured by all models together.
    """
    parts = []
    for problem in spread(c, count):
        rates = {name: solve_rate(run.by_problem[problem]) for name, run in c.runs.items()}
        known = problems.get(problem)
        heading = clip(known.question if known else problem, 100)
        summary = (
            f"{escape(heading)} <small>solved by {100 * sum(rates.values()) / len(rates):.0f} % of samples</small>"
        )
        body = []
        if known:
            body.append(f'<p class="question">{escape(known.question)}</p><p>Answer: <b>{escape(known.answer)}</b></p>')
        for name, run in c.runs.items():
            pairs = run.by_problem[problem]
            chosen = [next((p for p in pairs if p[1].correct is right), None) for right in (True, False)]
            body += [_sample(name, styles, pair) for pair in chosen if pair is not None]
        parts.append(details(summary, *body))
    return "\n".join(parts)


def spread(c: Comparison, count: int) -> list[str]:
    """Return ``count`` shared problems from easy to hard, evenly spaced in rank, the extremes left out."""
    shared = c.measured[c.baseline].problem_ids
    rate = {p: sum(solve_rate(run.by_problem[p]) for run in c.runs.values()) for p in shared}
    ranked = sorted(shared, key=lambda p: (-rate[p], p))
    count = min(count, len(ranked))
    return [ranked[int((i + 0.5) * len(ranked) / count)] for i in range(count)]


def solve_rate(pairs: list[tuple[Completion, Verdict]]) -> float:
    """Return the share of correct samples."""
    return sum(v.correct for _, v in pairs) / len(pairs)


def _sample(model: str, styles: Mapping[str, ModelStyle], pair: tuple[Completion, Verdict]) -> str:
    completion, verdict = pair
    known = verdict.outcome if verdict.outcome in ("correct", "incorrect") else ""
    facts = [
        f'<span class="verdict {known}">{escape(verdict.outcome)}</span>',
        f"answer {escape(shorten(verdict.answer, 60))}" if verdict.answer is not None else "no answer",
        f"{completion.num_tokens} tokens" + (", cut off" if completion.finish_reason == "length" else ""),
        duration(completion.seconds),
    ]
    if verdict.score is not None:
        facts.append(f"reward {verdict.score:.3g}")
    header = "".join(f"<span>{fact}</span>" if not fact.startswith("<") else fact for fact in facts)
    return (
        f'<div class="sample m{styles[model].index}"><header>{chip(model, styles)}'
        f"<span>sample {completion.sample}</span>{header}</header>{_text(completion, verdict)}</div>"
    )


def _text(completion: Completion, verdict: Verdict) -> str:
    text = completion.text
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}\n… and {len(text) - _MOST_CHARACTERS} more characters"
    lines = text.strip("\n").split("\n")
    steps = verdict.step_scores or ()
    if not steps or len(steps) != sum(bool(line.strip()) for line in lines):
        return f"<pre>{escape(text)}</pre>"
    scores = iter(steps)
    rows = []
    for line in lines:
        share = probability(next(scores)) if line.strip() else None
        label = f'<b style="--p: {100 * share:.0f}%">{share:.2f}</b>' if share is not None else "<b></b>"
        rows.append(f"<div>{label}<span>{escape(line)}</span></div>")
    return f'<div class="steps">{"".join(rows)}</div>'


def probability(log_odds: float) -> float:
    """Return the probability of natural log-odds, without overflow."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))
