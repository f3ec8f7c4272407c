"""What makes a comparison weaker than it looks, in sentences."""

from __future__ import annotations

from lit_thinkfast.analysis.budget import SCORED
from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.runs import ModelRun, find, untimed_in_words
from lit_thinkfast.analysis.table import few_samples
from lit_thinkfast.analysis.text import join, percent, shorten

_TIMING = ("device_name", "threads", "dtype", "batch_size")
_MANY_CUT = 0.02
_MANY_TIED = 0.2
_FEW_PROBLEMS = 30


def cautions(c: Comparison) -> list[str]:
    """Return what a reader must know before trusting the numbers, the gravest first."""
    found = [*_clocks(c), *_problems(c), *_grading(c), *_samples(c), *_rewards(c)]
    if c.num_problems < _FEW_PROBLEMS:
        found.append(f"{_number(c.num_problems)} few: read the intervals before the values.")
    return found


def tied_at_top(run: ModelRun) -> float:
    """Return the share of problems in which several samples share the best score; NaN scores count as none."""
    tied = 0
    for samples in run.by_problem.values():
        scores = [v.score for _, v in samples if v.score is not None]
        tied += bool(scores) and scores.count(max(scores)) > 1
    return tied / len(run.by_problem)


def _clocks(c: Comparison) -> list[str]:
    found = []
    if not c.timed:
        untimed = [untimed_in_words(shorten(name, 40), run) for name, run in c.runs.items() if run.num_untimed]
        found.append(
            f"No engine time was recorded for {join(untimed)}, so models are compared at equal numbers of samples; "
            "which is best within a time budget cannot be said."
        )
        return found
    for key in _TIMING:
        values = {name: find(run.meta, key) for name, run in c.runs.items()}
        if len({str(v) for v in values.values() if v is not None}) > 1:
            told = join([f"{shorten(name, 40)}: {shorten(str(value), 60)}" for name, value in values.items()])
            found.append(
                f"The runs differ in {key.replace('_', ' ')} ({told}), so their times differ for that reason too."
            )
    for name, run in c.runs.items():
        sessions = find(run.meta, "sessions")
        if isinstance(sessions, list) and any(isinstance(s, dict) and s.get("disturbed") for s in sessions):
            found.append(f"The machine was disturbed while {shorten(name, 40)} ran: do not rely on its seconds.")
    return found


def _problems(c: Comparison) -> list[str]:
    found = []
    removed = {name: run.removed_problems for name, run in c.runs.items() if run.removed_problems}
    if removed:
        every = sorted({p for ids in removed.values() for p in ids})
        told = ", ".join(shorten(p, 40) for p in every[:3]) + (", ..." if len(every) > 3 else "")
        found.append(
            f"{_number(len(every))} left out since no sample of {'it' if len(every) == 1 else 'them'} has a verdict, "
            f"for example because the gold answer cannot be read ({told})."
        )
    shared = c.num_problems + len(c.few_samples)
    left_out = {name: len(run.by_problem) - shared for name, run in c.runs.items()}
    if any(left_out.values()):
        told = join([f"{n} of {shorten(name, 40)}" for name, n in left_out.items() if n])
        found.append(f"Only the {shared} problems that all models share are compared; left out are {told}.")
    if told := few_samples(c):
        found.append(f"{told} Often those are the ones with long solutions.")
    unsampled = {name: len(run.unsampled) for name, run in c.runs.items() if run.unsampled}
    if unsampled:
        told = join([f"{n} of {shorten(name, 40)}" for name, n in unsampled.items()])
        found.append(f"Problems without a single finished sample are not part of the curves over mean time ({told}).")
    return found


def _grading(c: Comparison) -> list[str]:
    found = []
    graders = {v.grader for run in c.runs.values() for v in run.verdicts if v.grader}
    if len(graders) > 1:
        found.append(
            f"Samples were graded in {len(graders)} ways ({join([shorten(g, 60) for g in sorted(graders)[:3]])}), so "
            "part of a difference may be the grader's."
        )
    broken = {
        name: sum(v.outcome in ("timeout", "oom", "crashed") for v in run.verdicts) / len(run.verdicts)
        for name, run in c.runs.items()
    }
    if any(share > 0.005 for share in broken.values()):
        told = join([f"{percent(share)} of {shorten(name, 40)}" for name, share in broken.items() if share])
        found.append(f"Grading failed for some samples ({told}: too long, too large, or a crash); they count as wrong.")
    return found


def _samples(c: Comparison) -> list[str]:
    cut = {name: run.share_cut for name, run in c.runs.items() if run.share_cut > _MANY_CUT}
    if not cut:
        return []
    told = join([f"{percent(share, 0)} of {shorten(name, 40)}" for name, share in cut.items()])
    return [f"The token limit cut off completions ({told}); they count as wrong unless they hold an answer."]


def _rewards(c: Comparison) -> list[str]:
    if not SCORED & set(c.rules):
        return []
    found = []
    tied = {name: share for name, run in c.runs.items() if (share := tied_at_top(run)) > _MANY_TIED}
    if tied:
        told = join([f"{percent(share, 0)} of problems for {shorten(name, 40)}" for name, share in tied.items()])
        found.append(
            f"The reward model is saturated: several samples share the best score ({told}), so best-of-N is partly a "
            "draw among them."
        )
    if c.timed and all(run.scoring_seconds is None for run in c.runs.values()):
        found.append("The reward model's own time was not measured and is not part of the budgets.")
    return found


def _number(n: int) -> str:
    return "1 problem is" if n == 1 else f"{n} problems are"
