"""What to sample: the settings of a generation run, checked once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Settings of a sampling run.

    The text of a completion depends on the model, on its problem, on its sample index and on the fields listed by
    :meth:`identity`; it does not depend on ``num_samples`` and, up to the rounding of logits, on ``batch_size``, which
    only say how many are drawn and how many at a time (see :mod:`lit_thinkfast.generation.rng`). So samples can be
    added to a finished run.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token (greedy). 0.8 is the setting of arXiv:2502.20339.
        top_p: Nucleus sampling (arXiv:1904.09751): keep the smallest set of tokens whose probability reaches
            ``top_p``; 1 keeps all.
        max_new_tokens: Token budget of a completion, its end token included.
        num_samples: Completions a problem.
        batch_size: Rows decoded together. Filled with samples of one problem after the other.
        seed: Seed of the random numbers, 0 to 2**63 - 1.
        system: System prompt, or ``None`` for the prompt template's own.

    Raises:
        ValueError: A value out of its range.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    max_new_tokens: int = 512
    num_samples: int = 64
    batch_size: int = 64
    seed: int = 0
    system: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} is not in [0, inf); 0 is greedy, 0.8 is usual")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]; 1 keeps every token")
        for name in ("max_new_tokens", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1; use at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} is not in 0 .. 2**63 - 1; choose another")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature 0 is greedy, so num_samples {self.num_samples} would be equal texts; "
                "use num_samples=1 or a temperature above 0"
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the text of a completion. Runs that differ here must not be mixed."""
        values = dataclasses.asdict(self)
        return {name: values[name] for name in ("temperature", "top_p", "max_new_tokens", "seed", "system")}
