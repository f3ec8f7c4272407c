"""A teacher kept on disk against the teacher itself."""

import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_thinkfast.distill import DistillationModule, ForwardKL, HFTeacher
from lit_thinkfast.distill.cached import CachedTeacher
from lit_thinkfast.distill.losses import TopKKL, held_out_measures
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.models.loading import load_model

from .conftest import VOCAB, llama_folder, loader, pack

LOGITS = frozenset({"logits"})


def cached(teacher_folder, tmp_path, k=8, **options):
    made = CachedTeacher(HFTeacher(teacher_folder, **options), str(tmp_path / "kept"), k=k)
    made.load(torch.device("cpu"))
    return made


def files(tmp_path):
    return sorted(path for path in (tmp_path / "kept").rglob("*") if path.is_file())


def same(one, other):
    return torch.equal(one.top.index, other.top.index) and torch.equal(one.top.log_probs, other.top.log_probs)


def rows_of(batch, *rows):
    return {name: values[list(rows)] for name, values in batch.items()}


def test_kept_tokens_are_the_likeliest_of_the_teacher(teacher_folder, tmp_path, batch):
    top = cached(teacher_folder, tmp_path).signals(batch, LOGITS).top
    dense = HFTeacher(teacher_folder).signals(batch, LOGITS).logits().log_softmax(-1).topk(8, dim=-1)
    assert torch.equal(top.index, dense.indices)
    assert top.log_probs.dtype == torch.float32
    torch.testing.assert_close(top.log_probs, dense.values, rtol=2**-11, atol=5e-4)
    torch.testing.assert_close(top.log_probs.exp().sum(-1), dense.values.exp().sum(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [3, 8])
def test_the_loss_is_that_of_the_teacher_itself(k, teacher_folder, student_folder, tmp_path, batch):
    model = load_model(student_folder)
    student = read_signals(model, batch, needs=LOGITS)
    views = [HFTeacher(teacher_folder), cached(teacher_folder, tmp_path)]
    values = [TopKKL(k=k)(student, view.signals(batch, LOGITS), batch) for view in views]
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(value, model.parameters(), retain_graph=True) for value in values]
    for dense, kept in zip(*gradients, strict=True):
        assert (dense - kept).norm() < 1e-3 * dense.norm()


def test_all_tokens_kept_give_the_forward_kl(teacher_folder, student_folder, tmp_path, batch):
    student = read_signals(load_model(student_folder), batch, needs=LOGITS)
    kept = cached(teacher_folder, tmp_path, k=VOCAB).signals(batch, LOGITS)
    wanted = ForwardKL()(student, HFTeacher(teacher_folder).signals(batch, LOGITS), batch)
    torch.testing.assert_close(TopKKL(k=VOCAB)(student, kept, batch), wanted, rtol=1e-3, atol=0)
    assert held_out_measures(student, kept, batch).keys() == {"kl_top_k", "top1_agreement"}


def test_a_hit_never_loads_the_teacher(teacher_folder, tmp_path, batch):
    first = cached(teacher_folder, tmp_path).signals(batch, LOGITS)
    again = cached(teacher_folder, tmp_path)
    assert again.vocab_size() == VOCAB
    assert same(again.signals(batch, LOGITS), first)
    assert again.teacher._model is None
    # other batches of rows that are known, on whatever labels
    other = rows_of(batch, 2, 0)
    other["labels"].fill_(-100)
    answers = again.signals(other, LOGITS)
    assert torch.equal(answers.top.index, first.top.index[[2, 0]])
    assert again.teacher._model is None


def test_only_rows_that_are_missing_are_asked_for(teacher_folder, tmp_path, batch, monkeypatch):
    cached(teacher_folder, tmp_path).signals(rows_of(batch, 1), LOGITS)
    teacher = cached(teacher_folder, tmp_path)
    asked, signals = [], teacher.teacher.signals
    monkeypatch.setattr(teacher.teacher, "signals", lambda part, needs: asked.append(part) or signals(part, needs))
    mixed = teacher.signals(batch, LOGITS)
    assert torch.equal(asked[0]["input_ids"], batch["input_ids"][[0, 2]])
    assert len(files(tmp_path)) == 3
    assert same(mixed, cached(teacher_folder, tmp_path / "elsewhere").signals(batch, LOGITS))


