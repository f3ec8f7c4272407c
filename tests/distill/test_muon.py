"""Muon against singular value decomposition, its other half against torch's AdamW."""

import pytest
import torch

from lit_thinkfast.distill.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 12), (2, 12, 5)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    made = u.mT @ orthogonalize(matrices, steps=5) @ vh.mT
    diagonal = torch.diagonal(made, dim1=-2, dim2=-1)
    assert torch.allclose(made, torch.diag_embed(diagonal), atol=1e-9)
    large = s > 0.05 * s.amax(-1, keepdim=True)
    assert ((diagonal[large] > 0.6) & (diagonal[large] < 1.3)).all()


def test_the_rest_is_adamw():
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    a, b = Muon([{"params": ours}], **settings), torch.optim.AdamW([{"params": theirs}], **settings)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=1e-12)


def test_matrices_move_by_an_orthogonal_step_and_state_survives_a_checkpoint():
    p = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    optimizer = Muon([{"params": [p], "matrix": True}], lr=0.1, matrix_lr_scale=2.0, weight_decay=0.0)
    p.grad = torch.eye(6, dtype=torch.float64) * 7
    optimizer.step()
    factors = torch.diagonal(p.detach()) / -0.2
    assert torch.equal(p.detach(), torch.diag_embed(-0.2 * factors))
    assert ((factors > 0.6) & (factors < 1.3)).all()
    again = Muon([{"params": [p], "matrix": True}], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[p]["momentum"], optimizer.state[p]["momentum"])


def test_learning_rates_must_not_be_negative():
    with pytest.raises(ValueError, match="must not be negative"):
        Muon([torch.zeros(2, requires_grad=True)], lr=-1.0)
