"""Where the numbers come from: what each run recorded about itself. What it did not record is said to be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.runs import ModelRun, find
from lit_thinkfast.analysis.text import join, shorten

if TYPE_CHECKING:
    from lit_thinkfast.generation.points import DecodePoint

MISSING = "not recorded"
# What a reader looks for first among a run's versions
_LONGEST = 200
_PACKAGES = ("lit-thinkfast", "torch", "transformers", "vllm", "mamba-ssm", "python")


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of one run, in words; :data:`MISSING` where it was not recorded.

    Attributes:
        run: Name of the run in the comparison.
        model: Name that the run itself has for its model.
        problems: Evaluation set and number of problems.
        samples: Samples a problem, ``64`` or ``12 to 64``.
        seeds: Seeds of the sampling.
        sampling: Temperature and other settings.
        device: What it ran on.
        threads: Of the processor.
        batch_size: Rows decoded together.
        dtype: Of the weights.
        dates: Day of the first session to day of the last.
        versions: Of this package and those below it.
        git: Commit, and whether files differed from it.
        grader: Who told right from wrong.
        reward_model: Who scored.
        taken_from: The file of another program that the completions were read from, where they were.
    """

    run: str
    model: str
    problems: str
    samples: str
    seeds: str
    sampling: str
    device: str
    threads: str
    batch_size: str
    dtype: str
    dates: str
    versions: str
    git: str
    grader: str
    reward_model: str
    taken_from: str


LABELS = {
    "model": "model",
    "problems": "problems",
    "samples": "samples a problem",
    "seeds": "seed",
    "sampling": "sampling",
    "device": "device",
    "threads": "threads",
    "batch_size": "batch size",
    "dtype": "dtype",
    "dates": "dates",
    "versions": "versions",
    "git": "git",
    "grader": "graded by",
    "reward_model": "scored by",
    "taken_from": "taken from",
}


def origins(c: Comparison) -> list[Origin]:
    """Return the origin of each run, in the order of the comparison."""
    return [origin(name, run) for name, run in c.runs.items()]


def origin(name: str, run: ModelRun) -> Origin:
    """Return what ``run`` recorded, and what its records say of themselves."""
    meta = run.meta
    counts = [len(samples) for samples in run.by_problem.values()]
    own_sets = find(meta, "problems")
    taken = find(meta, "taken_from")
    return Origin(
        run=name,
        model=_told(find(meta, "model") or {c.model for c in run.completions if c.model}),
        problems=f"{len(counts)}" + (f" of {shorten(str(own_sets), 60)}" if own_sets else ""),
        samples=str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}",
        seeds=_told({c.seed for c in run.completions} if taken is None else None),
        sampling=_sampling(meta),
        device=_told(_everywhere(meta, "device_name") or _everywhere(meta, "device")),
        threads=_told(_everywhere(meta, "threads")),
        batch_size=_told(_everywhere(meta, "batch_size")),
        dtype=_told(_everywhere(meta, "dtype")),
        dates=_dates(meta),
        versions=_versions(meta),
        git=_git(meta),
        grader=_told({v.grader for v in run.verdicts if v.grader}),
        reward_model=_told({v.reward_model for v in run.verdicts if v.reward_model}, missing="nobody"),
        taken_from=_file(taken) if taken is not None else "our sampler" if _sessions(meta) else MISSING,
    )


def source(c: Comparison) -> str:
    """Return one line that tells where the numbers of a table or figure come from, as text.

    What all runs share is said once; where they differ, each value is said with its run.
    """
    found = origins(c)
    names = join([shorten(o.run, 40) for o in found])
    parts = [f"{'runs' if len(found) > 1 else 'run'} {names}", f"{c.num_problems} problems", f"k up to {c.ks[-1]}"]
    for field, label in (("seeds", "seed "), ("device", ""), ("dates", ""), ("versions", ""), ("git", "git ")):
        values = [getattr(o, field) for o in found]
        if field == "versions":
            values = [value.split(", ")[0] for value in values]
        if len(set(values)) == 1:
            plain = label or ("" if values[0] != MISSING else f"{field} ")
            parts.append(f"{plain}{values[0]}")
        else:
            told = join([f"{value} ({shorten(o.run, 40)})" for o, value in zip(found, values, strict=True)])
            parts.append(f"{label or f'{field} '}{told}")
    return "; ".join(parts)


