"""Chunked losses against torch's own on full logits in float64: values and gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_thinkfast.distill import CrossEntropy, ForwardKL, HiddenStateLoss, JensenShannon, ReverseKL, Signals
from lit_thinkfast.distill.layerwise import labelled_documents
from lit_thinkfast.distill.losses import top1_agreement

from .conftest import VOCAB, pack


def signals(batch, *, width, seed, dtype=torch.float64, requires_grad=False, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch["input_ids"].shape, width)
    hidden = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    head = torch.randn(VOCAB, width, generator=generator, dtype=torch.float64).to(dtype)
    return Signals(last_hidden=hidden.requires_grad_(requires_grad), head=head.requires_grad_(requires_grad))


def naive(student, teacher, batch, value):
    """Mean over labels of ``value(student logits (v,), teacher logits (v,), target)`` by a loop over positions."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(batch["labels"].shape[0]):
        for t in range(1, batch["labels"].shape[1]):
            if batch["labels"][b, t] != -100:
                s = student.last_hidden[b, t - 1] @ student.head.T
                u = None if teacher is None else teacher.last_hidden[b, t - 1] @ teacher.head.T
                total, count = total + value(s, u, batch["labels"][b, t]), count + 1
    return total / count


def kl(p_logits, q_logits):
    return F.kl_div(q_logits.log_softmax(-1), p_logits.log_softmax(-1), reduction="sum", log_target=True)


def jensen_shannon(s, t, temperature, beta):
    p_t, p_s = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    m = (beta * p_t + (1 - beta) * p_s).log()
    return temperature**2 * (beta * F.kl_div(m, p_t, reduction="sum") + (1 - beta) * F.kl_div(m, p_s, reduction="sum"))


CASES = {
    "ce": (CrossEntropy(chunk_tokens=7), lambda s, t, y: F.cross_entropy(s, y)),
    "forward": (ForwardKL(temperature=1.0, chunk_tokens=7), lambda s, t, y: kl(t, s)),
    "forward-T": (ForwardKL(temperature=2.5, chunk_tokens=1), lambda s, t, y: 2.5**2 * kl(t / 2.5, s / 2.5)),
    "reverse": (ReverseKL(temperature=1.0, chunk_tokens=1000), lambda s, t, y: kl(s, t)),
    "reverse-T": (ReverseKL(temperature=0.7, chunk_tokens=5), lambda s, t, y: 0.7**2 * kl(s / 0.7, t / 0.7)),
    "js": (JensenShannon(chunk_tokens=7), lambda s, t, y: jensen_shannon(s, t, 1.0, 0.5)),
    "js-T": (JensenShannon(beta=0.2, temperature=1.7), lambda s, t, y: jensen_shannon(s, t, 1.7, 0.2)),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_those_of_full_logits(case, batch):
    loss, value = CASES[case]
    student = signals(batch, width=6, seed=0, requires_grad=True)
    teacher = signals(batch, width=10, seed=1)  # a teacher of another width
    expected = naive(student, teacher, batch, value)
    expected_gradients = torch.autograd.grad(expected, [student.last_hidden, student.head])
    actual = loss(student, teacher if loss.needs_teacher else None, batch)
    gradients = torch.autograd.grad(3.0 * actual, [student.last_hidden, student.head])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, 3.0 * wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [ForwardKL(), ReverseKL(temperature=2.0), JensenShannon()])
def test_no_divergence_from_oneself(loss, batch):
    student = signals(batch, width=6, seed=0, requires_grad=True)
    teacher = Signals(last_hidden=student.last_hidden.detach(), head=student.head.detach())
    value = loss(student, teacher, batch)
    gradients = torch.autograd.grad(value, [student.last_hidden, student.head])
    tolerance = 1e-15
    assert abs(value.item()) < tolerance
    assert all(gradient.abs().max() < tolerance for gradient in gradients)


def test_forward_kl_has_the_gradient_of_soft_cross_entropy(batch):
    student, teacher = signals(batch, width=6, seed=0, requires_grad=True), signals(batch, width=6, seed=1)
    soft = naive(student, teacher, batch, lambda s, t, y: F.cross_entropy(s, t.softmax(-1)))
    wanted = torch.autograd.grad(soft, [student.last_hidden, student.head])
    actual = torch.autograd.grad(ForwardKL()(student, teacher, batch), [student.last_hidden, student.head])
    torch.testing.assert_close(actual, wanted)


def test_jensen_shannon_is_symmetric_and_bounded(batch):
    student, teacher = signals(batch, width=6, seed=0), signals(batch, width=6, seed=1)
    there, back = JensenShannon()(student, teacher, batch), JensenShannon()(teacher, student, batch)
    torch.testing.assert_close(there, back)
    assert 0 < there < math.log(2)


def test_only_predictions_of_labelled_tokens_count(batch):
    student = signals(batch, width=6, seed=0, requires_grad=True)
    teacher = signals(batch, width=6, seed=1)
    gradient = torch.autograd.grad(ReverseKL()(student, teacher, batch), student.last_hidden)[0]
    moved = gradient.abs().sum(-1) > 0
    predicts = torch.zeros_like(moved)
    predicts[:, :-1] = batch["labels"][:, 1:] != -100
    assert torch.equal(moved, predicts)


