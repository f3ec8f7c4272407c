r"""Token-mean losses on logits that are never held whole.

For rows of hidden states :math:`h` and a head :math:`W`, the loss :math:`\frac1n\sum_i f(W h_i)` is computed a
chunk of rows at a time. The gradients with respect to :math:`h` and :math:`W` are made in the same pass ("gradient in
forward", as in Liger kernels), so that one chunk of logits is alive at any time and nothing is computed twice. Row
losses are closed forms with closed-form gradients; all are in nats, computed in fp32, or fp64 when the logits are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch

# (logits of c rows (c, v), which rows) -> loss of each row (c,), gradient of each row's loss (c, v)
RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
# (student's logits, teacher's logits), both (c, v), to be overwritten at will -> as a row loss
RowDivergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Positions = Literal["labels", "unshifted_labels", "all"]
IGNORE = -100
CACHED_ROWS = 8


def scored_rows(batch: PackedBatch, positions: Positions = "labels") -> tuple[Tensor, Tensor]:
    """Return where predictions are scored, as indices into the flattened ``(b * t)``, and the targets, both ``(n,)``.

    ``labels`` scores the predictions *of* labelled tokens: the label at position t is predicted from position t - 1, so
    the mask is the labels' mask shifted left by one. ``unshifted_labels`` scores the predictions made *at* labelled
    tokens: one token late, as M1 does. ``all`` scores every position of documents that have a label, prompts included;
    what remains of a row is padding. The target is -100 where the next token is of another document.
    """
    labels = batch["labels"]
    if positions == "labels":
        length = labels.shape[1]
        row, column = torch.nonzero(labels[:, 1:] != IGNORE, as_tuple=True)
        index = row * length + column
        return index, labels.reshape(-1)[index + 1]
    scored = labels != IGNORE if positions == "unshifted_labels" else labelled_documents(batch)
    index = torch.nonzero(scored.flatten()).squeeze(1)
    targets = torch.full_like(labels, IGNORE)
    same = batch["seq_idx"][:, 1:] == batch["seq_idx"][:, :-1]
    targets[:, :-1] = torch.where(same, batch["input_ids"][:, 1:], IGNORE)
    return index, targets.reshape(-1)[index]


def labelled_rows(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return :func:`scored_rows` of labelled tokens."""
    return scored_rows(batch, "labels")


def labelled_documents(batch: PackedBatch) -> Tensor:
    """Boolean ``(b, t)``: tokens of documents with at least one label; what remains is padding."""
    labelled, document = batch["labels"] != IGNORE, batch["seq_idx"].long()
    any_label = torch.zeros_like(labelled, dtype=torch.int8).scatter_reduce(
        1, document, labelled.to(torch.int8), reduce="amax"
    )
    return any_label.gather(1, document).bool()


def head_logits(hidden: Tensor, head: Tensor, *, memory: Tensor | None = None) -> Tensor:
    """Return ``hidden @ head.T`` of ``(c, d)`` and ``(v, d)``, multiplied in their type and cast to at least fp32.

    Args:
        hidden: ``(c, d)``.
        head: ``(v, d)``.
        memory: At least ``(c, v)`` of their type, to be written to.
    """
    logits = hidden @ head.T if memory is None else torch.mm(hidden, head.T, out=memory[: len(hidden)])
    return logits if logits.dtype == torch.float64 else logits.float()


def default_chunk(device_type: str, rows: int) -> int:
    """Return how many of ``rows`` rows of logits are held at a time where nobody said.

    On a CPU, products of more than 128 rows are hardly faster, and a chunk should take little beside a few hundred rows
    held whole. An accelerator would spend its time on adding up gradients of the head.
    """
    return min(128, max(32, 16 * math.ceil(rows / 192))) if device_type == "cpu" else 1024


