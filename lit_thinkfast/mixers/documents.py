"""Where documents begin in packed rows."""

from __future__ import annotations

import torch
from torch import Tensor


def document_starts(seq_idx: Tensor) -> Tensor:
    """Return (b, t) bool: does a document start here? The first token of a row does not count."""
    starts = torch.zeros_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return starts
