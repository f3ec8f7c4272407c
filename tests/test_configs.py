"""Every recipe under ``configs/``: its sizes on ``meta``, its token budget, and its stages run one after another.

The runs take the files, and the commands of the READMEs, as they are: in the folder that they run in, the names of the
hub are small folders, a Llama of as many layers as the real one and a few texts. Only batches, lengths and steps are set lower.
"""

import ast
import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from lit_thinkfast.cli import instantiate
from lit_thinkfast.models import HybridConfig, HybridForCausalLM, convert

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = ("llamba_1b", "llamba_3b", "mamba_in_llama_1b", "mamba_in_llama_3b", "llama_ft_1b", "llama_ft_3b")
STEPWISE = CONFIGS / "mamba_in_llama_stepwise" / "step.yaml"
FILES = [path for name in (*RECIPES, "reward_models") for path in sorted((CONFIGS / name).glob("*.yaml"))] + [STEPWISE]
DEVICES = 8
BUDGET = 8.0e9
NOT_KEPT = ("transformers_version", "architectures", "dtype", "_name_or_path")


def file_id(path):
    return f"{path.parent.name}-{path.stem}"


def values_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(recipe, verb):
    """The arguments of each ``lit-thinkfast VERB`` in a README, lines that are continued joined."""
    text = (CONFIGS / recipe / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line)[2:] for line in re.findall(rf"^ *lit-thinkfast {verb} .*$", text, flags=re.MULTILINE)]


def tokens(path):
    values = values_of(path)
    data, trainer = values["data"]["init_args"], values["trainer"]
    step = DEVICES * data["batch_size"] * trainer["accumulate_grad_batches"] * data["seq_len"]
    return step, step * trainer["max_steps"]


# What it costs


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_the_comment_tells_the_tokens(path):
    step, total = tokens(path)
    values = values_of(path)
    data, trainer = values["data"]["init_args"], values["trainer"]
    comment = " ".join(path.read_text(encoding="utf-8").replace("\n# ", " ").split())
    said = re.search(
        r"8 devices x (\d+) rows? x (\d+) x ([\d,]+) = ([\d,]+) tokens a step; x ([\d,]+) steps = ([\d,]+)\.", comment
    )
    expected = (data["batch_size"], trainer["accumulate_grad_batches"], data["seq_len"], step, trainer["max_steps"])
    assert [int(number.replace(",", "")) for number in said.groups()] == [*expected, total]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "ft" not in name])
def test_distillation_takes_8_billion_tokens(recipe):
    """As near as whole steps come, and fine-tuning on top of it."""
    stages = [path for path in sorted((CONFIGS / recipe).glob("*.yaml")) if "sft" not in path.stem]
    spent = [tokens(path) for path in stages]
    assert abs(sum(total for _, total in spent) - BUDGET) < min(step for step, _ in spent)


def test_four_steps_take_8_billion_tokens():
    step, total = tokens(STEPWISE)
    assert abs(4 * total - BUDGET) < step


