"""Chunked losses against torch's own on full logits in float64: values and gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_thinkfast.distill import CrossEntropy, ForwardKL, HiddenStateLoss, JensenShannon, ReverseKL, Signals
from lit_thinkfast.distill.chunked import labelled_documents
from lit_thinkfast.distill.losses import SkewKL, TopKKL, held_out_measures, top1_agreement
from lit_thinkfast.distill.signals import TopTokens

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


def skew(s, t, temperature, alpha):
    p_t, p_s = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    return temperature**2 * F.kl_div((alpha * p_t + (1 - alpha) * p_s).log(), p_t, reduction="sum")


def lumped(s, t, k):
    """KL of the distributions over the teacher's k likeliest tokens and whatever else."""
    p_t, p_s = t.softmax(-1), s.softmax(-1)
    inside = torch.zeros_like(p_t, dtype=torch.bool).scatter(0, p_t.argsort(descending=True)[:k], True)
    p_t, p_s = (torch.cat([p[inside], p[~inside].sum(0, keepdim=True)]) for p in (p_t, p_s))
    return F.kl_div(p_s.log(), p_t, reduction="sum")


CASES = {
    "ce": (CrossEntropy(chunk_tokens=7), lambda s, t, y: F.cross_entropy(s, y)),
    "forward": (ForwardKL(temperature=1.0, chunk_tokens=7), lambda s, t, y: kl(t, s)),
    "forward-T": (ForwardKL(temperature=2.5, chunk_tokens=1), lambda s, t, y: 2.5**2 * kl(t / 2.5, s / 2.5)),
    "reverse": (ReverseKL(temperature=1.0, chunk_tokens=1000), lambda s, t, y: kl(s, t)),
    "reverse-T": (ReverseKL(temperature=0.7, chunk_tokens=5), lambda s, t, y: 0.7**2 * kl(s / 0.7, t / 0.7)),
    "js": (JensenShannon(chunk_tokens=7), lambda s, t, y: jensen_shannon(s, t, 1.0, 0.5)),
    "js-T": (JensenShannon(beta=0.2, temperature=1.7), lambda s, t, y: jensen_shannon(s, t, 1.7, 0.2)),
    "skew": (SkewKL(chunk_tokens=7), lambda s, t, y: skew(s, t, 1.0, 0.1)),
    "skew-T": (SkewKL(alpha=0.6, temperature=1.3, chunk_tokens=4), lambda s, t, y: skew(s, t, 1.3, 0.6)),
    "top-1": (TopKKL(k=1, chunk_tokens=7), lambda s, t, y: lumped(s, t, 1)),
    "top-9": (TopKKL(k=9), lambda s, t, y: lumped(s, t, 9)),
    "top-all": (TopKKL(k=VOCAB, chunk_tokens=7), lambda s, t, y: kl(t, s)),
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


# the published formulas, on whole (b, t, v) logits s and u; labels and logits are not shifted in the first
PUBLISHED = {
    "M1": (
        ReverseKL(positions="unshifted_labels", chunk_tokens=7),
        lambda s, u, batch: (
            (s.softmax(-1) * (s.log_softmax(-1) - u.log_softmax(-1))).sum(-1)[batch["labels"] != -100].mean()
        ),
    ),
    "MOHAWK": (
        ForwardKL(positions="all"),
        lambda s, u, batch: (
            F.cross_entropy(s.flatten(0, 1), u.softmax(-1).flatten(0, 1))
            - torch.distributions.Categorical(logits=u).entropy().mean()  # a constant
        ),
    ),
    "MambaInLlama": (
        ForwardKL(positions="all", reduction="batchmean", chunk_tokens=7),
        lambda s, u, batch: F.kl_div(s.log_softmax(-1), u.softmax(-1), reduction="batchmean"),
    ),
    "batchmean of labels": (
        SkewKL(reduction="batchmean"),
        lambda s, u, batch: (
            (
                torch.stack(
                    [
                        skew(a, b, 1.0, 0.1)
                        for a, b in zip(*(x[:, :-1][batch["labels"][:, 1:] != -100] for x in (s, u)), strict=True)
                    ]
                )
            ).sum()
            / 3
        ),
    ),
    "labelled next tokens": (
        CrossEntropy(reduction="batchmean"),
        lambda s, u, batch: (
            F.cross_entropy(s[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum") / 3
        ),
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_positions_and_reductions(case):
    batch = pack([[9, 15], [24], [5, 6, 13]])  # full rows, as published code has them
    loss, formula = PUBLISHED[case]
    student, teacher = signals(batch, width=6, seed=0, requires_grad=True), signals(batch, width=10, seed=1)
    expected = formula(student.logits(), teacher.logits(), batch)
    wanted = torch.autograd.grad(expected, [student.last_hidden, student.head])
    actual = loss(student, teacher, batch)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(actual, [student.last_hidden, student.head])
    torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-13)
    count = {"M1": (batch["labels"] != -100).sum(), "MOHAWK": torch.tensor(72)}
    assert loss.tokens(batch) == count.get(case, torch.tensor(3))


def test_all_positions_are_those_of_documents(batch):
    rows = [batch["input_ids"][r, start:stop] for r, start, stop in documents(batch)]
    student = signals(batch, width=6, seed=0)
    logits = [student.logits()[r, start:stop] for r, start, stop in documents(batch)]
    loss = CrossEntropy(positions="all")
    next_tokens = torch.cat([row[1:] for row in rows])
    expected = F.cross_entropy(torch.cat([part[:-1] for part in logits]), next_tokens)
    torch.testing.assert_close(loss(student, None, batch), expected)
    assert loss.tokens(batch) == len(next_tokens)
    assert ForwardKL(positions="all").tokens(batch) == sum(len(row) for row in rows)


def documents(batch):
    """Row, start and stop of the documents of the fixture."""
    return [(0, 0, 9), (0, 9, 20), (1, 0, 20), (2, 0, 5), (2, 5, 11), (2, 11, 18)]


def test_the_mean_is_over_tokens_times_the_loss(batch):
    """What a step over several micro-batches relies on: loss times tokens is the sum."""
    student, teacher = signals(batch, width=6, seed=0), signals(batch, width=6, seed=1)
    for loss in (
        ForwardKL(),
        ForwardKL(positions="all"),
        ForwardKL(positions="unshifted_labels", reduction="batchmean"),
    ):
        parts = []
        for row in range(3):
            part = {name: values[row : row + 1] for name, values in batch.items()}
            views = [Signals(last_hidden=m.last_hidden[row : row + 1], head=m.head) for m in (student, teacher)]
            parts.append(loss(*views, part) * loss.tokens(part))
        torch.testing.assert_close(sum(parts), loss(student, teacher, batch) * loss.tokens(batch))


def test_top_k_rises_to_the_forward_kl(batch):
    student, teacher = signals(batch, width=6, seed=0), signals(batch, width=6, seed=1)
    values = [TopKKL(k=k)(student, teacher, batch).item() for k in (1, 2, 8, 24, VOCAB)]
    assert values == sorted(values)
    assert values[0] < 0.9 * values[-1]
    assert values[-1] == pytest.approx(ForwardKL()(student, teacher, batch).item(), rel=1e-12)


def top_tokens(signals, k):
    top = signals.logits().detach().log_softmax(-1).topk(k, dim=-1)
    return Signals(top=TopTokens(index=top.indices, log_probs=top.values))


@pytest.mark.parametrize("k", [1, 5, VOCAB])
def test_top_k_of_a_cached_teacher_is_that_of_the_dense_one(k, batch):
    student, teacher = signals(batch, width=6, seed=0, requires_grad=True), signals(batch, width=6, seed=1)
    values = [TopKKL(k=k, chunk_tokens=7)(student, view, batch) for view in (teacher, top_tokens(teacher, max(k, 5)))]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-13)
    gradients = [torch.autograd.grad(value, [student.last_hidden, student.head]) for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_what_a_cached_teacher_cannot_give_is_refused(batch):
    student, teacher = signals(batch, width=6, seed=0), signals(batch, width=6, seed=1)
    cached = top_tokens(teacher, 5)
    with pytest.raises(ValueError, match="the teacher's 6 likeliest tokens and CachedTeacher keeps 5; set k to 5"):
        TopKKL(k=6)(student, cached, batch)
    with pytest.raises(ValueError, match=r"likeliest tokens and its vocabulary has 48"):
        TopKKL(k=49)(student, teacher, batch)
    with pytest.raises(ValueError, match="works with TopKKL alone"):
        ForwardKL()(student, cached, batch)


def test_held_out_measures(batch):
    student, teacher = signals(batch, width=6, seed=0), signals(batch, width=6, seed=1)
    agreement = top1_agreement(student, teacher, batch)
    dense = held_out_measures(student, teacher, batch)
    assert dense == {"kl": ForwardKL()(student, teacher, batch), "top1_agreement": agreement}
    cached = held_out_measures(student, top_tokens(teacher, 5), batch)
    assert cached.keys() == {"kl_top_k", "top1_agreement"}
    torch.testing.assert_close(cached["kl_top_k"], TopKKL(k=5)(student, teacher, batch))
    assert cached["top1_agreement"] == agreement
    same = held_out_measures(student, student, batch)
    assert same["top1_agreement"] == 1
    assert abs(same["kl"]) < 1e-15
    batch["labels"].fill_(-100)
    assert held_out_measures(student, teacher, batch) == {"kl": 0, "top1_agreement": 0}


def test_gradients_are_taken_once(batch):
    """They are scaled in place: a second backward pass must fail rather than scale again."""
    student = signals(batch, width=6, seed=0, requires_grad=True)
    value = 2 * CrossEntropy()(student, None, batch)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("loss", [ForwardKL(), ReverseKL(temperature=2.0), JensenShannon(), SkewKL(), TopKKL(k=7)])
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
        (lambda: SkewKL(alpha=0), "alpha must lie strictly between 0 and 1, got 0; the ends are ForwardKL and no loss"),
        (lambda: TopKKL(k=0), "k must be at least 1, got 0"),
        (lambda: ForwardKL(positions="label"), "'label' is not one of labels, unshifted_labels, all"),
        (lambda: CrossEntropy(reduction="mean"), "'mean' is not one of token_mean, batchmean"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
