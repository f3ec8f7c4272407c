"""Distance between two heads' mixing matrices, from a few rows at a time, with its gradient made on the way.

The un-squared Frobenius norm of S - A is the root of a sum over blocks of rows, and its gradient is that of half the
sum of squares divided by the norm: one number a head. So each block is formed once, its gradients are added up, and
the division waits for the backward pass. Memory is some twenty blocks of rows, and O(t) for gradients, never
(b, h, t, t).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_thinkfast.mixers.matrices import MixingMatrix


def frobenius_distance(
    student: MixingMatrix,
    teacher: MixingMatrix,
    *,
    keep: Tensor | None = None,
    over_heads: bool = False,
    query_block: int = 128,
) -> Tensor:
    """Return the Frobenius norm of the difference of two matrices, for each head.

    Args:
        student: Its gradient is taken.
        teacher: Of the same shape.
        keep: (b, t) bool, rows that count; all by default.
        over_heads: Compare the means of the matrices over heads, whose numbers may then differ.
        query_block: Rows at a time.

    Returns:
        (b, h), or (b, 1) with ``over_heads``, in float32 at least. Where the matrices are equal the gradient is zero.
    """
    parts = student.parts if torch.is_grad_enabled() else tuple(part.detach() for part in student.parts)
    with torch.autocast(parts[0].device.type, enabled=False):
        result: Tensor = _Frobenius.apply(student, teacher, keep, over_heads, query_block, *parts)
    return result


class _Frobenius(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: MixingMatrix,
        teacher: MixingMatrix,
        keep: Tensor | None,
        over_heads: bool,
        query_block: int,
        *parts: Tensor,
    ) -> Tensor:
        batch, heads, time = student.shape
        squares = torch.zeros(batch, 1 if over_heads else heads, dtype=parts[0].dtype, device=parts[0].device)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[5:]) if needed]
        gradients = {i: torch.zeros_like(parts[i]) for i in wanted}
        for start in range(0, time, query_block):
            stop = min(start + query_block, time)
            target = teacher.rows(start, stop)
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_(i in gradients) for i, part in enumerate(parts)]
                found = student.replaced(tuple(leaves)).rows(start, stop)
                if over_heads:
                    target, found = target.mean(1, keepdim=True), found.mean(1, keepdim=True)
                difference = found - target
                if keep is not None:
                    difference = difference.masked_fill(~keep[:, None, start:stop, None], 0)
                square = difference.square().sum((-1, -2))
                if wanted:
                    new = torch.autograd.grad(square.sum() / 2, [leaves[i] for i in wanted])
                    for i, gradient in zip(wanted, new, strict=True):
                        gradients[i] += gradient
            squares += square.detach()
        norms = squares.sqrt()
        ctx.save_for_backward(norms, *gradients.values())
        ctx.wanted = wanted
        return norms

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        norms, *gradients = ctx.saved_tensors
        scale = torch.where(norms > 0, grad_output / norms, 0)
        returned: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, gradient in zip(ctx.wanted, gradients, strict=True):
            returned[5 + i] = gradient * scale.view(*scale.shape, *[1] * (gradient.ndim - 2))
        return tuple(returned)
