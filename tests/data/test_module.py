"""The data module inside Lightning's own loops."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint

from lit_thinkfast.data.corpora import ArithmeticCorpus, JsonlCorpus
from lit_thinkfast.data.module import MathDataModule, load_fast_tokenizer
from lit_thinkfast.data.prompts import encode_example
from lit_thinkfast.records import Example

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*worker processes in total.*",
    "ignore:.*(GPU|srun).*",
    "ignore:.*Checkpoint directory.*",
    "ignore:.*callbacks used to create the checkpoint.*",
)


class Recorder(LightningModule):
    """Notes what it is given; its weight depends on every batch in order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows, self.held_out, self.problems = [], [], []

    def training_step(self, batch, batch_idx):
        self.rows.append(batch["input_ids"].clone())
        return (self.weight - batch["input_ids"].float().mean() / 100) ** 2

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            self.held_out.append(batch["input_ids"].clone())
        else:
            self.problems += batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(**changes):
    settings = {
        "seq_len": 512,
        "batch_size": 2,
        "steps_per_epoch": 5,
        "val_batches": 3,
        "num_shards": 4,
        "block_size": 8,
    }
    settings = {**settings, "problems": "arithmetic", "problems_level": 1, "num_problems": 5, "problem_batch_size": 2}
    return MathDataModule(ArithmeticCorpus(1), tokenizer="arithmetic", **{**settings, **changes})


def trainer(folder, **changes):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings = {
        **settings,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "max_steps": 12,
        "max_epochs": -1,
    }
    return Trainer(**{"enable_checkpointing": False, "num_sanity_val_steps": 0, **settings, **changes})


def saving(folder, every, **changes):
    callback = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    return trainer(folder, enable_checkpointing=True, callbacks=[callback], **changes)


def test_fit_and_validate(tmp_path):
    module, datamodule = Recorder(), data()
    trainer(tmp_path).fit(module, datamodule=datamodule)
    assert len(module.rows) == 12
    assert all(rows.shape == (2, 512) for rows in module.rows)
    assert len({rows.numpy().tobytes() for rows in module.rows}) == 12
    assert len(module.held_out) == 2 * 3  # two epochs of 5 steps were finished
    assert all(torch.equal(a, b) for a, b in zip(module.held_out[:3], module.held_out[3:], strict=True))
    assert module.problems == datamodule.problem_set * 2
    assert [p.id for p in datamodule.problem_set] == [f"validation/1/0/{i}" for i in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 5, 7, 10])  # within and at the end of an epoch
def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path, stop, workers):
    whole = Recorder()
    trainer(tmp_path).fit(whole, datamodule=data(num_workers=workers))
    first, resumed = Recorder(), Recorder()
    saving(tmp_path, stop, max_steps=stop + 1).fit(first, datamodule=data(num_workers=workers))
    checkpoint = tmp_path / f"step={stop}.ckpt"
    saving(tmp_path, stop).fit(resumed, datamodule=data(num_workers=workers), ckpt_path=checkpoint)
    assert len(resumed.rows) == 12 - stop
    assert torch.equal(torch.stack(resumed.rows), torch.stack(whole.rows[stop:]))
    assert torch.equal(resumed.weight, whole.weight)


def test_checkpoints_without_a_state_of_the_data_module_resume(tmp_path):
    """Version 0.1.0 left the place to the loader alone."""
    whole, resumed = Recorder(), Recorder()
    saving(tmp_path, 3).fit(whole, datamodule=data())
    old = torch.load(tmp_path / "step=3.ckpt")
    del old["MathDataModule"]
    torch.save(old, tmp_path / "old.ckpt")
    trainer(tmp_path).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "old.ckpt")
    assert torch.equal(torch.stack(resumed.rows), torch.stack(whole.rows[3:]))


