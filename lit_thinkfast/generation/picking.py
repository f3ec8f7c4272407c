"""From logits to tokens, all rows at once: temperature, nucleus, inverse of the cumulative distribution."""

from __future__ import annotations

import torch
from torch import Tensor

# Tokens tried before a full sort of a large vocabulary; a nucleus is rarely wider
_SHORT_LIST = 256


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return ``probabilities`` with zeros outside the nucleus, not renormalised.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p`` (Holtzman et al.,
    arXiv:1904.09751, sec. 3.1). Tokens exactly as likely as its last one are kept too, so that the result does not
    depend on how a sort orders ties.

    Args:
        probabilities: ``(rows, vocabulary)``, each row summing to 1.
        top_p: In (0, 1].

    >>> nucleus(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.7)
    tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    """
    if top_p >= 1:
        return probabilities
    vocabulary = probabilities.shape[-1]
    for width in (_SHORT_LIST, vocabulary):
        if width < vocabulary:
            ordered = probabilities.topk(width, dim=-1).values
        else:
            ordered = probabilities.sort(dim=-1, descending=True).values
        cumulative = ordered.cumsum(-1)
        if width >= vocabulary or bool((cumulative[:, -1] >= top_p).all()):
            break
    size = (cumulative - ordered < top_p).sum(-1, keepdim=True)
    threshold = ordered.gather(-1, size - 1)
    return probabilities.masked_fill(probabilities < threshold, 0)


def pick_tokens(logits: Tensor, uniform: Tensor | None, *, temperature: float, top_p: float = 1.0) -> Tensor:
    """Draw one token a row.

    Args:
        logits: ``(rows, vocabulary)``. Half precision is computed in float32, float64 stays.
        uniform: ``(rows,)`` in [0, 1): a row's token is the first whose cumulative probability, in the order of the
            vocabulary, exceeds it. Not used, and may be ``None``, when ``temperature`` is 0.
        temperature: Divides the logits; 0 takes the likeliest token, the first of equals.
        top_p: See :func:`nucleus`.

    Returns:
        int64 ``(rows,)``.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if uniform is None:
        raise ValueError(f"temperature {temperature} needs one uniform number a row; pass them or use temperature 0")
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    cumulative = nucleus(torch.softmax(logits / temperature, dim=-1), top_p).cumsum(-1)
    total = cumulative[:, -1:]
    # rounding to float32 must not reach 1, or a token of probability 0 behind the last possible one could be drawn
    below_one = uniform.to(cumulative.dtype).clamp(max=1 - torch.finfo(cumulative.dtype).eps / 2)
    token = torch.searchsorted(cumulative, below_one.unsqueeze(-1) * total, right=True)
    return token.squeeze(-1).clamp_(max=logits.shape[-1] - 1)
