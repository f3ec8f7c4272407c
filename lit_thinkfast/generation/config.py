"""What to sample: the settings of a generation run, checked once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Backend = Literal["auto", "eager", "compile", "cuda_graphs"]

_ALWAYS_NAMED = ("temperature", "top_p", "max_new_tokens", "seed", "system")
_NAMED_IF_SET = ("top_k", "min_p", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Settings of a sampling run.

    The text of a completion depends on the model, on its problem, on its sample index and on the fields listed by
    :meth:`identity`; it does not depend on ``num_samples``. ``batch_size``, ``memory_budget_gib``, ``prefill_chunk``
    and ``backend`` say how the work is done and change the logits by their rounding only (see
    :mod:`lit_thinkfast.generation.rng` for when that is seen). So samples can be added to a finished run, on another
    machine too.

    Filters come in this order: temperature, ``top_k``, ``top_p``, ``min_p``. Greedy rows use none.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token (greedy). 0.8 is the setting of arXiv:2502.20339.
        top_p: Nucleus sampling (arXiv:1904.09751): keep the smallest set of tokens whose probability reaches
            ``top_p``; 1 keeps all.
        top_k: Keep the ``top_k`` likeliest tokens (arXiv:1805.04833, sec. 5.1); 0 keeps all.
        min_p: Keep the tokens at least ``min_p`` times as likely as the likeliest (arXiv:2407.01082); 0 keeps all.
        stop: Texts that end a completion as soon as they are written, and that are cut off it with all that follows.
            A list will do.
        max_new_tokens: Token budget of a completion, its end token included.
        num_samples: Completions a problem.
        batch_size: Rows decoded together, at most. Filled with samples of one problem after the other.
        memory_budget_gib: Memory that generating may take, in GiB; as many of the ``batch_size`` rows are decoded
            together as fit. ``None``: all of them, whatever they take.
        prefill_chunk: Tokens of a prompt encoded at a time, which bounds the memory that a long prompt takes.
        backend: How the decode step is run: ``eager``, ``compile`` (torch.compile), ``cuda_graphs``, or ``auto`` for
            what suits the device.
        seed: Seed of the random numbers, 0 to 2**63 - 1.
        system: System prompt, or ``None`` for the prompt template's own.

    Raises:
        ValueError: A value out of its range.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 512
    num_samples: int = 64
    batch_size: int = 64
    memory_budget_gib: float | None = None
    prefill_chunk: int = 512
    backend: Backend = "auto"
    seed: int = 0
    system: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} is not in [0, inf); 0 is greedy, 0.8 is usual")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]; 1 keeps every token")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is below 0; 0 keeps every token")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p {self.min_p} is not in [0, 1); 0 keeps every token")
        object.__setattr__(self, "stop", check_stop_strings(self.stop))  # files give lists
        for name in ("max_new_tokens", "num_samples", "batch_size", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1; use at least 1")
        budget = self.memory_budget_gib
        if budget is not None and not (budget > 0 and math.isfinite(budget)):
            raise ValueError(f"memory_budget_gib {budget} is not in (0, inf); use some GiB, or None for no limit")
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend {self.backend!r} is not known; use one of {', '.join(get_args(Backend))}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} is not in 0 .. 2**63 - 1; choose another")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature 0 is greedy, so num_samples {self.num_samples} would be equal texts; "
                "use num_samples=1 or a temperature above 0"
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the text of a completion. Runs that differ here must not be mixed.

        Plain JSON: ``stop`` is a list.
        """
        values = dataclasses.asdict(self) | {"stop": list(self.stop)}
        identity = {name: values[name] for name in _ALWAYS_NAMED}
        # Named only where they were set: the journal of a run from before these fields existed does not name them, and
        # such a run can go on
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return identity | {name: values[name] for name in _NAMED_IF_SET if getattr(self, name) != defaults[name]}


def check_stop_strings(stops: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings as a tuple.

    Raises:
        ValueError: Not a list of texts, or one that is empty or holds the replacement character U+FFFD: that stands
            for bytes which are no character yet, and may become one.

    >>> check_stop_strings(["Question:"])
    ('Question:',)
    """
    if isinstance(stops, str):
        raise ValueError(f"stop {stops!r} is a string where a list of strings belongs; use [{stops!r}]")
    for stop in stops:
        if not isinstance(stop, str) or not stop or "\ufffd" in stop:
            raise ValueError(f"stop {stop!r} is not a text of at least one character without U+FFFD; leave it out")
    return tuple(stops)
