r"""What the numbers show, in plain sentences that are computed from them.

Only budgets at which every model takes part count as won or lost. A lead that the paired interval cannot tell from zero
is called one. Without engine seconds :mod:`lit_thinkfast.analysis.untimed` tells of equal numbers of samples instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_thinkfast.analysis.comparison import BestAt, Comparison
from lit_thinkfast.analysis.decode import disturbance, gain, predicted_gain
from lit_thinkfast.analysis.pareto import Stretch, seconds_to_reach
from lit_thinkfast.analysis.telling import Story, Tile, listed, mark, samples_in_words, unmarked
from lit_thinkfast.analysis.text import RULE_NAMES, RULES_IN_TEXT, duration, factor, join, percent
from lit_thinkfast.analysis.untimed import tell_untimed
from lit_thinkfast.records import Rule

if TYPE_CHECKING:
    from lit_thinkfast.generation.points import DecodePoint

__all__ = ["Story", "Tile", "mark", "student_share", "tell", "unmarked"]


def tell(c: Comparison, benchmark: Sequence[DecodePoint] | None = None) -> Story:
    """Return the story of a comparison; models other than the baseline are called students."""
    students = [name for name in c.runs if name != c.baseline]
    if not students or not c.timed:
        return tell_untimed(c)
    paragraphs = [("Cost.", _cost(c, students)), ("Per sample.", _per_sample(c, students))]
    paragraphs += [(f"{RULE_NAMES[rule]} per second.", _who_wins(c, rule)) for rule in c.rules]
    paragraphs += [("How sure?", _certainty(c)), ("At equal quality.", _equal_quality(c, students))]
    paragraphs += [("The engine alone.", _decode(c, students, benchmark or ()))]
    tiles = [_cost_tile(c, students), _quality_tile(c, students), *_decode_tiles(c, students, benchmark or ())]
    return Story(_headline(c) + _doubt(c), tuple(t for t in tiles if t), tuple(p for p in paragraphs if p[1]))


def student_share(c: Comparison, rule: Rule) -> float:
    """Share of the contested budgets, by their logarithm, at which a student is best; NaN if none is contested."""
    lengths = {True: 0.0, False: 0.0}
    for s in c.fronts[rule]:
        if s.contested:
            lengths[s.model != c.baseline] += math.log(s.end / s.start)
    total = sum(lengths.values())
    return lengths[True] / total if total else math.nan


def _headline(c: Comparison) -> str:
    """Say for which rules students win everywhere, up to some budget, here and there, or nowhere."""
    base = mark(c.baseline)
    shares = {rule: student_share(c, rule) for rule in c.rules}
    known = {rule: share for rule, share in shares.items() if not math.isnan(share)}
    if not known:
        return f"No time budget is shared by all models, so none can be said to beat {base}"
    if all(share == 0 for share in known.values()):
        return f"No student beats {base} at any time budget that all models share"
    if all(share == 1 for share in known.values()):
        best = {s.model for rule in known for s in c.fronts[rule] if s.contested}
        who = " or ".join(mark(name) for name in c.runs if name in best) if len(best) < 3 else "A student"
        return f"{who} beats {base} at every time budget that all models share"
    ends = {rule: _switch(c, rule) for rule in known}
    always = [rule for rule, share in known.items() if share == 1]
    early = {rule: end for rule, end in ends.items() if end is not None}
    mixed = [rule for rule, share in known.items() if 0 < share < 1 and rule not in early]
    never = [rule for rule, share in known.items() if share == 0]
    parts = []
    if always:
        parts.append(f"at every budget by {_names(always)}")
    if early and len(early) == len(known):
        low, high = duration(min(early.values())), duration(max(early.values()))
        parts.append(
            f"up to {low} a problem" if low == high else f"up to {low} to {high} a problem, depending on the rule"
        )
    else:
        parts += [f"up to {duration(end)} by {RULES_IN_TEXT[rule]}" for rule, end in early.items()]
    if mixed:
        parts.append("at some budgets" + ("" if len(mixed) == len(known) else f" by {_names(mixed)}"))
    ending = f", never by {_names(never)}" if never else ""
    return f"Students beat {base} {join(parts)}{ending}"


def _names(rules: list[Rule]) -> str:
    return join([RULES_IN_TEXT[rule] for rule in rules])


def _switch(c: Comparison, rule: Rule) -> float | None:
    """Return the budget at which the students' lead passes to the baseline for good, if it does so exactly once."""
    sides = [(s.model != c.baseline, s.start) for s in c.fronts[rule] if s.contested]
    changes = [b for a, b in itertools.pairwise(sides) if a[0] != b[0]]
    return changes[0][1] if sides and sides[0][0] and len(changes) == 1 else None