def test_what_changes_an_answer_changes_the_address(teacher_folder, tmp_path, batch):
    row = rows_of(batch, 0)
    cached(teacher_folder, tmp_path).signals(row, LOGITS)
    joined = {**row, "seq_idx": torch.zeros_like(row["seq_idx"])}
    cached(teacher_folder, tmp_path).signals(joined, LOGITS)  # other documents
    cached(teacher_folder, tmp_path, k=4).signals(row, LOGITS)
    cached(teacher_folder, tmp_path, dtype="bfloat16").signals(row, LOGITS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached(teacher_folder, tmp_path).signals(row, LOGITS)
    assert len(files(tmp_path)) == 5
    llama_folder(Path(teacher_folder), seed=7)  # another teacher under the old name
    cached(teacher_folder, tmp_path).signals(row, LOGITS)
    assert len(files(tmp_path)) == 6
    Path(teacher_folder).rename(tmp_path / "moved")
    Path(tmp_path / "moved" / "notes.txt").write_text("")
    moved = cached(str(tmp_path / "moved"), tmp_path)
    moved.signals(row, LOGITS)
    assert moved.teacher._model is None


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "other shape", "no file of ours"])
def test_a_file_that_cannot_be_used_is_made_anew(damage, teacher_folder, tmp_path, batch, caplog):
    wanted = cached(teacher_folder, tmp_path).signals(batch, LOGITS)
    for file in files(tmp_path)[:2]:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1  # in the ids
        if damage == "other shape":
            np.savez(file, index=np.zeros((3, 8), np.int32), log_probs=np.zeros((3, 8), np.float16), rest=np.zeros(3))
        else:
            made = {"empty": b"", "truncated": content[:-100], "flipped": content, "no file of ours": b"text"}
            file.write_bytes(made[damage])
    teacher = cached(teacher_folder, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert same(teacher.signals(batch, LOGITS), wanted)
    assert len(caplog.messages) == 1
    assert "is made anew" in caplog.messages[0]
    caplog.clear()
    assert same(cached(teacher_folder, tmp_path).signals(batch, LOGITS), wanted)
    assert not caplog.messages
    assert [file.suffix for file in files(tmp_path)] == [".npz"] * 3


def test_bytes_a_token(teacher_folder, tmp_path):
    batch = pack([[200, 56]] * 2, seq_len=256)
    cached(teacher_folder, tmp_path, k=32).signals(batch, LOGITS)
    sizes = [file.stat().st_size for file in files(tmp_path)]
    assert len(sizes) == 2 or torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert max(sizes) < 256 * (6 * 32 + 4) + 1000


def test_refusals(teacher_folder, tmp_path, batch):
    teacher = cached(teacher_folder, tmp_path)
    with pytest.raises(ValueError, match="a CachedTeacher keeps likely tokens, no hidden_states"):
        teacher.signals(batch, frozenset({"logits", "hidden_states"}))
    with pytest.raises(ValueError, match=r"k 49 is above the vocabulary of the teacher .* which is 48"):
        cached(teacher_folder, tmp_path, k=49)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        CachedTeacher(HFTeacher(teacher_folder), str(tmp_path), k=0)
    with pytest.raises(ValueError, match="a CachedTeacher has none; set name"):
        CachedTeacher(teacher, str(tmp_path))
    assert CachedTeacher(teacher, str(tmp_path), name="mine").name == "mine"


def rank(number, port, teacher_folder, tmp_path, batch, results):
    """One of two ranks that share the weights of a teacher, of whose rows only the first are known."""
    from torch.distributed.device_mesh import init_device_mesh

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=number, world_size=2)
    teacher = CachedTeacher(HFTeacher(teacher_folder), str(tmp_path / "kept"), k=8)
    teacher.load(torch.device("cpu"), mesh=init_device_mesh("cpu", (2,)))
    hit = teacher.signals(rows_of(batch, 0), LOGITS)
    loaded = teacher.teacher._model is not None
    own = teacher.signals(rows_of(batch, number), LOGITS)
    results.put((number, loaded, teacher.teacher._model is not None, hit.top.index.numpy(), own.top.index.numpy()))
    torch.distributed.destroy_process_group()


def test_ranks_that_share_a_teacher_run_it_together(teacher_folder, tmp_path, batch):
    wanted = cached(teacher_folder, tmp_path / "alone").signals(batch, LOGITS).top.index.numpy()
    cached(teacher_folder, tmp_path).signals(rows_of(batch, 0), LOGITS)
    port = 20000 + os.getpid() % 20000
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    args = (port, teacher_folder, tmp_path, batch, results)
    ranks = [context.Process(target=rank, args=(number, *args), daemon=True) for number in (0, 1)]
    for process in ranks:
        process.start()
    try:
        for _ in ranks:
            number, loaded, loaded_then, hit, own = results.get(timeout=60)
            assert (loaded, loaded_then) == (False, True)
            assert (hit == wanted[:1]).all()
            assert (own == wanted[number : number + 1]).all()
    finally:
        for process in ranks:
            process.join(20)
            process.kill()


def test_training_twice_runs_the_teacher_once(teacher_folder, student_folder, tmp_path):
    def fit():
        teacher = CachedTeacher(HFTeacher(teacher_folder), str(tmp_path / "kept"), k=8)
        module = DistillationModule(student_folder, losses={"kl": TopKKL(k=4)}, teacher=teacher)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=4,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader(8, 2), loader(4, 2, seed=1))
        return teacher, {name: value.item() for name, value in trainer.callback_metrics.items()}

    first, logged = fit()
    assert first.teacher._model is not None
    second, again = fit()
    assert second.teacher._model is None
    assert again == logged
    assert {"val/kl_top_k", "val/top1_agreement", "val/loss_kl"} <= logged.keys()
    assert 0 < logged["val/loss_kl"] <= logged["val/kl_top_k"]
