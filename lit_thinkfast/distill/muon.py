"""Muon for weight matrices, AdamW for everything else, as one optimiser.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
matrix with orthonormal rows or columns, found by a Newton-Schulz iteration. Small models learn to look things up in
their prompt in fewer tokens with it. ``torch.optim.Muon`` iterates in bfloat16 and one matrix at a time, which is slow
on a CPU, and takes no other parameters; here matrices of one shape are orthogonalised together, in their own
precision.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration of Jordan et al.: steep at zero, singular values end between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """Return matrices ``(batch, rows, columns)`` with all singular values moved near one, their vectors kept.

    >>> u = orthogonalize(torch.diag(torch.tensor([3.0, 0.5]))[None])[0]
    >>> bool((torch.linalg.svdvals(u) - 1).abs().max() < 0.35)
    True
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon on the groups that :func:`~lit_thinkfast.distill.optim.parameter_groups` marks as matrices, else AdamW.

    Args:
        params: Parameters or groups; a group with ``matrix=True`` holds weight matrices of hidden layers only.
        lr: Learning rate of AdamW. That of Muon is ``lr * matrix_lr_scale * max(1, rows / columns) ** 0.5``.
        matrix_lr_scale: How much faster Muon's matrices learn: their updates have unit spectral norm.
        momentum: Of Muon.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Decoupled, for groups that do not set their own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        matrix_lr_scale: float = 5.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        if lr < 0 or matrix_lr_scale < 0:
            raise ValueError(f"learning rates must not be negative, got lr={lr}, matrix_lr_scale={matrix_lr_scale}")
        defaults = {
            "lr": lr,
            "matrix_lr_scale": matrix_lr_scale,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "matrix": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["matrix"]:
                self._step_matrices(parameters, group)
            else:
                self._step_adamw(parameters, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's look-ahead
            by_shape.setdefault(tuple(p.shape), []).append((p, update))
        for (rows, columns), members in by_shape.items():
            updates = orthogonalize(torch.stack([update for _, update in members]))
            lr = group["lr"] * group["matrix_lr_scale"]
            for (p, _), update in zip(members, updates, strict=True):
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - beta1)
            state["square"].lerp_(p.grad * p.grad, 1 - beta2)
            mean = state["mean"] / (1 - beta1 ** state["step"])
            root = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            p.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mean, root, value=-group["lr"])