def as_autocast(x: Tensor) -> Tensor:
    """Return ``x`` in the type in which autocast multiplies, if it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def mean_over_rows(
    hidden: Tensor, head: Tensor, row_loss: RowLoss, *, divisor: int | None = None, chunk_tokens: int | None = None
) -> Tensor:
    """Mean over rows of ``row_loss`` on the logits ``hidden @ head.T``, with gradients for ``hidden`` and ``head``.

    Gradients can be taken once: they are scaled where they lie, and torch refuses a second backward pass.

    Args:
        hidden: ``(n, d)``. With no rows the result is 0 with zero gradients.
        head: ``(v, d)``.
        row_loss: See :data:`RowLoss`. The logits' memory is its own, to be overwritten. It is called once a chunk.
        divisor: What the sum over rows is divided by; their number by default.
        chunk_tokens: Rows at a time; two to three fp32 tensors of ``chunk_tokens * v`` are alive. By default a twelfth
            of the rows, 32 to 128, on a CPU, and 1024 elsewhere.

    Raises:
        ValueError: A gradient in float16 is asked for: made before a scaler could scale it, it would underflow.
    """
    device = hidden.device.type
    hidden, head = as_autocast(hidden), as_autocast(head)
    if hidden.dtype == torch.float16 and torch.is_grad_enabled():
        raise ValueError("training in float16 would lose small gradients; use precision bf16-mixed or 32-true")
    chunk_tokens = chunk_tokens or default_chunk(device, hidden.shape[0])
    divisor = max(hidden.shape[0] if divisor is None else divisor, 1)
    with torch.autocast(device, enabled=False):
        result: Tensor = _MeanOverRows.apply(hidden, head, row_loss, divisor, chunk_tokens, torch.is_grad_enabled())
    return result


class _MeanOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, row_loss: RowLoss, divisor: int, chunk_tokens: int, with_gradient: bool
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        of_hidden = torch.empty_like(hidden) if with_gradient and ctx.needs_input_grad[0] else None
        of_head = torch.zeros_like(head, dtype=total.dtype) if with_gradient and ctx.needs_input_grad[1] else None
        memory = hidden.new_empty(min(chunk_tokens, hidden.shape[0]), head.shape[0])
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, hidden.shape[0]))
            part = hidden[rows]
            losses, gradient = row_loss(head_logits(part, head, memory=memory), rows)
            total += losses.sum()
            gradient = gradient.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(gradient, head, out=of_hidden[rows])
            if of_head is not None:
                if of_head.dtype == gradient.dtype:
                    of_head.addmm_(gradient.T, part)
                else:
                    of_head += gradient.T @ part
            del losses, gradient  # before the next chunk needs memory
        ctx.divisor = divisor
        ctx.save_for_backward(of_hidden, None if of_head is None else of_head.to(head.dtype))
        return total / divisor

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        of_hidden, of_head = ctx.saved_tensors
        scale = grad_output / ctx.divisor
        return (
            None if of_hidden is None else of_hidden.mul_(scale),
            None if of_head is None else of_head.mul_(scale),
            None,
            None,
            None,
            None,
        )


def against(hidden: Tensor, head: Tensor, divergence: RowDivergence) -> RowLoss:
    """Return the row loss that compares with a teacher's logits.

    Args:
        hidden: ``(n, d)``, the teacher's, row by row those of the student's.
        head: ``(v, d)``.
        divergence: See :data:`RowDivergence`.
    """
    memory: Tensor | None = None

    def row_loss(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        nonlocal memory
        if memory is None:  # the first chunk is the largest
            memory = hidden.new_empty(logits.shape)
        teacher = head_logits(hidden[rows], head, memory=memory)
        if logits.device.type != "cpu":
            return divergence(logits, teacher)
        losses = []
        # a few rows of both stay in a CPU's cache from the first operation to the last
        for ours, theirs in zip(logits.split(CACHED_ROWS), teacher.split(CACHED_ROWS), strict=True):
            values, gradient = divergence(ours, theirs)
            ours.copy_(gradient)
            losses.append(values)
        return torch.cat(losses), logits

    return row_loss


def cross_entropy_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`-\log p_s[y]` of ``(c, v)`` logits and ``(c,)`` targets; the gradient is :math:`p_s - e_y`."""
    scores = log_softmax(logits, dim=-1)
    target = targets.unsqueeze(1)
    losses = -scores.gather(1, target).squeeze(1)
    gradient = scores.exp_()
    gradient.scatter_add_(1, target, torch.full_like(target, -1, dtype=gradient.dtype))
    return losses, gradient


def forward_kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r""":math:`T^2\,KL(p_t \| p_s)` of ``(c, v)`` logits, which are overwritten; the gradient is :math:`T(p_s - p_t)`.

    Both sides are divided by the temperature :math:`T`; the factor keeps gradients comparable across temperatures
    (Hinton et al., 2015, arXiv:1503.02531, section 2.1).
    """
    log_s, log_t, spare = _log_probs(student, teacher, temperature)
    p_t = torch.exp(log_t, out=spare)
    losses = log_t.sub_(log_s).mul_(p_t).sum(-1).mul_(temperature**2)
    return losses, log_s.exp_().sub_(p_t).mul_(temperature)


def reverse_kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r""":math:`T^2\,KL(p_s \| p_t)`; the gradient is :math:`T p_s(\log p_s - \log p_t - KL)`."""
    log_s, log_t, spare = _log_probs(student, teacher, temperature)
    p_s = torch.exp(log_s, out=spare)
    difference = log_s.sub_(log_t)
    divergence = torch.mul(p_s, difference, out=log_t).sum(-1)
    gradient = difference.sub_(divergence.unsqueeze(1)).mul_(p_s).mul_(temperature)
    return divergence.mul_(temperature**2), gradient