def test_fine_tuning_is_the_same_for_all():
    """The files differ by the model, and by what its size costs in memory."""
    found = []
    for recipe in RECIPES:
        values = values_of(sorted((CONFIGS / recipe).glob("*.yaml"))[-1])
        model = values["model"]["init_args"]
        del model["student"], values["data"]["init_args"]["tokenizer"]
        model.pop("gradient_checkpointing", None)
        values["trainer"] = {key: values["trainer"][key] for key in ("max_steps", "precision", "gradient_clip_val")}
        found.append(values)
    assert all(values == found[0] for values in found)


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_stages_fit_together(path):
    values = values_of(path)
    trainer, data, model = values["trainer"], values["data"]["init_args"], values["model"]["init_args"]
    run = f"runs/{path.parent.name}/{path.stem}"
    callbacks = {
        callback["class_path"].rpartition(".")[2]: callback.get("init_args") for callback in trainer["callbacks"]
    }
    assert callbacks["ExportStudent"]["path"] == f"{run}/model"
    assert callbacks["ModelCheckpoint"]["dirpath"] == f"{run}/checkpoints"
    assert trainer["default_root_dir"] == run
    logger = trainer["logger"]["init_args"]
    assert f"{logger['save_dir']}/{logger['name']}" == run
    # a step never straddles what Lightning calls an epoch, and workers divide the stream on up to three nodes
    accumulate = trainer["accumulate_grad_batches"]
    assert data.get("steps_per_epoch", 1000) % accumulate == trainer["val_check_interval"] % accumulate == 0
    assert all(data["num_shards"] % (devices * data["num_workers"]) == 0 for devices in (1, 2, 4, 8, 16, 24))
    assert all(data["val_batches"] % devices == 0 for devices in (8, 16, 24))
    stages = sorted(path.parent.glob("*.yaml"))
    before = stages.index(path) - 1
    if path.parent.name in ("llama_ft_1b", "llama_ft_3b", "reward_models"):
        assert model["student"].startswith("meta-llama/")
    elif before < 0:
        assert model["student"] == f"{run if path == STEPWISE else 'runs/' + path.parent.name}/start"
    else:
        assert model["student"] == f"runs/{path.parent.name}/{stages[before].stem}/model"


# What it is, on meta


