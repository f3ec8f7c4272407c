"""Reward models: the loss against plain torch and against the scorer, and small ones that learn."""

import json
import random

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from lit_thinkfast.callbacks import ExportStudent
from lit_thinkfast.data.corpora import JsonlCorpus
from lit_thinkfast.data.module import MathDataModule
from lit_thinkfast.data.prompts import encode_examples, sign_ids
from lit_thinkfast.data.rows import Document, collate_rows
from lit_thinkfast.distill import CrossEntropy, DistillationModule, Signals
from lit_thinkfast.distill.rewards import HeadRewardLoss, RewardLoss
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.distill.students import build_student, export_folder
from lit_thinkfast.models import convert
from lit_thinkfast.records import Completion, Example, Problem, write_jsonl
from lit_thinkfast.verification import HeadRewardModel, ProcessRewardModel, load_reward_model

from .conftest import llama_folder, pack

KINDS = {"signs": (RewardLoss, ProcessRewardModel), "head": (HeadRewardLoss, HeadRewardModel)}
BOTH = pytest.mark.parametrize("kind", KINDS)
SCOPES = pytest.mark.parametrize("outcome", [False, True], ids=["process", "outcome"])
PLUS, MINUS = 7, 9


class TwoSigns:
    """As much of a tokenizer as a loss asks for."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [{"+": PLUS, "-": MINUS}[text]]}


def signed(batch, *, seed=0, only=None):
    """The batch with signs instead of the labels of its response tokens."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(batch["labels"].shape, generator=generator) < 0.3, MINUS, PLUS)
    signs = signs if only is None else torch.full_like(signs, only)
    return {**batch, "labels": torch.where(batch["labels"] == -100, -100, signs)}


def made(kind, *, width=16, randomly=True, **options):
    """A loss that has been set up, its unit with random values."""
    loss = KINDS[kind][0](**options)
    student = torch.nn.Module()
    student.config = type("Config", (), {"hidden_size": width})
    loss.setup(student, TwoSigns())
    if kind == "head" and randomly:
        generator = torch.Generator().manual_seed(5)
        for parameter in loss.parameters():
            parameter.data.normal_(generator=generator)
    return loss


def signals(batch, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*batch["labels"].shape, 16, generator=generator, dtype=dtype, requires_grad=True)
    return Signals(last_hidden=hidden, head=torch.randn(48, 16, generator=generator, dtype=dtype, requires_grad=True))


def plainly(kind, loss, given, batch, *, positive_weight=1.0):
    """The mean over labelled positions, one by one, from the whole vocabulary or the unit."""
    terms = []
    for row, labels in enumerate(batch["labels"]):
        for t, label in enumerate(labels.tolist()):
            if label == -100:
                continue
            hidden = given.last_hidden[row, t - 1]
            if kind == "signs":
                logits = (given.head @ hidden)[[PLUS, MINUS]]
            else:
                log_odds = loss.head.weight[0] @ hidden + loss.head.bias[0]
                logits = torch.stack([log_odds, torch.zeros_like(log_odds)])
            log_p = logits.log_softmax(-1)
            terms.append(-positive_weight * log_p[0] if label == PLUS else -log_p[1])
    return torch.stack(terms).mean()


@BOTH
@pytest.mark.parametrize("positive_weight", [1.0, 0.3])
@pytest.mark.parametrize("only", [None, PLUS, MINUS])
def test_value_and_gradients_are_those_of_plain_torch(kind, positive_weight, only):
    batch = signed(pack([[9, 11], [20], [5, 6, 7]]), only=only)
    loss, given = made(kind, positive_weight=positive_weight).double(), signals(batch)
    value = loss(given, None, batch)
    expected = plainly(kind, loss, given, batch, positive_weight=positive_weight)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    inputs = [given.last_hidden, given.head] if kind == "signs" else [given.last_hidden, *loss.parameters()]
    for ours, theirs in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@BOTH
def test_a_batch_without_labels_has_loss_and_gradients_of_zero(kind):
    batch = pack([[9, 11]])
    batch["labels"][:] = -100
    loss, given = made(kind).double(), signals(batch)
    value = loss(given, None, batch)
    value.backward()
    assert value.item() == 0
    assert loss.tokens(batch) == 0
    for parameter in (given.last_hidden, *loss.parameters()):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@BOTH
def test_mixed_precision_leaves_the_log_odds_in_fp32(kind):
    batch = signed(pack([[9, 11], [20]]))
    loss, given = made(kind), signals(batch, dtype=torch.float32)
    expected = loss(given, None, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(given, None, batch), expected)


def test_a_unit_starts_at_zero_and_costs_no_random_numbers():
    before = torch.get_rng_state()
    batch = signed(pack([[9, 11]]))
    value = made("head", randomly=False)(signals(batch, dtype=torch.float32), None, batch)
    assert torch.equal(before, torch.get_rng_state())
    assert value.item() == pytest.approx(0.6931472)