def benchmark_source(benchmark: Sequence[DecodePoint], meta: Mapping[str, Any]) -> str:
    """Return one line that tells where the points of a decode benchmark come from, as text.

    Args:
        benchmark: The points.
        meta: The document of the benchmark's file, or nothing.
    """
    models = join([shorten(name, 40) for name in dict.fromkeys(p.model for p in benchmark)])
    facts = {
        "seed": _told(find(meta, "seed")),
        "device": _told(find(meta, "device_name")),
        "dates": _dates(meta),
        "versions": _versions(meta).split(", ")[0],
        "git": _git(meta),
    }
    bare = {"device", "dates", "versions"}
    told = [value if name in bare and value != MISSING else f"{name} {value}" for name, value in facts.items()]
    return "; ".join([f"decode benchmark of {models}", *told])


def _file(taken: Any) -> str:
    """Return the name, layout and first digits of the hash of a file of another program."""
    if not isinstance(taken, Mapping):
        return MISSING
    return _told(f"{taken.get('name')} ({taken.get('layout')}, SHA-256 {str(taken.get('sha256'))[:12]})")


def _told(values: Any, *, missing: str = MISSING) -> str:
    """Return one value, or several in their order, as text."""
    if values is None or values == "" or values == set():
        return missing
    if isinstance(values, set | list):
        texts = [shorten(str(value), _LONGEST) for value in sorted(values, key=lambda v: (str(type(v)), v))]
        return join(texts[:4] + ([f"{len(texts) - 4} more"] if len(texts) > 4 else [])) if texts else missing
    return shorten(str(values), _LONGEST)


def _sessions(meta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sessions = find(meta, "sessions")
    return [s for s in sessions if isinstance(s, Mapping)] if isinstance(sessions, list | tuple) else []


def _everywhere(meta: Mapping[str, Any], key: str) -> list[Any]:
    """Return the different values of ``key`` in the sessions, or that at the top where no session tells."""
    values = [s[key] for s in _sessions(meta) if s.get(key) is not None]
    return _different(values or [value for value in [find(meta, key)] if value is not None])


def _different(values: Iterable[Any]) -> list[Any]:
    return list({str(value): value for value in values}.values())


def _sampling(meta: Mapping[str, Any]) -> str:
    keys = {"temperature": "temperature", "top_p": "top-p", "top_k": "top-k", "max_new_tokens": "new tokens at most"}
    found = [f"{label} {value}" for key, label in keys.items() if (value := find(meta, key)) is not None]
    return shorten(", ".join(found), 120) if found else MISSING


def _dates(meta: Mapping[str, Any]) -> str:
    times = [str(s[key])[:10] for s in _sessions(meta) for key in ("started", "finished") if s.get(key)]
    times = times or [str(value)[:10] for value in [find(meta, "date") or find(meta, "created")] if value]
    if not times:
        return MISSING
    first, last = shorten(min(times), 10), shorten(max(times), 10)
    return first if first == last else f"{first} to {last}"


def _versions(meta: Mapping[str, Any]) -> str:
    every: dict[str, list[Any]] = {}
    for versions in [*(s.get("versions") for s in _sessions(meta)), find(meta, "versions")]:
        if isinstance(versions, Mapping):
            for package, version in versions.items():
                every.setdefault(str(package).replace("_", "-"), []).append(version)
    told = []
    for package in _PACKAGES:
        known = [str(v) for v in _different(every.get(package, [])) if v != "not installed"]
        if known:
            told.append(f"{package} {join([shorten(v, 24) for v in known[:3]])}")
    return ", ".join(told) or MISSING


def _git(meta: Mapping[str, Any]) -> str:
    states = [s["git"] for s in _sessions(meta) if isinstance(s.get("git"), Mapping)]
    top = find(meta, "git")
    states = states or ([top] if isinstance(top, Mapping) else [])
    told = []
    for state in states:
        if commit := state.get("commit"):
            told.append(shorten(str(commit), 40)[:10] + (" with changes" if state.get("changed") else ""))
    return join(list(dict.fromkeys(told))[:4]) if told else MISSING
