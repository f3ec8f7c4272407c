"""What choosing with a reward model is worth, against a random sample and against majority vote."""

from __future__ import annotations

from dataclasses import dataclass

from lit_thinkfast.analysis.budget import SCORED, Measured, problem_weights
from lit_thinkfast.metrics.statistics import interval, weighted_means
from lit_thinkfast.records import Rule


@dataclass(frozen=True, slots=True)
class Gain:
    """How much more often one way of choosing is right than another, in shares (0.1 = 10 points).

    Attributes:
        rule: The rule that uses scores.
        over: ``one sample`` at random, or ``majority`` vote among as many samples.
        k: Samples a problem.
        difference: Its share of problems solved less that of the other.
        low: Lower end of the 95 % interval of the difference, a bootstrap over problems that resamples both alike.
        high: Upper end.
    """

    rule: Rule
    over: str
    k: int
    difference: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval leaves out zero."""
        return self.low > 0 or self.high < 0


def selection_gains(m: Measured, *, resamples: int = 2000, seed: int = 0) -> list[Gain]:
    """Return the gains of the rules that use scores, at the largest k, over what was measured to compare them with.

    None where there is but one sample, so nothing to choose. Problems with fewer than k samples are left out.
    """
    if m.ks[-1] == 1:
        return []
    others = {}
    if "coverage" in m.values and m.ks[0] == 1:
        others["one sample"] = m.values["coverage"][:, 0]
    if "majority" in m.values:
        others["majority"] = m.values["majority"][:, -1]
    weights = problem_weights(len(m.problem_ids), resamples, seed)
    found = []
    for rule in m.values:
        if rule not in SCORED:
            continue
        for over, values in others.items():
            gain = (m.values[rule][:, -1] - values)[:, None]
            means = weighted_means(gain, weights)
            low, high = interval(means[1:])
            found.append(Gain(rule, over, m.ks[-1], float(means[0, 0]), float(low[0]), float(high[0])))
    return found