def test_what_cannot_be_learnt_is_refused_in_one_line(tokenizer):
    batch = signed(pack([[9, 11]]))
    given = signals(batch)
    with pytest.raises(ValueError, match="positive_weight must be positive, got 0"):
        RewardLoss(positive_weight=0)
    with pytest.raises(ValueError, match="RewardLoss finds the ids of \\+ and - in the tokenizer of the data"):
        RewardLoss().setup(None, None)
    with pytest.raises(ValueError, match="does not know the ids"):
        RewardLoss()(given, None, batch)
    with pytest.raises(ValueError, match="the corpus gives plain texts; set its step_labels_column or outcome_column"):
        made("signs")(given, None, pack([[9, 11]]))
    with pytest.raises(ValueError, match="outcome is set and a document has several labels"):
        made("head", outcome=True)(given, None, batch)

    class Splitting(TwoSigns):
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [1, 2]}

    with pytest.raises(ValueError, match="'\\+' and '-' as single tokens; this one splits them"):
        RewardLoss().setup(None, Splitting())


PROBLEMS = [Problem("p", "What is 2 + 3?", "5"), Problem("q", "And then?", "7")]
TEXTS = ["a=2+3\na=5\nThe answer is 5.", "a=2+3\na=6\nso\nThe answer is 6.\n", "one line", "x\n=\ny\n"]
LABELS = [(True, True, True), (True, False, False, False), (True,), (False, False, False)]


@pytest.fixture(scope="module", params=["stock", "hybrid"])
def model_folder(request, tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("reward") / request.param
    options = {"vocab_size": len(tokenizer), "hidden_size": 32, "tie_word_embeddings": request.param == "hybrid"}
    llama_folder(folder, seed=3, **options)
    if request.param == "hybrid":
        convert(str(folder), attention_layers=[0], mixer="mamba2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@BOTH
@SCOPES
def test_the_loss_is_that_of_the_log_odds_which_scoring_reads(kind, outcome, model_folder, tokenizer, tmp_path):
    """On the same texts, from the exported folder; three to a row in training, padded to one length in scoring."""
    loss = KINDS[kind][0](outcome=outcome)
    student = build_student(model_folder).eval()
    loss.setup(student, tokenizer)
    for parameter in loss.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    examples = [
        Example(f"{p.id}{i}", p.question, text, **({"outcome": labels[-1]} if outcome else {"step_labels": labels}))
        for p in PROBLEMS
        for i, (text, labels) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    documents = [Document(*map(torch.tensor, pair)) for pair in encode_examples(tokenizer, examples)]
    rows = [documents[:3], documents[3:6], documents[6:]]
    batch = collate_rows(rows, seq_len=max(sum(map(len, row)) for row in rows) + 3, pad_token_id=0)
    with torch.no_grad():
        given = read_signals(student, batch, needs=frozenset({"logits"}))
        value = loss(given, None, batch).item()
        labelled = (batch["labels"][:, 1:] != -100).nonzero().unbind(-1)
        read_in_training = loss.log_odds(given.last_hidden[labelled], given.head).tolist()

    folder = export_folder(student, tmp_path / "model", tokenizer_from=model_folder, beside=[loss.save_with])
    scorer = load_reward_model(folder, batch_size=5)
    assert type(scorer) is KINDS[kind][1]
    completions = [Completion(p.id, i, text, 1, 1, "stop", 0.0, 0.0) for p in PROBLEMS for i, text in enumerate(TEXTS)]
    scores = scorer.score(PROBLEMS, completions)
    assert [len(s.step_log_odds) for s in scores] == [1 if outcome else len(labels) for labels in LABELS] * 2
    log_odds = [x for s in scores for x in s.step_log_odds]
    assert log_odds == pytest.approx(read_in_training, abs=1e-5)
    right = [r for e in examples for r in (e.step_labels or (e.outcome,))]
    terms = [
        torch.tensor(x if r else -x, dtype=torch.float64).sigmoid().log() for x, r in zip(log_odds, right, strict=True)
    ]
    assert value == pytest.approx(-torch.stack(terms).mean().item(), abs=1e-5)


def test_an_exported_head_model_is_a_language_model_for_everybody(model_folder, tokenizer, tmp_path):
    loss, student = HeadRewardLoss(), build_student(model_folder)
    loss.setup(student, tokenizer)
    loss.head.weight.data.normal_()
    folder = export_folder(student, tmp_path / "model", tokenizer_from=model_folder, beside=[loss.save_with])
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.reward_judge, model.config.reward_scope) == ("head", "process")
    again = HeadRewardLoss(start=str(folder))
    again.setup(student, tokenizer)
    for old, new in zip(loss.parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new)
    export_folder(student, folder, tokenizer_from=model_folder)  # without one: nothing of the old may stay
    with pytest.raises(FileNotFoundError, match="reward_head"):
        HeadRewardModel(folder).load()
    with pytest.raises(FileNotFoundError, match="reward_head"):
        HeadRewardLoss(start=str(folder)).setup(student, tokenizer)


def story(rng, number, *, outcome):
    """Up to four lines, some with a slip; all is right until the first one."""
    lines, labels = [], []
    for _ in range(rng.randint(1, 4)):
        slip = rng.random() < 0.3
        lines.append(f"{rng.randint(10, 99)} {'-' if slip else '='} {rng.randint(10, 99)}")
        labels.append(not slip and all(labels))
    truth = {"outcome": labels[-1]} if outcome else {"step_labels": tuple(labels)}
    return Example(str(number), "Q", "\n".join(lines), "stories", **truth)


@pytest.fixture
def stories(tmp_path):
    """A file of examples: ``stories(outcome) -> corpus``."""

    def write(outcome, count=600):
        rng = random.Random(0)
        path = tmp_path / "stories.jsonl"
        write_jsonl([story(rng, number, outcome=outcome) for number in range(count)], path)
        column = "outcome_column" if outcome else "step_labels_column"
        return JsonlCorpus(str(path), validation_every=6, **{column: "outcome" if outcome else "step_labels"})

    return write


def data_of(corpus, *, batch_size=8):
    return MathDataModule(corpus, tokenizer="arithmetic", seq_len=96, batch_size=batch_size, val_batches=4)


def trainer(tmp_path, steps, **options):
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
    }
    return Trainer(accelerator="cpu", devices=1, max_steps=steps, **settings | options)


def learner(folder, losses, lr=1e-2):
    return DistillationModule(folder, losses=losses, optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr))


