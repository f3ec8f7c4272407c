"""Rules of other tools, rewritten as plain loops, and what their own code said on seeded input.

``GOLDEN`` was obtained by running, on ``world(seed, **WORLDS[seed])``, the code of huggingface/search-and-learn
(``sal/utils/math.py``, commit 6f81cac, ``latex2sympy2_extended`` in the place of ``latex2sympy2``; a prediction is as
right as the samples with its text), NVIDIA-NeMo/Skills (``MathMetrics``, commit 8b18f39, answers as text, ``None`` for
none), openai/human-eval (``estimate_pass_at_k`` and the rule that leaves out a k, commit 6d43fb9; without that rule for
large_language_monkeys, commit ed2bdb0, which has no metric code) and lm-evaluation-harness 0.4.13 (filters
``take_first_k`` and ``majority_vote``, aggregation ``mean``).
"""

import random
from collections import defaultdict
from fractions import Fraction
from math import comb

KS = [1, 2, 4, 8, 16]
WORLDS = {
    0: {},
    1: {"levels": 4, "consistent": False},
    2: {},
    3: {"levels": 4},
    4: {},
    5: {"ragged": True},
    6: {},
}


def world(seed, *, problems=30, samples=16, levels=None, consistent=True, ragged=False):
    """Problems as lists of (correct, answer, score); answer -1 is none."""
    rng = random.Random(seed)
    made = []
    for _ in range(problems):
        right = rng.randrange(-1, 5)
        n = rng.randint(samples // 2, samples) if ragged else samples
        rows = []
        for _ in range(n):
            answer = rng.choice([-1, 0, 0, 1, 1, 2, 3, 4])
            correct = answer >= 0 and (answer == right if consistent else rng.random() < 0.5)
            rows.append((correct, answer, rng.randrange(levels) / levels if levels else rng.random()))
        made.append(rows)
    return made


def most(totals):
    """The first key with the largest value."""
    best = None
    for key, value in totals.items():
        if best is None or value > totals[best]:
            best = key
    return best


def search_and_learn(problems, ks):
    found = {}
    for k in ks:
        right = {"maj": 0, "naive": 0, "weighted": 0}
        for samples in problems:
            counts, sums, text = defaultdict(int), defaultdict(float), {}
            best = samples[0]
            for sample in samples[:k]:
                correct, answer, score = sample
                counts[answer] += 1
                sums[answer] += score
                text.setdefault(answer, correct)
                best = sample if score > best[2] else best
            right["maj"] += text[most(counts)]
            right["naive"] += best[0]
            right["weighted"] += text[most(sums)]
        found |= {f"pred_{rule}@{k}": count / len(problems) for rule, count in right.items()}
    return found


def nemo_skills(problems, ks):
    found = defaultdict(float)
    for k in ks:
        for samples in problems:
            n, c = len(samples), sum(correct for correct, *_ in samples)
            found[f"pass@{k}"] += 1 - comb(n - c, k) / comb(n, k)
            found[f"pass@1[avg-of-{k}]"] += sum(correct for correct, *_ in samples[:k]) / k
            answered = [sample for sample in samples[:k] if sample[1] >= 0]
            counts, sums, last, best = defaultdict(int), defaultdict(float), {}, None
            for sample in answered:
                correct, answer, score = sample
                counts[answer, correct] += 1
                sums[answer] += score
                last[answer] = correct
                best = sample if best is None or score > best[2] else best
            top = [correct for (_, correct), count in counts.items() if count == max(counts.values())]
            if k > 1:
                found[f"majority@{k}"] += sum(top) / len(top) if top else 0
            found[f"rm_best@{k}"] += best[0] if best else 0
            found[f"rm_majority@{k}"] += last[most(sums)] if best else 0
    return {key: 100.0 * value / len(problems) for key, value in found.items()}


def exact_pass(problems, ks, *, short):
    """pass@k in fractions, and what a problem with fewer than k samples makes of it."""
    found = {}
    for k in ks:
        values = []
        for samples in problems:
            n, c = len(samples), sum(correct for correct, *_ in samples)
            values.append(1 - Fraction(comb(n - c, k), comb(n, k)) if n >= k else short)
        if None not in values:
            found[f"pass@{k}"] = float(sum(values) / len(values))
    return found


def lm_evaluation_harness(problems, ks):
    found = {}
    for k in ks:
        right = 0
        for samples in problems:
            counts, first = defaultdict(int), {}
            for correct, answer, _ in samples[:k]:
                counts[answer] += 1
                first.setdefault(answer, correct)
            right += first[most(counts)]
        found[f"exact_match,maj@{k}"] = right / len(problems)
    return found


GOLDEN = {
    ("nemo-skills", 0): {
        "pass@1": 13.333333333333334, "pass@1[avg-of-1]": 13.333333333333334, "pass@2": 24.38888888888889,
        "pass@1[avg-of-2]": 16.666666666666668, "pass@4": 41.34249084249085, "pass@1[avg-of-4]": 14.166666666666666,
        "pass@8": 62.26418026418026, "pass@1[avg-of-8]": 16.25, "pass@16": 80.0,
        "pass@1[avg-of-16]": 13.333333333333334, "majority@2": 20.0, "majority@4": 13.611111111111112,
        "majority@8": 25.0, "majority@16": 15.0, "rm_best@1": 13.333333333333334,
        "rm_majority@1": 13.333333333333334, "rm_best@2": 13.333333333333334, "rm_majority@2": 13.333333333333334,
        "rm_best@4": 23.333333333333332, "rm_majority@4": 20.0, "rm_best@8": 23.333333333333332,
        "rm_majority@8": 26.666666666666668, "rm_best@16": 20.0, "rm_majority@16": 16.666666666666668,
    },
    ("nemo-skills", 1): {
        "pass@1": 41.25, "pass@1[avg-of-1]": 53.333333333333336, "pass@2": 66.22222222222221,
        "pass@1[avg-of-2]": 45.0, "pass@4": 89.7472527472527, "pass@1[avg-of-4]": 45.0, "pass@8": 99.44781144781146,
        "pass@1[avg-of-8]": 41.25, "pass@16": 100.0, "pass@1[avg-of-16]": 41.25, "majority@2": 48.333333333333336,
        "majority@4": 48.888888888888886, "majority@8": 45.238095238095234, "majority@16": 37.55555555555556,
        "rm_best@1": 53.333333333333336, "rm_majority@1": 53.333333333333336, "rm_best@2": 43.333333333333336,
        "rm_majority@2": 43.333333333333336, "rm_best@4": 46.666666666666664, "rm_majority@4": 40.0,
        "rm_best@8": 50.0, "rm_majority@8": 50.0, "rm_best@16": 46.666666666666664,
        "rm_majority@16": 43.333333333333336,
    },
    ("search-and-learn", 2): {
        "pred_maj@1": 0.16666666666666666, "pred_naive@1": 0.16666666666666666,
        "pred_weighted@1": 0.16666666666666666, "pred_maj@2": 0.16666666666666666,
        "pred_naive@2": 0.16666666666666666, "pred_weighted@2": 0.16666666666666666,
        "pred_maj@4": 0.16666666666666666, "pred_naive@4": 0.16666666666666666,
        "pred_weighted@4": 0.23333333333333334, "pred_maj@8": 0.2, "pred_naive@8": 0.06666666666666667,
        "pred_weighted@8": 0.1, "pred_maj@16": 0.26666666666666666, "pred_naive@16": 0.03333333333333333,
        "pred_weighted@16": 0.23333333333333334,
    },
    ("search-and-learn", 3): {
        "pred_maj@1": 0.26666666666666666, "pred_naive@1": 0.26666666666666666,
        "pred_weighted@1": 0.26666666666666666, "pred_maj@2": 0.26666666666666666,
        "pred_naive@2": 0.23333333333333334, "pred_weighted@2": 0.23333333333333334,
        "pred_maj@4": 0.23333333333333334, "pred_naive@4": 0.16666666666666666,
        "pred_weighted@4": 0.16666666666666666, "pred_maj@8": 0.2, "pred_naive@8": 0.2,
        "pred_weighted@8": 0.16666666666666666, "pred_maj@16": 0.16666666666666666, "pred_naive@16": 0.2,
        "pred_weighted@16": 0.1,
    },
    ("human-eval", 4): {
        "pass@1": 0.17291666666666666, "pass@2": 0.31055555555555553, "pass@4": 0.508003663003663,
        "pass@8": 0.7168376068376067, "pass@16": 0.8333333333333334,
    },
    ("human-eval", 5): {
        "pass@1": 0.17193056943056945, "pass@2": 0.3056556406556406, "pass@4": 0.49906241906241905,
        "pass@8": 0.7107255707255707,
    },
    ("large-language-monkeys", 5): {
        "pass@1": 0.17193056943056945, "pass@2": 0.3056556406556406, "pass@4": 0.49906241906241905,
        "pass@8": 0.7107255707255707, "pass@16": 0.9666666666666667,
    },
    ("lm-evaluation-harness", 6): {
        "exact_match,maj@1": 0.13333333333333333, "exact_match,maj@2": 0.13333333333333333,
        "exact_match,maj@4": 0.13333333333333333, "exact_match,maj@8": 0.16666666666666666,
        "exact_match,maj@16": 0.06666666666666667,
    },
}  # fmt: skip