def test_epochs_without_max_steps_resume(tmp_path):
    """Lightning keeps the state from the loader then. A data module that was used goes back as well."""
    whole, used = Recorder(), data()
    epochs = {"max_steps": -1, "max_epochs": 3}
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[callback], **epochs).fit(whole, datamodule=used)
    for datamodule in (data(), used):
        resumed = Recorder()
        trainer(tmp_path, **epochs).fit(resumed, datamodule=datamodule, ckpt_path=tmp_path / "epoch=0.ckpt")
        assert torch.equal(torch.stack(resumed.rows), torch.stack(whole.rows[5:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_fit_begins_with_the_first_batch(tmp_path, workers):
    """So that models trained one after the other see the same data."""
    first, second, datamodule = Recorder(), Recorder(), data(num_workers=workers)
    saving(tmp_path, 2, max_steps=3).fit(first, datamodule=datamodule)
    trainer(tmp_path).validate(first, datamodule=datamodule, ckpt_path=tmp_path / "step=2.ckpt", verbose=False)
    trainer(tmp_path, max_steps=3).fit(second, datamodule=datamodule)
    assert torch.equal(torch.stack(first.rows), torch.stack(second.rows))


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|lr_find|suggestion).*")
def test_a_search_for_a_learning_rate_uses_no_data_up(tmp_path):
    class Tuned(Recorder):
        lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    seen = Tuned()
    search = LearningRateFinder(num_training_steps=3, early_stop_threshold=None)
    trainer(tmp_path, max_steps=2, callbacks=[search]).fit(seen, datamodule=data())
    assert len(seen.rows) > 3
    assert torch.equal(torch.stack(seen.rows[-2:]), torch.stack(seen.rows[:2]))


def test_loaders_made_anew_each_epoch_go_on(tmp_path):
    whole, reloaded = Recorder(), Recorder()
    trainer(tmp_path).fit(whole, datamodule=data())
    trainer(tmp_path, reload_dataloaders_every_n_epochs=1).fit(reloaded, datamodule=data())
    assert torch.equal(torch.stack(reloaded.rows), torch.stack(whole.rows))


def test_other_settings_do_not_resume(tmp_path):
    saving(tmp_path, 3, max_steps=3).fit(Recorder(), datamodule=data())
    with pytest.raises(ValueError, match="cannot resume the data: seed was 0"):
        saving(tmp_path, 3).fit(Recorder(), datamodule=data(seed=1), ckpt_path=tmp_path / "step=3.ckpt")


class Writing(Recorder):
    """Leaves what each rank saw in a folder, as ranks are processes of their own."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_fit_end(self):
        seen = {"rows": torch.stack(self.rows), "ids": [p.id for p in self.problems], "held_out": len(self.held_out)}
        torch.save(seen, self.folder / f"rank{self.global_rank}.pt")


def test_two_ranks_see_the_batches_of_one_and_resume(tmp_path):
    """Two processes under DDP: each problem once, and the same global order before and after a restart."""
    alone = Recorder()
    trainer(tmp_path, max_steps=10).fit(alone, datamodule=data())
    two = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": True}
    saving(tmp_path, 2, max_steps=3, **two).fit(Writing(tmp_path), datamodule=data(steps_per_epoch=3))
    first = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    checkpoint = tmp_path / "step=2.ckpt"
    saving(tmp_path, 2, max_steps=5, **two).fit(
        Writing(tmp_path), datamodule=data(steps_per_epoch=3), ckpt_path=checkpoint
    )
    again = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    expected = torch.stack(alone.rows).unflatten(0, (5, 2)).transpose(0, 1)  # rank, step, row, token
    for rank in range(2):
        assert torch.equal(first[rank]["rows"], expected[rank, :3])
        assert torch.equal(again[rank]["rows"], expected[rank, 2:])
    assert sorted(first[0]["ids"] + first[1]["ids"]) == [f"validation/1/0/{i}" for i in range(5)]
    assert [first[rank]["held_out"] for rank in range(2)] == [2, 1]


CONFIG = """
data:
  class_path: MathDataModule
  init_args:
    corpus:
      class_path: lit_thinkfast.data.corpora.JsonlCorpus
      init_args:
        path: train.jsonl
        prompt_column: question
        response_column: answer
    tokenizer: arithmetic
    seq_len: 2048
    batch_size: 8
    problems: gsm8k
    system: boxed
"""


def parse(text, tmp_path):
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return parser.instantiate_classes(parser.parse_args([f"--config={path}"])).data


def test_made_from_a_config(tmp_path):
    made = parse(CONFIG, tmp_path)
    assert isinstance(made, MathDataModule)
    assert isinstance(made.corpus, JsonlCorpus)
    assert made.system.startswith("Please reason")
    for typed, wrong in {"seq_len": "seq_length", "prompt_column": "prompts"}.items():
        with pytest.raises(Exception, match=wrong):
            parse(CONFIG.replace(typed, wrong), tmp_path)


def test_a_test_takes_the_problems_of_the_test_split():
    made = MathDataModule(
        ArithmeticCorpus(), tokenizer="arithmetic", seq_len=64, batch_size=1, problems="arithmetic", num_problems=2
    )
    with pytest.raises(ValueError, match="there is nothing to test on: name problems"):
        made.test_dataloader()
    for stage, split in {"fit": "validation", "test": "test", "validate": "validation"}.items():
        made.setup(stage)
        assert [p.id.split("/")[0] for p in made.problem_set] == [split] * 2
    chosen = MathDataModule(
        ArithmeticCorpus(),
        tokenizer="arithmetic",
        seq_len=64,
        batch_size=1,
        problems="arithmetic",
        problems_split="train",
        num_problems=2,
    )
    chosen.setup("test")
    assert [[p.id.split("/")[0] for p in batch] for batch in chosen.test_dataloader()] == [["train", "train"]]


class Placed(MathDataModule):
    """A data module that is told its place."""

    place = (0, 1)

    def _place(self):
        return self.place


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_problems_and_held_out_rows_are_shared_out_without_doubles(ranks):
    seen, rows = [], []
    for rank in range(ranks):
        datamodule = data()
        datamodule.__class__ = Placed
        datamodule.place = (rank, ranks)
        datamodule.setup("validate")
        tokens, problems = datamodule.val_dataloader()
        rows += [batch["input_ids"] for batch in tokens]
        assert len(problems) == len(list(problems))
        seen += [problem for batch in problems for problem in batch]
    assert len(seen) == 5
    assert sorted(p.id for p in seen) == [p.id for p in datamodule.problem_set]
    assert len(rows) == 3
    assert len({r.numpy().tobytes() for r in rows}) == 3


def test_more_ranks_than_problems():
    datamodule = data(num_problems=1)
    datamodule.__class__ = Placed
    datamodule.place = (1, 2)
    datamodule.setup("validate")
    assert list(datamodule.val_dataloader()[1]) == []
    assert datamodule.allow_zero_length_dataloader_with_multiple_devices


def test_held_out_rows_may_be_few_but_not_none(write_rows, tokenizer):
    def loader(count, ranks=1, **changes):
        path = write_rows([{"prompt": "p", "response": "r" * 9}] * count)
        corpus = JsonlCorpus("unused", validation_path=path)
        length = 2 * len(encode_example(tokenizer, Example("", "p", "r" * 9))[0])
        made = Placed(corpus, tokenizer="arithmetic", seq_len=length, batch_size=2, **changes)
        made.place = (0, ranks)
        made.setup("validate")
        return list(made.val_dataloader()[0])

    assert [batch["input_ids"].shape[0] for batch in loader(5)] == [2, 1]  # two documents a row
    assert len(loader(50, val_batches=3)) == 3
    with pytest.raises(ValueError, match="the validation split of JsonlCorpus has no usable example"):
        loader(0)
    with pytest.raises(ValueError, match="1 held-out batches cannot serve 2 ranks; raise val_batches"):
        loader(3, ranks=2)


def test_the_tokenizer_of_a_gguf_file(tmp_path, tokenizer):
    gguf = pytest.importorskip("gguf")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    made = load_fast_tokenizer(str(path))
    text = "Ada has 12 apples.\n"
    assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text
    assert made.get_vocab().items() >= tokenizer.get_vocab().items()
    assert made.eos_token_id == tokenizer.eos_token_id
    path.write_bytes(path.read_bytes()[:99])
    for wrong in (path, tmp_path / "none.gguf"):
        with pytest.raises(ValueError, match=rf"cannot load the tokenizer .*{wrong.name}") as caught:
            load_fast_tokenizer(str(wrong))
        assert "\n" not in str(caught.value)


def test_bad_arguments_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="batch_size 0 is below 1"):
        data(batch_size=0)
    with pytest.raises(ValueError, match="num_workers -1 is below 0"):
        data(num_workers=-1)
    with pytest.raises(ValueError, match="unknown system prompt 'boxd'"):
        data(system="boxd")
    made = MathDataModule(ArithmeticCorpus(1), tokenizer=str(tmp_path / "none"), seq_len=512, batch_size=2)
    with pytest.raises(ValueError, match=r"cannot load the tokenizer .*none") as caught:
        made.setup("fit")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown problems 'x'"):
        data(problems="x").setup("fit")