@pytest.fixture
def fresh(tmp_path, tokenizer):
    folder = llama_folder(tmp_path / "fresh", weights=False, vocab_size=len(tokenizer), hidden_size=32)
    tokenizer.save_pretrained(folder)
    return folder


@BOTH
@SCOPES
def test_a_small_one_learns_to_judge(kind, outcome, stories, fresh, tmp_path):
    """And its exported folder judges held-out solutions as well as its loss in training says."""
    corpus = stories(outcome)
    module, data = learner(fresh, {"reward": KINDS[kind][0](outcome=outcome)}), data_of(corpus)
    folder = tmp_path / "model"
    run = trainer(tmp_path, steps=50, callbacks=[ExportStudent(str(folder))])
    run.fit(module, data)
    (logged,) = run.validate(module, data, verbose=False)
    held_out = list(corpus.examples("validation"))
    scores = load_reward_model(folder, batch_size=64).score(
        [Problem("0", "Q", "")], [Completion("0", i, e.response, 1, 1, "stop", 0, 0) for i, e in enumerate(held_out)]
    )
    log_odds = torch.tensor([x for s in scores for x in s.step_log_odds])
    right = torch.tensor([r for e in held_out for r in (e.step_labels or (e.outcome,))])
    chance = max(right.float().mean().item(), 1 - right.float().mean().item())
    found = ((log_odds > 0) == right).float().mean().item()
    assert chance < 0.75
    assert found > 0.95
    assert logged["val/loss_reward"] < 0.25


@BOTH
def test_micro_batches_of_uneven_labels_add_up_to_one_batch(kind, stories, fresh, tmp_path):
    """The gradient is that of the mean over all labels, in the unit too."""
    found = []
    for batch_size, accumulate in ((4, 1), (1, 4)):
        module, data = (
            learner(fresh, {"reward": KINDS[kind][0]()}, lr=1e-3),
            data_of(stories(False), batch_size=batch_size),
        )
        data.num_shards = 1
        trainer(tmp_path, steps=3, accumulate_grad_batches=accumulate).fit(module, data)
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-5)


def test_a_resumed_unit_goes_on_where_it_was(stories, fresh, tmp_path):
    ends = []
    for stops in ((4,), (2, 4)):
        checkpoint = None
        for steps in stops:
            module, data = learner(fresh, {"reward": HeadRewardLoss()}), data_of(stories(False))
            run = trainer(tmp_path, steps=steps)
            run.fit(module, data, ckpt_path=checkpoint)
            checkpoint = tmp_path / "last.ckpt"
            run.save_checkpoint(checkpoint)
        ends.append(module.losses["reward"].head.weight.detach())
    assert ends[0].abs().max() > 0
    assert torch.equal(*ends)


def test_cross_entropy_on_the_same_labels_makes_a_judge_by_signs_too(stories, fresh, tmp_path):
    """What was trained so before goes on to be read; the loss here differs by the rest of the vocabulary."""
    module, data = learner(fresh, {"ce": CrossEntropy()}), data_of(stories(False))
    trainer(tmp_path, steps=1).fit(module, data)
    export_folder(module.student, tmp_path / "model", tokenizer_from=fresh)
    assert "reward_judge" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert type(load_reward_model(tmp_path / "model")) is ProcessRewardModel
    plus, minus = sign_ids(data.tokenizer)
    labels = next(iter(data.train_dataloader()))["labels"]
    assert set(labels.unique().tolist()) == {-100, plus, minus}
