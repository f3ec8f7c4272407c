"""What a decode step must take on a machine: the bytes it has to move, and the operations it has to do.

A step of B rows that have T tokens each reads all weights once, reads keys and values of all tokens, and reads and
writes all recurrent states; it multiplies every weight with B rows. With everything overlapped, nothing read twice and
no gaps between operations it takes the longer of the two times (S. Williams et al., Communications of the ACM 52(4),
2009)::

    bytes(B, T) = W + B T kappa + 2 B S
    flops(B, T) = B (2 P + 4 H p T L_attention + 6 entries of the states)
    seconds = max(bytes / bandwidth, flops / rate)

W bytes of weights that a step reads, kappa of keys and values a token, S of states a row; P parameters but for an input
embedding that is only looked up. Left out are activations, which stay in caches, and the drawing of tokens. No
implementation is faster, so that the predicted over the measured time is the fraction reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lit_thinkfast.generation.memory import model_bytes
from lit_thinkfast.mixers import ATTENTION, mixer_class

if TYPE_CHECKING:
    from lit_thinkfast.models.configuration import HybridConfig


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine can do at most.

    Attributes:
        name: For people.
        bytes_per_second: Of memory, read and written.
        flops_per_second: Of matrix products, in the type of the model.
    """

    name: str
    bytes_per_second: float
    flops_per_second: float

    @classmethod
    def calibrated(
        cls, calibration: Mapping[str, float], *, dtype: torch.dtype = torch.float32, name: str = "calibrated"
    ) -> Machine:
        """Return the machine that :func:`~lit_thinkfast.generation.calibration.calibrate` has measured.

        Its bandwidth is the larger of two rates: copying, and reading a weight for one row. On many CPUs a copy is the
        slower one, since what is overwritten is read first.

        Args:
            calibration: Measured; those of older files, without the product of one row, will do.
            dtype: In which it was measured.
            name: For people.
        """
        copied = calibration["copy_gb_per_second"]
        read = calibration.get("gemm_m1_gflops", 0.0) / 2 * dtype.itemsize
        return cls(name, 1e9 * max(copied, read), 1e9 * calibration["gemm_gflops"])


MACHINES = {
    "a100": Machine("A100 80 GB", 2.04e12, 312e12),
    "h100": Machine("H100 SXM 80 GB", 3.35e12, 989e12),
}
"""Cards by their data sheets, in bfloat16, dense."""


@dataclass(frozen=True, slots=True)
class DecodeCosts:
    """What one step of a model costs.

    Attributes:
        weights: Bytes of weights that a step reads, whatever the batch: W.
        token: Bytes of keys and values of one token, in the layers that see all tokens.
        window_token: The same in the layers that see the last ``window``.
        window: Tokens that these see.
        row: Bytes of a row's states, convolution inputs among them: S.
        flops: Operations for a row, but for attention.
        token_flops: Operations for a row and each token that it has, in the layers that see all.
        window_flops: The same in the layers that see the last ``window``.
    """

    weights: int
    token: int
    row: int
    flops: float
    token_flops: float
    window_token: int = 0
    window_flops: float = 0.0
    window: int = 0

    @property
    def kappa(self) -> int:
        """Bytes of keys and values that a further token adds to a short text."""
        return self.token + self.window_token


