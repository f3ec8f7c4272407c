"""Naive twins of the estimators: every subset is visited, in plain Python."""

import itertools
from collections import Counter, defaultdict


def over_subsets(samples, k, rule, subsets="all"):
    """Mean of ``rule`` over the k-subsets of ``samples``, lists of (index, correct, answer, score)."""
    if len(samples) < k:
        return float("nan")
    chosen = [tuple(samples[:k])] if subsets == "prefix" else list(itertools.combinations(samples, k))
    return sum(rule(subset) for subset in chosen) / len(chosen)


def coverage(subset):
    return float(any(correct for _, correct, _, _ in subset))


def best_of_n(subset, ties):
    best = max(score for *_, score in subset)
    top = [correct for _, correct, _, score in subset if score == best]
    return float(top[0]) if ties == "first" else sum(top) / len(top)


def vote(subset, ties, weigh):
    weights, members, first = defaultdict(float), defaultdict(list), {}
    for index, correct, answer, score in subset:
        if answer >= 0:
            weights[answer] += weigh(score)
            members[answer].append(correct)
            first.setdefault(answer, index)
    if not weights:
        return 0.0
    best = max(weights.values())
    tied = [a for a in weights if weights[a] >= best * (1 - 1e-9)]
    if ties == "first":
        return float(members[min(tied, key=first.__getitem__)][0])
    return sum(sum(members[a]) / len(members[a]) for a in tied) / len(tied)


def majority(subset, ties):
    return vote(subset, ties, lambda score: 1.0)


def weighted(subset, ties):
    return vote(subset, ties, lambda score: score)


def random_samples(rng, n, *, answers=4, levels=3, consistent=True):
    """A problem with repeated answers, ties in score and some samples without an answer."""
    right = Counter()
    made = []
    for index in range(n):
        answer = rng.randrange(-1, answers)
        if answer not in right:
            right[answer] = answer >= 0 and rng.random() < 0.4
        correct = bool(right[answer]) if consistent else answer >= 0 and rng.random() < 0.5
        made.append((index, correct, answer, rng.randrange(levels) / 4 + 0.1))
    return made
