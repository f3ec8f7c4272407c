"""A sampling run into a file: resumable, with everything beside it that its seconds depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from lit_thinkfast.generation.calibration import calibrate, describe_machine, drift
from lit_thinkfast.generation.journal import Journal
from lit_thinkfast.generation.progress import ProgressCallback
from lit_thinkfast.generation.sampler import Sampler
from lit_thinkfast.records import Completion, Problem

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM

_log = logging.getLogger(__name__)
_FINGERPRINT_VALUES = 1024


def generate_to_file(
    sampler: Sampler,
    problems: Sequence[Problem],
    out: str | os.PathLike[str],
    *,
    on_batch: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Sample completions of ``problems`` into the journal ``out``, continuing what is there.

    Samples that the journal holds are not drawn again; the others get the texts they would have had in one
    uninterrupted run (in half precision: with the same batch size and device, see
    :mod:`lit_thinkfast.generation.rng`). Beside it, ``<out>.meta.json`` describes model, settings and
    totals, and each session that added lines: machine, batch size, calibration before and after, engine seconds.

    Args:
        sampler: Model, tokenizer and settings.
        problems: At least one, ids that differ.
        out: JSON-lines file.
        on_batch: See :meth:`Sampler.sample`; it counts this session's samples only.

    Returns:
        The meta document.

    Raises:
        ValueError: No problems, or the journal is of another run or holds samples that are not asked for.
        RecordError: The journal is damaged other than by an interruption.
    """
    if not problems:
        raise ValueError("there are no problems to sample; give at least one")
    prompts = sampler.prompts(problems)
    config = sampler.config
    with Journal(out, identity=_identity(sampler)) as journal:
        check_belongs(journal.completions, prompts, num_samples=config.num_samples, path=out)
        _remember_prompts(journal.meta, prompts, out)
        done = {(c.problem_id, c.sample) for c in journal.completions}
        totals = _Totals()
        for completion in journal.completions:
            totals.add(completion)
        journal.meta |= _describe(sampler, problems) | totals.values()
        sessions = journal.meta.setdefault("sessions", [])
        if len(done) == len(problems) * config.num_samples:
            journal.save_meta()
            return journal.meta

        session = _Session(sampler)
        sessions.append(session.values)
        _warn_of_mixture(sessions, out)
        journal.save_meta()
        try:
            for completion in sampler.sample(problems, skip=done, on_batch=on_batch):
                journal.append(completion)
                totals.add(completion)
        finally:
            session.close()
            journal.meta |= totals.values()
            journal.save_meta()
        return journal.meta


def check_belongs(
    completions: Sequence[Completion], prompts: dict[str, list[int]], *, num_samples: int, path: str | os.PathLike[str]
) -> None:
    """Check that completions found in a journal are among those that a run asks for.

    Raises:
        ValueError: Another problem, another prompt, or a sample index beyond ``num_samples``.
    """
    for c in completions:
        if c.problem_id not in prompts:
            raise ValueError(
                f"{path} holds problem {c.problem_id!r}, which is not asked for; choose another file or ask for it"
            )
        if c.num_prompt_tokens != len(prompts[c.problem_id]):
            raise ValueError(
                f"{path}: the prompt of problem {c.problem_id!r} had {c.num_prompt_tokens} tokens, now it has "
                f"{len(prompts[c.problem_id])} (other problems, tokenizer or template?); choose another file"
            )
        if c.sample >= num_samples:
            raise ValueError(
                f"{path} holds sample {c.sample} of problem {c.problem_id!r}, but num_samples is {num_samples}; "
                f"use num_samples {c.sample + 1} or more, or choose another file"
            )


def _remember_prompts(meta: dict[str, Any], prompts: dict[str, list[int]], path: str | os.PathLike[str]) -> None:
    """Keep a short hash of each prompt in the meta document.

    Raises:
        ValueError: A prompt differs from the one that was sampled.
    """
    known = meta.setdefault("prompts", {})
    for problem_id, tokens in prompts.items():
        made = hashlib.blake2b(repr(tokens).encode(), digest_size=8).hexdigest()
        if known.setdefault(problem_id, made) != made:
            raise ValueError(
                f"{path}: the prompt of problem {problem_id!r} is not the one that was sampled "
                "(other problems, tokenizer or template?); choose another file"
            )


def describe_model(model: HybridForCausalLM) -> dict[str, Any]:
    """Return the facts about a model that a reader of its figures needs."""
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "num_layers": model.config.num_hidden_layers,
        "layer_mixers": list(model.config.layer_mixers or []),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def fingerprint(model: torch.nn.Module) -> str:
    """Return a short hash of names, shapes and up to 1024 evenly spaced values of every weight.

    Enough to tell one checkpoint from the next without reading gigabytes.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        stride = max(1, flat.numel() // _FINGERPRINT_VALUES)
        digest.update(flat[::stride].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()


def _identity(sampler: Sampler) -> dict[str, Any]:
    tokenizer = hashlib.blake2b(
        json.dumps(sorted(sampler.tokenizer.get_vocab().items())).encode(), digest_size=8
    ).hexdigest()
    return {
        **sampler.config.identity(),
        "model": sampler.name,
        "weights": fingerprint(sampler.model),
        "dtype": str(sampler.model.dtype).removeprefix("torch."),
        "vocabulary": tokenizer,
        "end_tokens": sampler.end_tokens(),
    }


def _describe(sampler: Sampler, problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "model": sampler.name,
        **describe_model(sampler.model),
        "sampling": dataclasses.asdict(sampler.config),
        "end_tokens": sampler.end_tokens(),
        "problems": ", ".join(sorted({p.source for p in problems if p.source})),
        "num_problems": len(problems),
        **describe_machine(sampler.model.device),
    }


class _Totals:
    """Sums over all lines of a journal."""

    def __init__(self) -> None:
        self.samples = self.tokens = 0
        self.seconds = 0.0

    def add(self, completion: Completion) -> None:
        self.samples += 1
        self.tokens += completion.num_tokens
        self.seconds += completion.seconds

    def values(self) -> dict[str, Any]:
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return {
            "total_samples": self.samples,
            "total_tokens": self.tokens,
            "total_seconds": self.seconds,
            "tokens_per_second": round(rate, 2),
        }


class _Session:
    """What one process added to a journal, and on what machine."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._before = dataclasses.replace(sampler.stats)
        device = sampler.model.device
        self.values: dict[str, Any] = {
            "started": _now(),
            "batch_size": sampler.config.batch_size,
            **describe_machine(device),
            "calibration": {"before": calibrate(device)},
        }

    def close(self) -> None:
        """Add what is known at the end. A session that was killed lacks it."""
        now, before = dataclasses.asdict(self._sampler.stats), dataclasses.asdict(self._before)
        self.values |= {name: now[name] - before[name] for name in now if name != "cache_bytes"}
        self.values["cache_bytes"] = now["cache_bytes"]
        calibration = self.values["calibration"]
        calibration["after"] = calibrate(self._sampler.model.device)
        calibration["drift"] = drift(calibration["before"], calibration["after"])
        self.values["finished"] = _now()


def _warn_of_mixture(sessions: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Seconds depend on these, and texts do as far as logits are rounded."""
    for name in ("device_name", "threads", "batch_size"):
        values = {str(session.get(name)) for session in sessions}
        if len(values) > 1:
            _log.warning(
                "%s mixes sessions with %s %s: its seconds are not those of one run, nor, in half precision, its texts",
                path,
                name,
                " and ".join(sorted(values)),
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