def on_meta(folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        return model if isinstance(model, HybridForCausalLM) else convert(model, mixer="attention")


def plain(config):
    return {key: value for key, value in config.to_dict().items() if key not in NOT_KEPT}


def convert_options(words):
    """Options of ``convert`` of a command line as keyword arguments of the function."""
    named, options = dict(zip(words[::2], words[1::2], strict=True)), {}
    for key, value in named.items():
        key = key.removeprefix("--").replace("-", "_")
        value = ast.literal_eval(value) if re.fullmatch(r"-?[\d.e-]+", value) else value
        if key.startswith("mixer_options."):
            options.setdefault("mixer_options", {})[key.partition(".")[2]] = value
        elif key == "attention_layers" and value == "none":
            options[key] = []
        elif key not in ("teacher", "out"):
            options[key] = value
    return options


def test_the_steps_halve_the_attention():
    (words,) = commands("mamba_in_llama_stepwise", "convert")
    text = (STEPWISE.parent / "README.md").read_text(encoding="utf-8")
    kept, config = [], None
    with torch.device("meta"):
        student = on_meta(STEPWISE.parent / "teacher")
        for share in re.search(r"for share in ([\d. ]+);", text)[1].split():
            options = convert_options(words) | {"attention_ratio": float(share)}
            student = convert(student, **options)
            config = config or plain(student.config)
            kept.append(student.config.attention_layers)
    assert config == plain(on_meta(STEPWISE.parent / "student").config)
    assert kept == [[1, 3, 5, 7, 9, 11, 13, 15], [3, 7, 11, 15], [7, 15], []]  # 2408.15237: odd layers, 3, 7, ...


@pytest.mark.parametrize("recipe", RECIPES)
def test_student_and_teacher_are_those_of_the_readme(recipe):
    """The configs without weights, for what needs only shapes, against a conversion of the published teacher."""
    size = recipe[-2:]
    published = HybridConfig.published(f"llama32_{size}")
    base = CONFIGS / recipe / ("student" if "ft" in recipe else "teacher")
    teacher = on_meta(base)
    assert json.loads((base / "config.json").read_text())["model_type"] == "llama"
    assert plain(teacher.config) == plain(published) | {"pretraining_tp": 1}
    if "ft" in recipe:
        assert not commands(recipe, "convert")
        return
    (words,) = commands(recipe, "convert")
    with torch.device("meta"):
        made = convert(teacher, **convert_options(words))
    student = on_meta(CONFIGS / recipe / "student")
    assert plain(student.config) == plain(made.config)
    assert {name: p.shape for name, p in student.named_parameters()} == {
        name: p.shape for name, p in made.named_parameters()
    }
    with torch.device("meta"):
        released = HybridForCausalLM(HybridConfig.published(recipe))
    assert count(student) == count(released)


def test_reward_models_start_from_the_teacher():
    assert plain(on_meta(CONFIGS / "reward_models/student").config) == plain(
        on_meta(CONFIGS / "llamba_1b/teacher").config
    )


def count(model, *, trainable=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_what_is_trained_at_full_size(path, monkeypatch, tmp_path):
    """Pattern, groups, optimiser and schedule on the real shapes, and what the losses ask of them."""
    from lit_thinkfast.distill.optim import lambda_lr, parameter_groups, select_trainable

    monkeypatch.chdir(tmp_path)
    cli = instantiate(["--config", str(path)])
    module, trainer = cli.model, cli.trainer
    student = on_meta(path.parent / "student")
    select_trainable(student, module.trainable)
    share = count(student, trainable=True) / count(student)
    if path.stem == "1_matrices":
        assert 0.1 < share < 0.3
        kinds = {re.sub(r"model\.layers\.\d+\.", "", n) for n, p in student.named_parameters() if p.requires_grad}
        assert kinds == {
            *(f"mixer.{name}" for name in ("in_proj.weight", "conv1d.weight", "conv1d.bias", "D")),
            "input_layernorm.weight",
        }
        assert module.weight_decay == 0
    elif path.stem == "2_hidden":
        assert count(student) - count(student, trainable=True) == sum(
            p.numel() for n, p in student.named_parameters() if "layers" not in n
        )
    elif path == STEPWISE:
        assert 0.05 < share < 0.3
        assert all(p.requires_grad == (".mixer." in name) for name, p in student.named_parameters())
    else:
        assert share == 1
    groups = parameter_groups(student, module.weight_decay)
    assert sum(p.numel() for group in groups for p in group["params"]) == count(student, trainable=True)
    optimizer = module.optimizer(groups)
    assert all(group["betas"] in ((0.9, 0.95), (0.9, 0.98), (0.9, 0.999)) for group in optimizer.param_groups)
    scheduler = lambda_lr(optimizer, module.schedule, trainer.max_steps)
    rates = [module.schedule.multiplier(step, trainer.max_steps) for step in range(trainer.max_steps)]
    assert scheduler.get_last_lr()[0] == optimizer.defaults["lr"] * rates[0] < 0.05 * optimizer.defaults["lr"]
    peak = max(rates)
    assert peak == 1
    assert rates[-1] < 0.01
    assert rates == sorted(rates[: rates.index(peak)]) + sorted(rates[rates.index(peak) :], reverse=True)
    if module.teacher is not None:
        layers_agree(module, student, on_meta(path.parent / "teacher"))


def layers_agree(module, student, teacher):
    """What each loss compares has the same shape on both sides."""
    assert student.config.vocab_size == teacher.config.vocab_size
    for loss in module.losses.values():
        if not loss.needs_teacher:
            continue
        if "layers" in loss.needs:
            assert len(student.model.layers) == len(teacher.model.layers)
            assert student.config.hidden_size == teacher.config.hidden_size
            if hasattr(loss, "over_heads"):
                heads = {layer.mixer.num_heads for layer in student.model.layers}
                assert loss.over_heads == (heads != {teacher.config.num_attention_heads})
        else:
            ours, theirs = (torch.empty(4, model.lm_head.out_features, device="meta") for model in (student, teacher))
            value, gradient = loss.divergence(ours, theirs)
            assert (value.shape, gradient.shape) == ((4,), ours.shape)


# What it does, small


@dataclasses.dataclass
class Run:
    """What became of one stage."""

    logged: dict
    without_gradient: list
    steps: int
    folder: Path


SMALL = {
    "data.init_args.seq_len": 96,
    "data.init_args.batch_size": 1,
    "data.init_args.block_size": 4,
    "data.init_args.num_workers": 0,
    "data.init_args.val_batches": 1,
    "trainer.accumulate_grad_batches": 2,
    "trainer.max_steps": 2,
    "trainer.log_every_n_steps": 1,
}


def small_flags(**more):
    return [f"--{key}={value}" for key, value in (SMALL | more).items()]


@pytest.fixture(scope="module")
def small_world(tmp_path_factory, tokenizer):
    """A folder in which the names that the recipes take from the hub are folders, with little in them.

    Returns:
        A function that puts teachers there, of as many layers as the real ones or of four.
    """
    from lit_thinkfast.data.arithmetic import generate_problem

    root = tmp_path_factory.mktemp("small_world")
    teachers = {
        (size, deep): save_teacher(root / f"teachers/{size}-{deep}", tokenizer, layers if deep else 4, heads, width)
        for size, layers, heads, width in (("1B", 16, 4, 16), ("3B", 28, 3, 32))
        for deep in (True, False)
    }

    def with_teachers(*, deep):
        (root / "meta-llama").mkdir(exist_ok=True)
        for size in ("1B", "3B"):
            link = root / f"meta-llama/Llama-3.2-{size}-Instruct"
            link.unlink(missing_ok=True)
            link.symlink_to(teachers[size, deep])

    made = [generate_problem(i, split="train", level=1) for i in range(30)]
    asked = [p.question.split("\n")[0] for p in made]
    lines = [[line for line in p.solution.split("\n") if line][:3] for p in made]
    plain_text = [{"text": "\n".join([question, *part])} for question, part in zip(asked, lines, strict=True)]
    pairs = [
        {"problem": question, "generated_solution": "\n".join(part)}
        for question, part in zip(asked, lines, strict=True)
    ]
    steps = [
        {"prompt": question, "completions": part, "labels": [True] * (len(part) - 1) + [i % 2 > 0]}
        for i, (question, part) in enumerate(zip(asked, lines, strict=True))
    ]
    write_set(root / "HuggingFaceFW/fineweb-edu", plain_text, name="sample-100BT")
    write_set(root / "HuggingFaceTB/finemath", plain_text[::-1], name="finemath-4plus")
    write_set(root / "nvidia/OpenMathInstruct-2", pairs, splits=("train", "train_5M"))
    write_set(root / "trl-lib/math_shepherd", steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
        yield with_teachers


def save_teacher(folder, tokenizer, layers, heads, width):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=heads * width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=width,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_set(folder, rows, *, name="default", splits=("train",)):
    """A dataset that ``load_dataset`` reads by the folder's name, with a configuration and splits."""
    folder.mkdir(parents=True)
    files = [{"split": split, "path": f"{split}.jsonl"} for split in splits]
    card = yaml.safe_dump({"configs": [{"config_name": name, "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_stage(path, *flags, changed=None, callbacks=(), ckpt_path=None):
    """Run a file as ``fit`` does; small, and nothing else changed but what is given."""
    from lightning.pytorch import Callback

    class Watch(Callback):
        without_gradient, steps = (), 0

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.steps += 1
            named = module.student.named_parameters()
            self.without_gradient = [name for name, p in named if p.requires_grad and p.grad is None]

    values = values_of(path) if changed is None else changed
    file = Path("changed.yaml")
    file.write_text(yaml.safe_dump(values))
    cli = instantiate(["--config", str(path if changed is None else file), *small_flags(), *flags])
    cli.trainer.callbacks += [watch := Watch(), *callbacks]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path)
    logged = {name: float(value) for name, value in cli.trainer.logged_metrics.items()}
    export = next(c for c in values["trainer"]["callbacks"] if c["class_path"].endswith("ExportStudent"))
    return Run(logged, list(watch.without_gradient), watch.steps, Path(export["init_args"]["path"]))


@pytest.fixture(scope="module")
def runs(small_world):
    """Each recipe's stages by name, run when they are first asked for."""
    from lit_thinkfast.cli import main

    done = {}

    def run(recipe):
        small_world(deep=recipe.startswith("mamba"))
        if recipe not in done:
            for words in commands(recipe, "convert"):
                main(["convert", *words])
            done[recipe] = {path.stem: run_stage(path) for path in sorted((CONFIGS / recipe).glob("*.yaml"))}
        return done[recipe]

    return run


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("recipe", [*RECIPES, "reward_models"])
def test_every_stage_runs_on_what_the_one_before_left(recipe, runs):
    from transformers import AutoTokenizer

    for stage, run in runs(recipe).items():
        assert math.isfinite(run.logged["train/loss"]), stage
        assert 0 < run.logged["train/grad_norm"] < math.inf, stage
        assert run.without_gradient == [], f"{stage} would stop DDP"
        model = load(run.folder)
        assert all(torch.isfinite(p).all() for p in model.parameters()), stage
        assert len(AutoTokenizer.from_pretrained(run.folder)) == model.config.vocab_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_readme_names_each_stage_and_what_follows(recipe, runs):
    from lit_thinkfast.cli import main

    stages = sorted((CONFIGS / recipe).glob("*.yaml"))
    fits = commands(recipe, "fit")
    assert [words[1] for words in fits] == [f"configs/{recipe}/{path.name}" for path in stages]
    assert all(words[2:4] == ["--ckpt_path", "last"] for words in fits)
    text = (CONFIGS / recipe / "README.md").read_text(encoding="utf-8")
    assert f"for stage in {' '.join(path.stem for path in stages)}; do" in text
    runs(recipe)
    (export,), (evaluate,) = commands(recipe, "export"), commands(recipe, "evaluate")
    main(["export", *export])
    exported = load(export[export.index("--out") + 1])
    assert next(exported.parameters()).dtype == torch.bfloat16
    assert evaluate[evaluate.index("--model") + 1] == export[export.index("--out") + 1]
    assert exported.config.model_type == ("llama" if "ft" in recipe else "lit_thinkfast_hybrid")


def test_the_flags_of_the_readmes_shard(small_world):
    from lightning.pytorch.strategies import ModelParallelStrategy

    for recipe in (name for name in RECIPES if name.endswith("3b")):
        text = (CONFIGS / recipe / "README.md").read_text(encoding="utf-8")
        flags = shlex.split(re.search(r"^FSDP=\((.*?)\)", text, flags=re.MULTILINE | re.DOTALL)[1])
        cli = instantiate(["--config", str(sorted((CONFIGS / recipe).glob("*.yaml"))[-1]), *flags])
        assert isinstance(cli.trainer.strategy, ModelParallelStrategy)
        assert (cli.trainer.strategy._data_parallel_size, cli.trainer.strategy._tensor_parallel_size) == (8, 1)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_the_ways_out_of_32_heads(runs):
    """The default run compares means; here are the others, and what is said without them."""
    from lit_thinkfast.cli import main

    runs("llamba_3b")
    first, second = (CONFIGS / "llamba_3b" / f"{stage}.yaml" for stage in ("1_matrices", "2_hidden"))
    values = values_of(first)
    del values["model"]["init_args"]["losses"]["matrix"]["init_args"]
    with pytest.raises(ValueError, match=r"mixes with 32 heads and the teacher's attention with 3: .*Three ways out"):
        run_stage(first, changed=values)
    (words,) = commands("llamba_3b", "convert")
    start = words.index("--mixer-options.num_heads")
    words = words[:start] + words[start + 4 :]
    words[words.index("--out") + 1] = "runs/of_24/start"
    main(["convert", *words])
    run = run_stage(first, "--model.init_args.student=runs/of_24/start", changed=values)
    assert 0 < run.logged["train/grad_norm"] < math.inf
    run = run_stage(second, "--model.init_args.student=runs/llamba_3b/start")
    assert 0 < run.logged["train/grad_norm"] < math.inf
    values["model"]["init_args"]["losses"]["matrix"]["class_path"] = "lit_thinkfast.MixerOutputLoss"
    values["model"]["init_args"]["trainable"] = r"\.mixer\.|\.input_layernorm\."
    assert "'" + values["model"]["init_args"]["trainable"] + "'" in (first.parent / "README.md").read_text()
    assert run_stage(first, changed=values).without_gradient == []


def test_step_by_step(small_world):
    """The loop of the README: layers that have a mixer keep it as it was trained, the others start from attention."""
    from lit_thinkfast.cli import main

    small_world(deep=False)
    (words,) = commands("mamba_in_llama_stepwise", "convert")
    root, teacher = Path("runs/mamba_in_llama_stepwise"), "meta-llama/Llama-3.2-1B-Instruct"
    before = load(teacher).state_dict()
    frozen = {name for name in before if "self_attn" not in name}
    for share, kept in (("0.5", [1, 3]), ("0.25", [3]), ("0.0", [])):
        line = [{"$from": teacher, "$share": share}.get(word, word) for word in words]
        main(["convert", *line])
        started = load(root / "step/start")
        assert started.config.attention_layers == kept
        own = started.state_dict()
        assert all(torch.equal(own[name], before[name]) for name in own if name in before)
        assert run_stage(STEPWISE).without_gradient == []
        (root / "step").rename(root / share)
        teacher = str(root / share / "model")
        trained = load(teacher).state_dict()
        assert all(torch.equal(trained[name], own[name]) for name in own if ".mixer." not in name)
        assert any(not torch.equal(trained[name], own[name]) for name in own if ".mixer.in_proj" in name)
        assert frozen <= set(trained)
        before = trained


def test_validation_on_the_way_shows_figures_and_samples(runs):
    runs("llamba_1b")
    path = CONFIGS / "llamba_1b" / "3_kd.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8").replace("runs/llamba_1b/3_kd", "runs/shown"))
    (samples,) = (c for c in values["trainer"]["callbacks"] if c["class_path"].endswith("LogSamples"))
    samples["init_args"]["sampling"] = {"temperature": 0.0, "num_samples": 1, "max_new_tokens": 4}
    values["trainer"]["logger"]["init_args"] |= {"save_dir": "runs", "name": "shown"}
    run = run_stage(path, "--trainer.val_check_interval=2", changed=values)
    assert {"val/kl", "val/top1_agreement", "val/loss_kl"} <= set(run.logged)
    written = b"".join(file.read_bytes() for file in Path("runs/shown").glob("events*"))
    assert all(name in written for name in (b"A train runs 90 km", b"train/tokens_per_second", b"train/grad_norm"))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_a_killed_run_goes_on_as_if_it_had_not_been(runs):
    """With the command of the README, which first finds nothing to go on with."""
    from lightning.pytorch import Callback

    class Kill(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                raise RuntimeError("killed")

    runs("llamba_1b")
    path = CONFIGS / "llamba_1b" / "3_kd.yaml"
    found = []
    for name in ("whole", "killed"):
        values = yaml.safe_load(path.read_text(encoding="utf-8").replace("runs/llamba_1b/3_kd", f"runs/{name}"))
        checkpoints = next(c for c in values["trainer"]["callbacks"] if c["class_path"].endswith("ModelCheckpoint"))
        checkpoints["init_args"]["every_n_train_steps"] = 2
        flags = ["--trainer.max_steps=5"]
        if name == "killed":
            with pytest.raises(RuntimeError, match="killed"):
                run_stage(path, *flags, changed=values, callbacks=[Kill()], ckpt_path="last")
            assert Path("runs/killed/checkpoints/last.ckpt").is_symlink()
        run = run_stage(path, *flags, changed=values, ckpt_path="last")
        found.append((run.logged["train/loss"], run.steps, load(run.folder).state_dict()))
    (loss, steps, weights), (resumed_loss, resumed_steps, resumed) = found
    assert (loss, steps, resumed_steps) == (resumed_loss, 5, 3)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