def test_packing_does_not_change_the_mean():
    packed = pack([[9, 11]])
    student, teacher = signals(packed, width=6, seed=0), signals(packed, width=6, seed=1)
    whole = ReverseKL()(student, teacher, packed)
    parts = []
    for piece in (slice(0, 9), slice(9, 20)):
        part = {name: values[:, piece] for name, values in packed.items()}
        views = [Signals(last_hidden=m.last_hidden[:, piece], head=m.head) for m in (student, teacher)]
        parts.append((ReverseKL()(*views, part), (part["labels"] != -100).sum()))
    mean = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(whole, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_computed_in_fp32(dtype, batch):
    exact = [signals(batch, width=6, seed=s, dtype=dtype, scale=1.0) for s in (0, 1)]
    student = Signals(exact[0].last_hidden.requires_grad_(), exact[0].head.requires_grad_())
    value = ReverseKL(chunk_tokens=4)(student, exact[1], batch)
    doubles = [Signals(m.last_hidden.double(), m.head.double()) for m in exact]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), ReverseKL()(*doubles, batch), rtol=2e-2, atol=0)
    gradients = torch.autograd.grad(value, [student.last_hidden, student.head])
    assert [g.dtype for g in gradients] == [dtype, dtype]


def test_autocast_casts_the_head_product_and_keeps_fp32_gradients(batch):
    student = signals(batch, width=6, seed=0, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CrossEntropy()(student, None, batch)
    gradients = torch.autograd.grad(value, [student.last_hidden, student.head])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    torch.testing.assert_close(value, CrossEntropy()(student, None, batch), rtol=2e-2, atol=0)


def test_float16_is_refused_in_training_only(batch):
    student = signals(batch, width=6, seed=0, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        with pytest.raises(ValueError, match="use precision bf16-mixed or 32-true"):
            CrossEntropy()(student, None, batch)
        with torch.no_grad():
            assert CrossEntropy()(student, None, batch).isfinite()


def test_a_frozen_head_or_body_is_fine(batch):
    student = signals(batch, width=6, seed=0)
    student.last_hidden.requires_grad_()
    CrossEntropy()(student, None, batch).backward()
    assert student.last_hidden.grad is not None
    assert student.head.grad is None


def test_no_labels_give_zero_and_zero_gradients(batch):
    batch["labels"].fill_(-100)
    student = signals(batch, width=6, seed=0, requires_grad=True)
    value = CrossEntropy()(student, None, batch)
    value.backward()
    assert value.item() == 0
    assert student.last_hidden.grad.abs().max() == 0
    assert student.head.grad.abs().max() == 0


def test_hidden_state_loss_is_the_token_mean_of_distances_summed_over_layers(batch):
    generator = torch.Generator().manual_seed(0)

    def made(seed):
        base = signals(batch, width=6, seed=seed)
        states = tuple(torch.randn(3, 24, 6, generator=generator, dtype=torch.float64) for _ in range(4))
        return Signals(base.last_hidden, base.head, tuple(s.requires_grad_() for s in states))

    student, teacher = made(0), made(1)
    real = batch["position_ids"] + 1 > 0
    for row, used in enumerate((20, 20, 18)):
        real[row, used:] = False
    assert torch.equal(labelled_documents(batch), real)
    expected = sum(
        (s - t).norm(dim=-1)[real].mean()
        for s, t in zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True)
    )
    torch.testing.assert_close(HiddenStateLoss()(student, teacher, batch), expected)
    last = (student.hidden_states[3] - teacher.hidden_states[3]).norm(dim=-1)[real].mean()
    torch.testing.assert_close(HiddenStateLoss(layers=[-1])(student, teacher, batch), last)
    same = HiddenStateLoss()(student, student, batch)
    assert same.item() == 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(same, student.hidden_states[1:]))


def test_hidden_state_loss_errors_in_one_line(batch):
    thin = signals(batch, width=6, seed=0)
    states = tuple(torch.zeros(3, 24, 6) for _ in range(3))
    student = Signals(thin.last_hidden, thin.head, states)
    with pytest.raises(ValueError, match=r"the student has 2 layers of width 6, the teacher 1 of 6"):
        HiddenStateLoss()(student, Signals(thin.last_hidden, thin.head, states[:2]), batch)
    with pytest.raises(ValueError, match=r"layer 2 does not exist: the student has layers 0 to 1"):
        HiddenStateLoss(layers=[2])(student, student, batch)


def test_top1_agreement_counts_equal_argmax(batch):
    student, teacher = signals(batch, width=6, seed=0), signals(batch, width=6, seed=1)
    expected = naive(student, teacher, batch, lambda s, t, y: (s.argmax() == t.argmax()).double())
    torch.testing.assert_close(top1_agreement(student, teacher, batch, chunk_tokens=5), expected)
    assert top1_agreement(student, student, batch) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReverseKL(temperature=0), "temperature must be positive, got 0"),
        (lambda: JensenShannon(beta=1.0), "beta must lie strictly between 0 and 1, got 1.0"),
        (lambda: CrossEntropy(chunk_tokens=0), "chunk_tokens must be at least 1, got 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
