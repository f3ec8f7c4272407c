"""The sample browser: what the models wrote for every problem, as much of it as a budget of bytes allows.

For every problem and model first come the first right and the first wrong sample, then the best-scored one, then the
others in their order, one more for everybody in each round until the budget is spent. Where even two samples each do
not fit, texts are shortened in the middle: the answer stands at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.page import chip, details
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.text import clip, duration, escape, memory, percent, shorten
from lit_thinkfast.records import Completion, Verdict

BUDGET = 6_500_000
LIMITS = (6000, 3000, 1500, 800, 400, 200)
_GROUP = 25
_EACH_AT_LEAST = 2

Pair = tuple[Completion, Verdict]


@dataclass(frozen=True)
class Chosen:
    """The samples that are shown.

    Attributes:
        markup: (problem, model) -> markup of its samples, in order of ``sample``.
        shown: How many samples.
        total: Of how many.
        limit: Characters of a text that are shown at most.
        shortened: How many of the samples shown are longer.
        size: Bytes of all.
    """

    markup: Mapping[tuple[str, str], Sequence[str]]
    shown: int
    total: int
    limit: int
    shortened: int
    size: int


def sample_browser(c: Comparison, styles: Mapping[str, ModelStyle], *, budget: int = BUDGET) -> tuple[str, str]:
    """Return (intro, markup): one folded part a problem, in groups where there are many.

    Args:
        c: The comparison.
        styles: Of the models.
        budget: Bytes of markup for all samples together.
    """
    order = by_difficulty(c)
    chosen = choose(c, styles, order, budget=budget)
    parts = []
    for number, problem in enumerate(order):
        body = [_question(c, problem, number)]
        body += [sample for name in c.runs for sample in chosen.markup.get((problem, name), ())]
        heading = (
            f"{number + 1}. {escape(_heading(c, problem))} <small>{percent(solve_rate(c, problem), 0)} right</small>"
        )
        parts.append(
            f'<details class="problem"><summary>{heading}</summary><div class="inside" id="p{number}">'
            f"{''.join(body)}</div></details>"
        )
    if len(parts) > 2 * _GROUP:
        parts = [
            details(
                f"Problems {i + 1} to {min(i + _GROUP, len(parts))} <small>{percent(solve_rate(c, order[i]), 0)} to "
                f"{percent(solve_rate(c, order[min(i + _GROUP, len(parts)) - 1]), 0)} of samples right</small>",
                *parts[i : i + _GROUP],
            )
            for i in range(0, len(parts), _GROUP)
        ]
    markup = "\n".join(parts)
    return _intro(chosen, budget), f'<div class="browser">{markup}</div>'


def choose(c: Comparison, styles: Mapping[str, ModelStyle], order: Sequence[str], *, budget: int) -> Chosen:
    """Choose samples round by round and write them, at most ``budget`` bytes together."""
    queues = {
        (problem, name): list(_preferred(run.by_problem[problem])) for problem in order for name, run in c.runs.items()
    }
    limit = next((n for n in LIMITS if _least_size(queues, n) <= budget), LIMITS[-1])
    shown: dict[tuple[str, str], list[tuple[int, str]]] = {}
    size = shortened = 0
    for turn in range(max(map(len, queues.values()))):
        for key, queue in queues.items():
            if turn >= len(queue):
                continue
            text = _sample(key[1], styles, queue[turn], limit)
            size += len(text.encode())
            if size > budget:
                size -= len(text.encode())
                break
            shortened += len(queue[turn][0].text) > limit
            shown.setdefault(key, []).append((queue[turn][0].sample, text))
        else:
            continue
        break
    markup = {key: [text for _, text in sorted(samples)] for key, samples in shown.items()}
    total = sum(map(len, queues.values()))
    return Chosen(markup, sum(map(len, markup.values())), total, limit, shortened, size)


def by_difficulty(c: Comparison) -> list[str]:
    """Return the shared problems from easy to hard, as all samples of all models say."""
    return sorted(c.measured[c.baseline].problem_ids, key=lambda p: (-solve_rate(c, p), p))


def solve_rate(c: Comparison, problem: str) -> float:
    """Return the share of correct samples of a problem, mean over models."""
    rates = [sum(v.correct for _, v in r.by_problem[problem]) / len(r.by_problem[problem]) for r in c.runs.values()]
    return sum(rates) / len(rates)


def probability(log_odds: float) -> float:
    """Return the probability of natural log-odds, without overflow."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))