def _seconds(c: Comparison, name: str) -> float:
    return float(c.measured[name].sample_seconds.mean())


def _cost(c: Comparison, students: list[str]) -> str:
    base = _seconds(c, c.baseline)
    parts = []
    for name in students:
        ratio = base / _seconds(c, name)
        relation = f"{factor(ratio)} cheaper" if ratio > 1 else f"{factor(1 / ratio)} dearer"
        relation = "about the same" if 0.97 < ratio < 1.03 else relation
        parts.append(f"{mark(name)} {duration(_seconds(c, name))} ({relation})")
    return f"A sample takes {mark(c.baseline)} {duration(base)} of engine time, {join(parts)}."


def _cost_tile(c: Comparison, students: list[str]) -> Tile:
    best = min(students, key=lambda name: _seconds(c, name))
    return Tile(
        factor(_seconds(c, c.baseline) / _seconds(c, best)), f"the samples per second of {mark(c.baseline)}", best
    )


def _per_sample(c: Comparison, students: list[str]) -> str:
    rule, k = c.rules[0], c.ks[0]
    every = [c.baseline, *students]
    value = {name: p.value for name in every if (p := c.point(name, rule, k))}
    behind = [name for name in students if value[name] < value[c.baseline]]
    if len(behind) == len(students):
        relation = "every student is behind"
    elif not behind:
        relation = "no student is behind"
    else:
        relation = f"{join([mark(name) for name in behind])} {'is' if len(behind) == 1 else 'are'} behind"
    sentence = f"With {samples_in_words(k)} a problem, {relation}: {listed(value, 'solves')}."
    if c.ks[-1] > k:
        last = {name: p.value for name in every if (p := c.point(name, rule, c.ks[-1]))}
        sentence += f" With {c.ks[-1]}, {listed(last, 'covers')}." if rule == "coverage" else ""
    return sentence


def _who_wins(c: Comparison, rule: Rule) -> str:
    front = [s for s in c.fronts[rule] if s.contested]
    if not front:
        return "The models' times do not overlap, so no budget is shared by all."
    merged: list[Stretch] = []
    for s in front:
        if merged and merged[-1].model == s.model:
            merged[-1] = Stretch(s.model, merged[-1].start, s.end, merged[-1].start_value, s.end_value, True)
        else:
            merged.append(s)
    first, last = merged[0].start, merged[-1].end
    if len(merged) == 1:
        only = merged[0].model
        text = f"{mark(only)} is best at every shared budget, {duration(first)} to {duration(last)} a problem"
        return text + ("; no student wins." if only == c.baseline else ".")
    if len(merged) > 4:
        shares: dict[str, float] = {}
        for s in merged:
            shares[s.model] = shares.get(s.model, 0.0) + math.log(s.end / s.start) / math.log(last / first)
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        parts = join([f"{mark(name)} leads over {percent(share, 0)}" for name, share in ranked])
        text = (
            f"The lead changes {len(merged) - 1} times between {duration(first)} and {duration(last)} a problem; on "
            f"the logarithmic time axis {parts} of that range"
        )
    else:
        spans = [f"{mark(s.model)} from {duration(s.start)} to {duration(s.end)}" for s in merged]
        text = f"Best is {join(spans)} a problem"
    return text + (f"; {mark(c.baseline)} never leads." if c.baseline not in {s.model for s in merged} else ".")


def _shared(c: Comparison) -> list[BestAt]:
    """Return who is best at the round budgets at which all models take part."""
    return [
        b
        for b in c.best
        if b.margin is not None
        and not b.short_of_samples
        and any(s.contested and s.start <= b.seconds <= s.end for s in c.fronts[b.rule])
    ]


def _doubt(c: Comparison) -> str:
    """Return an ending for the headline where no lead of a student at a round budget is clear."""
    wins = [b.margin for b in _shared(c) if b.margin is not None and b.model != c.baseline]
    return ", but never clearly" if wins and not any(m.resolved for m in wins) else ""


