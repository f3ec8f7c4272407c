r"""Token-mean losses on logits that are never held whole.

For rows of hidden states :math:`h` and a head :math:`W`, the loss :math:`\frac1n\sum_i f(W h_i)` is computed a
chunk of rows at a time. The gradients with respect to :math:`h` and :math:`W` are made in the same pass ("gradient in
forward", as in Liger kernels), so that one chunk of logits is alive at any time and nothing is computed twice. Row
losses are closed forms with closed-form gradients; all are in nats, computed in fp32, or fp64 when the logits are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch

# (logits of c rows (c, v), which rows) -> loss of each row (c,), gradient of each row's loss (c, v)
RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def labelled_rows(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return where predictions are scored, as indices into the flattened ``(b * t)``, and the targets, both ``(n,)``.

    The label at position t is predicted from position t - 1, so the mask is the labels' mask shifted left by one.
    """
    labels = batch["labels"]
    length = labels.shape[1]
    row, column = torch.nonzero(labels[:, 1:] != -100, as_tuple=True)
    index = row * length + column
    return index, labels.reshape(-1)[index + 1]


def head_logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Return ``hidden @ head.T`` of ``(c, d)`` and ``(v, d)``, multiplied in their type and cast to at least fp32."""
    logits = hidden @ head.T
    return logits if logits.dtype == torch.float64 else logits.float()


def mean_over_rows(hidden: Tensor, head: Tensor, row_loss: RowLoss, *, chunk_tokens: int) -> Tensor:
    """Mean over rows of ``row_loss`` on the logits ``hidden @ head.T``, differentiable once in ``hidden`` and ``head``.

    Args:
        hidden: ``(n, d)``. With no rows the result is 0 with zero gradients.
        head: ``(v, d)``.
        row_loss: See :data:`RowLoss`. It may keep the logits' memory, and is called once for each chunk.
        chunk_tokens: Rows at a time; about four fp32 tensors of ``chunk_tokens * v`` are alive.

    Raises:
        ValueError: A gradient in float16 is asked for: made before a scaler could scale it, it would underflow.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head = hidden.to(dtype), head.to(dtype)
    if hidden.dtype == torch.float16 and torch.is_grad_enabled():
        raise ValueError("training in float16 would lose small gradients; use precision bf16-mixed or 32-true")
    with torch.autocast(device, enabled=False):
        result: Tensor = _MeanOverRows.apply(hidden, head, row_loss, chunk_tokens, torch.is_grad_enabled())
    return result


class _MeanOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, row_loss: RowLoss, chunk_tokens: int, with_gradient: bool
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        of_hidden = torch.empty_like(hidden) if with_gradient and ctx.needs_input_grad[0] else None
        of_head = torch.zeros_like(head, dtype=total.dtype) if with_gradient and ctx.needs_input_grad[1] else None
        count = max(hidden.shape[0], 1)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, hidden.shape[0]))
            part = hidden[rows]
            losses, gradient = row_loss(head_logits(part, head), rows)
            total += losses.sum()
            if of_hidden is None and of_head is None:
                continue
            gradient = gradient.div_(count).to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(gradient, head, out=of_hidden[rows])
            if of_head is not None:
                if of_head.dtype == gradient.dtype:
                    of_head.addmm_(gradient.T, part)
                else:
                    of_head += gradient.T @ part
        ctx.save_for_backward(of_hidden, None if of_head is None else of_head.to(head.dtype))
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        of_hidden, of_head = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden * grad_output.to(of_hidden.dtype),
            None if of_head is None else of_head * grad_output.to(of_head.dtype),
            None,
            None,
            None,
        )


def cross_entropy_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`-\log p_s[y]` of ``(c, v)`` logits and ``(c,)`` targets; the gradient is :math:`p_s - e_y`."""
    scores = log_softmax(logits, dim=-1)
    target = targets.unsqueeze(1)
    losses = -scores.gather(1, target).squeeze(1)
    gradient = scores.exp_()
    gradient.scatter_add_(1, target, torch.full_like(target, -1, dtype=gradient.dtype))
    return losses, gradient


def forward_kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r""":math:`T^2\,KL(p_t \| p_s)` of ``(c, v)`` logits; the gradient is :math:`T(p_s - p_t)`.

    Both sides are divided by the temperature :math:`T`; the factor keeps gradients comparable across temperatures
    (Hinton et al., 2015, arXiv:1503.02531, section 2.1).
    """
    log_s, log_t = log_softmax(student / temperature, dim=-1), log_softmax(teacher / temperature, dim=-1)
    p_t = log_t.exp()
    losses = (p_t * (log_t - log_s)).sum(-1) * temperature**2
    return losses, log_s.exp_().sub_(p_t).mul_(temperature)


def reverse_kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r""":math:`T^2\,KL(p_s \| p_t)`; the gradient is :math:`T p_s(\log p_s - \log p_t - KL)`."""
    log_s, log_t = log_softmax(student / temperature, dim=-1), log_softmax(teacher / temperature, dim=-1)
    p_s = log_s.exp()
    difference = log_s.sub_(log_t)
    divergence = (p_s * difference).sum(-1)
    gradient = difference.sub_(divergence.unsqueeze(1)).mul_(p_s).mul_(temperature)
    return divergence * temperature**2, gradient


def jensen_shannon_rows(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    r""":math:`T^2[\beta KL(p_t \| m) + (1-\beta) KL(p_s \| m)]` with :math:`m = \beta p_t + (1-\beta) p_s`.

    The generalised Jensen-Shannon divergence of Agarwal et al. (2024), arXiv:2306.13649, equation 1; 0 < beta < 1.
    With :math:`g = (1-\beta)(\log p_s - \log m)` the gradient is :math:`T p_s(g - \sum p_s g)`.
    """
    log_s, log_t = log_softmax(student / temperature, dim=-1), log_softmax(teacher / temperature, dim=-1)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
    p_s = log_s.exp()
    g = (log_s - log_m).mul_(1 - beta)
    of_student = (p_s * g).sum(-1)
    of_teacher = (log_t.exp() * (log_t - log_m)).sum(-1) * beta
    return (of_teacher + of_student) * temperature**2, g.sub_(of_student.unsqueeze(1)).mul_(p_s).mul_(temperature)
