"""Exported folders."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lit_thinkfast.callbacks import ExportStudent
from lit_thinkfast.data.arithmetic import TOKENIZER
from lit_thinkfast.distill import CrossEntropy, DistillationModule
from lit_thinkfast.distill.students import check_export_target, export_folder
from lit_thinkfast.models import HybridForCausalLM, convert

from .conftest import llama_folder, loader
from .test_module import adamw, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


def module(folder):
    return DistillationModule(folder, losses={"ce": CrossEntropy()}, optimizer=adamw(1e-2))


def test_the_export_loads_with_the_auto_class_and_has_the_tokenizer(tmp_path, student_folder):
    out, trained = tmp_path / "deep" / "out", module(student_folder)
    trainer(tmp_path, steps=2, callbacks=[ExportStudent(str(out), tokenizer_from=str(TOKENIZER))]).fit(
        trained, loader(8, 2)
    )
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(loaded) is LlamaForCausalLM  # a student without recurrent layers is exported as what it was
    for name, value in trained.student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(TOKENIZER).chat_template
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_hybrid_is_exported_as_a_hybrid(tmp_path, student_folder):
    out, source = tmp_path / "out", tmp_path / "hybrid"
    convert(student_folder, attention_layers=[1]).save_pretrained(source)
    trained = module(str(source))
    trainer(tmp_path, steps=1, callbacks=[ExportStudent(str(out))]).fit(trained, loader(4, 2))
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(loaded) is HybridForCausalLM
    assert loaded.config.layer_mixers == ["mamba2", "attention"]
    for name, value in trained.student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_every_checkpoint_exports_and_the_tokenizer_of_the_student_goes_along(tmp_path):
    folder = llama_folder(tmp_path / "student", weights=False)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    out = tmp_path / "out"
    seen = []

    class Spy(ExportStudent):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            seen.append(AutoModelForCausalLM.from_pretrained(out).model.norm.weight.detach())

    callbacks = [Spy(str(out)), ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=2, save_top_k=-1)]
    trainer(tmp_path, steps=4, callbacks=callbacks, enable_checkpointing=True).fit(module(folder), loader(8, 2))
    assert len(seen) >= 2
    assert not torch.equal(seen[0], seen[1])
    assert AutoTokenizer.from_pretrained(out).chat_template is not None


def test_a_folder_of_something_else_is_left_alone(tmp_path, student_folder):
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    run = trainer(tmp_path, callbacks=[ExportStudent(str(precious.parent))])
    with pytest.raises(ValueError, match="exists and is not a model folder"):
        run.fit(module(student_folder), loader(8, 2))
    assert [f.name for f in precious.parent.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="exists and is not a model folder"):
        check_export_target(precious)


def test_what_lies_beside_a_model_stays_and_its_old_files_go(tmp_path, student_folder):
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    target = export_folder(model, tmp_path / "model", tokenizer_from=str(TOKENIZER))
    (target / "model-00002-of-00002.safetensors").write_bytes(b"of a larger model")
    (target / "README.md").write_text("a card")
    (target / "checkpoint-500").mkdir()
    (target / "checkpoint-500" / "optimizer.pt").write_bytes(b"state")
    export_folder(model, target)
    assert (target / "README.md").read_text() == "a card"
    assert (target / "checkpoint-500" / "optimizer.pt").read_bytes() == b"state"
    assert not (target / "model-00002-of-00002.safetensors").exists()
    assert not (target / "tokenizer.json").exists(), "this export has no tokenizer"


def test_an_interrupt_between_two_renames_keeps_the_old_folder(tmp_path, student_folder, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    target = export_folder(model, tmp_path / "model", tokenizer_from=str(TOKENIZER))
    before = {f.name: f.read_bytes() for f in target.iterdir()}
    rename = Path.rename

    def interrupted(self, to):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_folder(model, target)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model", "student"]


def test_a_failed_export_keeps_the_old_folder(tmp_path, student_folder):
    class Broken:
        def save_pretrained(self, path):
            path.mkdir()
            raise OSError("disk full")

    before = sorted(p.name for p in (tmp_path / "student").iterdir())
    with pytest.raises(OSError, match="disk full"):
        export_folder(Broken(), student_folder)
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