def _certainty(c: Comparison) -> str:
    shared = _shared(c)
    if not shared:
        return ""
    wins = [b.margin.resolved for b in shared if b.margin is not None and b.model != c.baseline]
    losses = [b.margin.resolved for b in shared if b.margin is not None and b.model == c.baseline]
    return (
        f"Taking {len(shared)} pairs of round budget and rule, students {_times(wins, 'lead')}; {mark(c.baseline)} "
        f"{_times(losses, 'leads')}. Clearly means that the 95{chr(0xA0)}% interval of the paired difference over "
        f"{c.num_problems} problems is above zero and a permutation test gives p below 0.05."
    )


def _times(clear: list[bool], verb: str) -> str:
    if not clear:
        return f"never {verb}"
    return f"{verb} {len(clear)} time{'s' * (len(clear) > 1)}, {sum(clear)} of them clearly"


def _races(c: Comparison, students: list[str]) -> dict[str, tuple[float, float, float]]:
    """Return student -> (value, its seconds, the baseline's seconds) at the highest multiple of 5 % both reach."""
    rule = c.rules[0]
    tops = {name: max(p.value for p in c.points if p.model == name and p.rule == rule) for name in c.runs}
    races = {}
    for name in students:
        target = math.floor(min(tops[name], tops[c.baseline], 0.95) * 20 + 1e-9) / 20
        if target > 0:
            times = seconds_to_reach(c.points, rule, target)
            races[name] = (target, times[name], times[c.baseline])
    return races


def _equal_quality(c: Comparison, students: list[str]) -> str:
    parts = []
    for name, (target, own, base) in _races(c, students).items():
        relation = f"{factor(base / own)} faster" if base >= own else f"{factor(own / base)} slower"
        parts.append(
            f"{mark(name)} takes {duration(own)} to {percent(target, 0)}, "
            f"{mark(c.baseline)} {duration(base)} ({relation})"
        )
    return f"{RULE_NAMES[c.rules[0]]}: {'; '.join(parts)}." if parts else ""


def _quality_tile(c: Comparison, students: list[str]) -> Tile | None:
    races = _races(c, students)
    if not races:
        return None
    best = max(races, key=lambda name: races[name][2] / races[name][1])
    target, own, base = races[best]
    return Tile(factor(base / own), f"the speed of {mark(c.baseline)} to {percent(target, 0)} {c.rules[0]}", best)


def _pairs(
    c: Comparison, students: list[str], benchmark: Sequence[DecodePoint]
) -> dict[str, tuple[DecodePoint, DecodePoint]]:
    """Return student -> its and the baseline's point at the largest batch and longest text that both ran."""
    found = {}
    for name in students:
        base = {(p.generate_tokens, p.prompt_tokens, p.batch_size): p for p in benchmark if p.model == c.baseline}
        own = {(p.generate_tokens, p.prompt_tokens, p.batch_size): p for p in benchmark if p.model == name}
        if shared := base.keys() & own.keys():
            found[name] = (own[max(shared)], base[max(shared)])
    return found


def _decode(c: Comparison, students: list[str], benchmark: Sequence[DecodePoint]) -> str:
    parts = []
    for name, (own, base) in _pairs(c, students, benchmark).items():
        allowed = predicted_gain(own, base)
        parts.append(
            f"decoding {own.generate_tokens} tokens at batch {own.batch_size}, {mark(name)} has "
            f"{factor(gain(own, base, 'seconds'))} the speed and {_share(1 / gain(own, base, 'memory'))} of the memory "
            f"of {mark(c.baseline)}" + ("" if allowed is None else f" (the roofline gives {factor(allowed)} the speed)")
        )
    text = "; ".join(parts)
    if not text:
        return ""
    note = disturbance(benchmark)
    return f"{text[0].upper()}{text[1:]}." + (f" {note[0].upper()}{note[1:]} in that run." if note else "")


def _decode_tiles(c: Comparison, students: list[str], benchmark: Sequence[DecodePoint]) -> list[Tile]:
    pairs = _pairs(c, students, benchmark)
    if not pairs:
        return []
    fast = max(pairs, key=lambda name: gain(*pairs[name], "seconds"))
    small = max(pairs, key=lambda name: gain(*pairs[name], "memory"))
    caution = " (disturbed)" if disturbance(pairs[fast]) else ""
    return [
        Tile(
            factor(gain(*pairs[fast], "seconds")),
            f"the decode speed of {mark(c.baseline)} at batch {pairs[fast][0].batch_size}{caution}",
            fast,
        ),
        Tile(
            _share(1 / gain(*pairs[small], "memory")),
            f"of the memory of {mark(c.baseline)} at batch {pairs[small][0].batch_size}",
            small,
        ),
    ]


def _share(value: float) -> str:
    return percent(value, 0 if value > 0.095 else 1)
