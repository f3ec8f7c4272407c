"""Random numbers that are a function of (seed, problem, sample, position), and of nothing else.

A counter-based generator has no state to carry along: the number for the 17th token of sample 5 of a problem is
computed from these facts alone. So the numbers of a completion do not depend on which rows share its batch, on the
order of the problems, on the device, or on an interruption, and whole blocks of numbers come from a few vectorised
integer operations. The logits that they are compared with do depend on batch and device in their last bits: in float32
that hardly ever picks another token, in half precision it often does.

The generator is Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
Key: the seed (64 bits). Counter: a hash of the problem's id (64 bits), the sample (32), the position (32).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def problem_key(problem_id: str) -> int:
    """Return a 64-bit hash of the id, signed as torch's int64 is, the same on every machine.

    >>> problem_key("gsm8k/0") == problem_key("gsm8k/0") != problem_key("gsm8k/1")
    True
    """
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=8).digest(), "little", signed=True)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox-4x32-10 for each counter.

    Args:
        counter: Four int64 tensors with values below 2**32 that broadcast against each other.
        key: Two words below 2**32, or int64 tensors of them that broadcast likewise.

    Returns:
        Four int64 tensors of the broadcast shape, with values below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 x 32 -> 64 bits: int64 wraps around, which leaves the bits of the unsigned product
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _WORD) ^ c1 ^ k0,
            second & _WORD,
            ((first >> 32) & _WORD) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniforms(problems: Tensor, samples: Tensor, positions: Tensor, *, seed: int | Tensor) -> Tensor:
    """Return uniform numbers in [0, 1), one for each (problem, sample, position).

    Args:
        problems: int64 keys from :func:`problem_key`.
        samples: int64 sample indices, 0 to 2**32 - 1.
        positions: int64 indices of the generated token, from 0. The three broadcast against each other.
        seed: 0 to 2**63 - 1, or an int64 tensor that broadcasts likewise.

    Returns:
        float64 of the broadcast shape, multiples of 2**-53.

    >>> rows = torch.tensor([[problem_key("a")], [problem_key("b")]])
    >>> uniforms(rows, torch.tensor(0), torch.arange(3), seed=0).shape
    torch.Size([2, 3])
    """
    counter = (problems & _WORD, (problems >> 32) & _WORD, samples, positions)
    high, low, _, _ = philox(counter, (seed & _WORD, seed >> 32))
    bits = ((high >> 5) << 26) | (low >> 6)
    return bits.to(torch.float64) * 2.0**-53
