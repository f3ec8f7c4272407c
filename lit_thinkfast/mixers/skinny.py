"""Products of a weight with the few rows of a decode step.

A step multiplies every weight by as many rows as there are sequences: a product with one short side. On a CPU BLAS
packs the operand that it takes for the large one, and that is the weight where rows come first. Written with the weight
first, the rows are packed instead; for a handful of rows it is better still to cut the weight into small pieces, which
BLAS does not pack at all. Both are up to 1.5 times as fast (docs/results.md). With the weight first the result lies in
memory feature by feature; what works elementwise or along features takes it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ONE_BY_ONE = 3  # rows up to which a product is a few vector products
_IN_PIECES = 11  # rows up to which pieces of the weight are faster than the weight first
_PIECES = (48, 64, 32, 96, 103, 16)  # sizes tried, in this order; 103 divides the projections of a Mamba-2 with 9 heads


def skinny_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """Return ``linear(x)``, as a product that suits few rows where ``x`` is (b, d).

    Anything but a plain ``nn.Linear`` on a CPU, one that is wrapped by an adapter or watched by a hook for example, or
    whose ``forward`` was replaced, is called as it is.
    """
    if (
        type(linear) is not nn.Linear
        or x.ndim != 2
        or x.device.type != "cpu"
        or len(x) <= _ONE_BY_ONE
        or x.dtype not in (torch.float32, torch.float64)
        or linear._forward_hooks
        or linear._forward_pre_hooks
        or "forward" in linear.__dict__
        or torch.is_autocast_enabled("cpu")
    ):
        out: Tensor = linear(x)
        return out
    weight, rows = linear.weight, len(x)
    piece = next((size for size in _PIECES if len(weight) % size == 0), None) if rows <= _IN_PIECES else None
    if piece is not None:
        pieces = weight.view(-1, piece, weight.shape[1])
        out = torch.bmm(x.expand(len(pieces), -1, -1), pieces.mT).transpose(0, 1).reshape(rows, -1)
        return out if linear.bias is None else out.add_(linear.bias)
    product = torch.mm(weight, x.t())
    return (product if linear.bias is None else product.add_(linear.bias[:, None])).t()