def decode_costs(
    config: HybridConfig, *, dtype: torch.dtype = torch.float32, state_dtype: torch.dtype | None = None
) -> DecodeCosts:
    """Return what a step of a model costs; nothing of its size is allocated.

    Args:
        config: Its configuration, with any mixers.
        dtype: Of weights, keys, values and convolution inputs.
        state_dtype: Of recurrent states; by default float32 at least.
    """
    found = model_bytes(config, dtype=dtype, state_dtype=state_dtype)
    # In a type of one byte, and states too, bytes are parameters.
    # Beside float64 nothing is wider, so that bytes count parameters.
    parameters = model_bytes(config, dtype=torch.float64).read_weights / torch.float64.itemsize
    mixers, kinds = config.layer_mixers or [], config.layer_types or []
    entries = sum(
        math.prod(mixer_class(m).state_shapes(config, config.options_of(m)).state) for m in mixers if m != ATTENTION
    )
    layers = len(config.attention_layers)
    sliding = kinds.count("sliding_attention") if config.sliding_window else 0
    attention = 4.0 * config.num_attention_heads * (config.head_dim or 0)
    each = found.token // layers if layers else 0
    return DecodeCosts(
        weights=found.read_weights,
        token=each * (layers - sliding),
        row=found.conv + found.state,
        flops=2.0 * parameters + 6.0 * entries,
        token_flops=attention * (layers - sliding),
        window_token=each * sliding,
        window_flops=attention * sliding,
        window=(config.sliding_window or 0) if sliding else 0,
    )


def step_bytes(costs: DecodeCosts, *, batch: int, length: float) -> float:
    """Return the bytes that a step of ``batch`` rows of ``length`` tokens, the new one included, has to move."""
    return costs.weights + batch * row_bytes(costs, length=length)


def row_bytes(costs: DecodeCosts, *, length: float) -> float:
    """Return the bytes that a step moves for one row, weights aside."""
    return costs.token * length + costs.window_token * min(length, costs.window) + 2 * costs.row


def step_flops(costs: DecodeCosts, *, batch: int, length: float) -> float:
    """Return the operations of a step. A multiply-add is two."""
    return batch * (costs.flops + costs.token_flops * length + costs.window_flops * min(length, costs.window))


def step_seconds(costs: DecodeCosts, *, batch: int, length: float, machine: Machine) -> float:
    """Return the least seconds that a step can take."""
    moved = step_bytes(costs, batch=batch, length=length) / machine.bytes_per_second
    return max(moved, step_flops(costs, batch=batch, length=length) / machine.flops_per_second)


def decode_seconds(costs: DecodeCosts, *, batch: int, prompt: int, steps: int, machine: Machine) -> float:
    """Return the least seconds for ``steps`` steps of rows that have ``prompt`` tokens before the first of them."""
    lengths = range(prompt + 1, prompt + steps + 1)
    return math.fsum(step_seconds(costs, batch=batch, length=n, machine=machine) for n in lengths)


def prefill_seconds(costs: DecodeCosts, *, batch: int, prompt: int, machine: Machine) -> float:
    """Return the least seconds for encoding ``batch`` prompts together: weights read once, keys and values written."""
    moved = step_bytes(costs, batch=batch, length=prompt) / machine.bytes_per_second
    flops = prompt * step_flops(costs, batch=batch, length=prompt / 2)  # a token sees half of the prompt on average
    return max(moved, flops / machine.flops_per_second)


def crossover_length(student: DecodeCosts, teacher: DecodeCosts) -> float:
    """Return the length from which on a row of the student moves fewer bytes than one of the teacher, weights aside.

    ``T* = 2 (S_student - S_teacher) / (kappa_teacher - kappa_student)``; 0 where it always does, infinite where it
    never does. Sliding windows are taken as not yet full.
    """
    more_states, fewer_tokens = 2 * (student.row - teacher.row), teacher.kappa - student.kappa
    if more_states <= 0 and fewer_tokens >= 0:
        return 0.0
    return more_states / fewer_tokens if fewer_tokens > 0 else math.inf


def crossover_batch(student: DecodeCosts, teacher: DecodeCosts, *, length: float) -> float:
    """Return the batch from which on a step of the student moves fewer bytes than one of the teacher.

    Its rows save bytes at this length, its weights may cost more; infinite where the rows save nothing.
    """
    more_weights = student.weights - teacher.weights
    saved = row_bytes(teacher, length=length) - row_bytes(student, length=length)
    if more_weights <= 0 <= saved:
        return 0.0
    return more_weights / saved if saved > 0 else math.inf