def jensen_shannon_rows(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    r""":math:`T^2[\beta KL(p_t \| m) + (1-\beta) KL(p_s \| m)]` with :math:`m = \beta p_t + (1-\beta) p_s`.

    The generalised Jensen-Shannon divergence of Agarwal et al. (2024), arXiv:2306.13649, equation 1; 0 < beta < 1.
    With :math:`g = (1-\beta)(\log p_s - \log m)` the gradient is :math:`T p_s(g - \sum p_s g)`.
    """
    log_s, log_t, spare = _log_probs(student, teacher, temperature)
    log_m = _log_mixture(log_t, log_s, beta, spare)
    of_teacher = torch.sub(log_t, log_m, out=spare).mul_(log_t.exp_()).sum(-1) * beta
    p_s = torch.exp(log_s, out=spare)
    g = log_s.sub_(log_m).mul_(1 - beta)
    of_student = torch.mul(p_s, g, out=log_m).sum(-1)
    return (of_teacher + of_student) * temperature**2, g.sub_(of_student.unsqueeze(1)).mul_(p_s).mul_(temperature)


def skew_kl_rows(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, alpha: float = 0.1
) -> tuple[Tensor, Tensor]:
    r""":math:`T^2\,KL(p_t \| m)` with :math:`m = \alpha p_t + (1-\alpha) p_s`.

    The skew KL divergence of Ko et al. (2024), arXiv:2402.03898; 0 < alpha < 1. With
    :math:`w = (1-\alpha) p_s p_t / m` the gradient is :math:`T(p_s \sum w - w)`.
    """
    log_s, log_t, spare = _log_probs(student, teacher, temperature)
    log_m = _log_mixture(log_t, log_s, alpha, spare)
    ratio = torch.sub(log_t, log_m, out=log_m)
    losses = torch.mul(log_t.exp_(), ratio, out=spare).sum(-1).mul_(temperature**2)
    p_s = log_s.exp_()
    w = ratio.exp_().mul_(p_s).mul_(1 - alpha)
    return losses, p_s.mul_(w.sum(-1, keepdim=True)).sub_(w).mul_(temperature)


def top_k_of(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities and ids of the ``k`` likeliest tokens, ``(c, k)`` each, and what the others have, (c,).

    Args:
        logits: ``(c, v)``; overwritten.
        k: At most v.
    """
    log_probs = log_softmax(logits, dim=-1)
    top, index = log_probs.topk(k, dim=-1)
    rest = torch.exp(log_probs, out=logits).scatter_(1, index, 0.0).sum(-1)
    return top, index, rest


def top_k_kl_rows(student: Tensor, index: Tensor, log_probs: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`KL(p_t \| p_s)` of a teacher of whom k tokens are known, all others lumped: a bound below that of all.

    :math:`\sum_{v \in K} p_t(v) \log\frac{p_t(v)}{p_s(v)} + r_t \log\frac{r_t}{r_s}`, where :math:`r` is the
    probability outside of :math:`K`. The gradient is :math:`p_s - p_t` inside and :math:`p_s(1 - r_t / r_s)` outside.

    Args:
        student: ``(c, v)`` logits; overwritten.
        index: ``(c, k)``, ids of the tokens.
        log_probs: ``(c, k)``, their log-probabilities for the teacher.
        rest: ``(c,)``, what its other tokens have.
    """
    log_s = log_softmax(student, dim=-1)
    top_s, p_t = log_s.gather(1, index), log_probs.exp()
    p_s = torch.exp(log_s, out=student).scatter_(1, index, 0.0)
    rest_s = p_s.sum(-1).clamp_(min=torch.finfo(p_s.dtype).tiny)
    losses = (p_t * (log_probs - top_s)).sum(-1) + torch.xlogy(rest, rest) - rest * rest_s.log()
    gradient = p_s.mul_((1 - rest / rest_s).unsqueeze(1)).scatter_(1, index, top_s.exp_().sub_(p_t))
    return losses, gradient


def _log_probs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of both, and memory of their shape to write to: three tensors, two of them the given."""
    if temperature != 1:
        student, teacher = student.div_(temperature), teacher.div_(temperature)
    log_s = log_softmax(student, dim=-1)
    return log_s, torch.log_softmax(teacher, dim=-1, out=student), teacher


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float, spare: Tensor) -> Tensor:
    """Return the log of ``weight * p + (1 - weight) * q``; ``spare`` is overwritten."""
    mixture = log_q + math.log1p(-weight)
    return torch.logaddexp(torch.add(log_p, math.log(weight), out=spare), mixture, out=mixture)