def _preferred(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Yield the samples of one problem and model, the most telling first."""
    first = [next((p for p in pairs if p[1].correct is right), None) for right in (True, False)]
    scored = [p for p in pairs if p[1].score is not None]
    first.append(max(scored, key=lambda p: p[1].score or 0.0) if scored else None)
    seen: set[int] = set()
    for pair in [*first, *pairs]:
        if pair is not None and pair[0].sample not in seen:
            seen.add(pair[0].sample)
            yield pair


def _least_size(queues: Mapping[tuple[str, str], Sequence[Pair]], limit: int) -> float:
    """Estimate the bytes of two samples each: marks around them and characters that need several bytes included."""
    pairs = [pair for queue in queues.values() for pair in queue[:_EACH_AT_LEAST]]
    return sum(500 + 1.15 * min(len(completion.text), limit) for completion, _ in pairs)


def _intro(chosen: Chosen, budget: int) -> str:
    told = (
        f"{chosen.shown:,} of {chosen.total:,} samples are shown: of every problem and model the first right, the "
        f"first wrong and the best-scored one, then others in their order, as many as fit {memory(budget)}."
        if chosen.shown < chosen.total
        else f"All {chosen.total:,} samples are shown."
    )
    if chosen.shortened:
        told += f" {chosen.shortened:,} texts of more than {chosen.limit:,} characters are shortened in the middle."
    return f"{told} Bars at the left, where there are any, are the reward model's probability that all is right so far."


def _heading(c: Comparison, problem: str) -> str:
    known = c.problems.get(problem)
    return clip(known.question if known else problem, 120)


def _question(c: Comparison, problem: str, number: int) -> str:
    known = c.problems.get(problem)
    facts = [f"Problem {escape(shorten(problem, 80))}"]
    if known is None:
        return f'<p class="note">{facts[0]}. The question was not recorded.</p>'
    facts += [f"level {known.level}"] if known.level is not None else []
    facts += [escape(shorten(known.subject, 60))] if known.subject else []
    return (
        f'<p class="question">{escape(clip_middle(known.question, LIMITS[0]))}</p>'
        f'<p class="note">{", ".join(facts)}. Gold answer: <b>{escape(shorten(known.answer, 200))}</b></p>'
    )


def _sample(model: str, styles: Mapping[str, ModelStyle], pair: Pair, limit: int) -> str:
    completion, verdict = pair
    known = f" {verdict.outcome}" if verdict.outcome in ("correct", "incorrect") else ""
    facts = [
        f"sample {completion.sample}",
        f"answer {escape(shorten(verdict.answer, 60))}" if verdict.answer is not None else "no answer",
        f"{completion.num_tokens:,} tokens",
        "cut off" if completion.finish_reason == "length" else "ended by itself",
        duration(completion.seconds) if math.isfinite(completion.seconds) and completion.seconds else "not timed",
    ]
    if verdict.score is not None:
        facts.append(f"reward {verdict.score:.3g}")
    return (
        f'<article class="sample m{styles[model].index}"><header>{chip(model, styles)} '
        f'<span class="verdict{known}">{escape(verdict.outcome)}</span> {" · ".join(facts)}</header>'
        f"{_text(completion, verdict, limit)}</article>"
    )


def _text(completion: Completion, verdict: Verdict, limit: int) -> str:
    text = completion.text
    steps = verdict.step_scores or ()
    lines = text.strip("\n").split("\n")
    if len(text) > limit or not steps or len(steps) != sum(bool(line.strip()) for line in lines):
        return f"<pre>{escape(clip_middle(text, limit))}</pre>"
    scores = iter(steps)
    rows = []
    for line in lines:
        share = probability(next(scores)) if line.strip() else None
        label = "" if share is None else f' style="--p:{100 * share:.0f}%" data-p="{share:.2f}"'
        rows.append(f"<p{label}>{escape(line)}</p>")
    return f'<div class="steps">{"".join(rows)}</div>'


def clip_middle(text: str, limit: int) -> str:
    """Return ``text`` with its middle replaced by a count where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - (limit - head) :]}"
