"""What choosing with a reward model is worth, against a random sample and against majority vote."""

from __future__ import annotations

from dataclasses import dataclass

from lit_thinkfast.analysis.budget import SCORED, Measured, problem_weights
from lit_thinkfast.analysis.difference import PERMUTATIONS, stands_out
from lit_thinkfast.metrics.statistics import difference_interval, paired_permutation_test, weighted_means
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
        p_value: Two-sided, of a permutation test which swaps the two ways on random problems.
    """

    rule: Rule
    over: str
    k: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval leaves out zero and the permutation test agrees (p below 0.05)."""
        return stands_out(self.low, self.high, self.p_value)


def selection_gains(m: Measured, *, resamples: int = 2000, seed: int = 0) -> list[Gain]:
    """Return the gains of the rules that use scores, at the largest k, over what was measured to compare them with.

    None where there is but one sample, so nothing to choose.
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
            own = m.values[rule][:, -1]
            means = weighted_means(own - values, weights)
            p_value = paired_permutation_test(own, values, permutations=PERMUTATIONS, seed=seed)
            ends = difference_interval(own - values, means[1:])
            found.append(Gain(rule, over, m.ks[-1], float(means[0]), *ends, p_value))
    return found
