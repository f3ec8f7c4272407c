"""Released checkpoints: the published mathematics, both layouts, any way of storing, there and back."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from lit_thinkfast.models import HybridForCausalLM, convert, llamba, load_model, load_tokenizer, mamba_in_llama
from lit_thinkfast.models.loading import load_stock
from lit_thinkfast.models.released import load_released, read_foreign

from .released_twins import hybrid_logits, llamba_logits

IDS = torch.randint(3, 50, (2, 11), generator=torch.Generator().manual_seed(0))
SPLIT = ("in_proj_z", "in_proj_x", "B_proj", "C_proj", "dt_proj_down")
LLAMA3 = {
    "factor": 4.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}


# --- files, made by hand


def draw(shapes):
    """Random weights of these shapes, scaled so that everything matters."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith(("norm.weight", ".D")):
            value = 1 + 0.3 * value
        elif len(shape) == 2 and not name.endswith("A_log"):
            value = value * (2 if "mixer" in name or "mamba" in name else 1) / shape[-1] ** 0.5
        weights[name] = value
    return weights


def llamba_files(*, n_qk=4, tied=True, silu=False, d_conv=4, bias=False):
    config = {
        "model_type": "llamba",
        "vocab_size": 50,
        "tie_embeddings": tied,
        "pad_vocab_size_multiple": 8,
        "lm_head_bias": False,
        "d_model": 32,
        "n_layer": 2,
        "resid_dropout": 0.0,
        "norm_epsilon": 1e-5,
        "mlp_cfg": {"intermediate_size": 48, "bias": bias, "act_fn": "silu"},
        "ssm_cfg": {
            "d_state": 6,
            "n_v_heads": 4,
            "n_qk_heads": n_qk,
            "expand": 1,
            "chunk_size": 128,
            "activation": "silu" if silu else "identity",
            "bias": bias,
        },
    }
    if d_conv != 4:
        config["ssm_cfg"]["d_conv"] = d_conv
    channels = 32 + 2 * n_qk * 6
    shapes = {"backbone.embedding.weight": (56, 32), "backbone.final_layernorm.weight": (32,)}
    for i in range(2):
        p = f"backbone.layers.{i}."
        rows = channels + 32 + 4
        shapes |= {f"{p}input_layernorm.weight": (32,), f"{p}post_attention_layernorm.weight": (32,)}
        shapes |= {f"{p}mlp.{name}_proj.weight": (48, 32) for name in ("gate", "up")} | {
            f"{p}mlp.down_proj.weight": (32, 48)
        }
        shapes |= {f"{p}mixer.in_proj.weight": (rows, 32), f"{p}mixer.out_proj.weight": (32, 32)}
        shapes |= {f"{p}mixer.conv1d.weight": (channels, 1, d_conv), f"{p}mixer.conv1d.bias": (channels,)}
        shapes |= {f"{p}mixer.D": (4,)} | ({} if bias else {f"{p}mixer.z_bias": (32,)})
        if bias:
            shapes |= {f"{p}mixer.in_proj.bias": (rows,), f"{p}mixer.out_proj.bias": (32,)}
            shapes |= {f"{p}mlp.{n}_proj.bias": (48 if n != "down" else 32,) for n in ("gate", "up", "down")}
    if not tied:
        shapes["lm_head.weight"] = (56, 32)
    return config, None, draw(shapes)


def hybrid_files(kind="mamba1", *, mixers="fused", attention="mha", tied=True, **ssm):
    """Three layers, attention in the second; heads 4 of width 8 over 2 key/value heads."""
    base = {
        "_name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": [1, 7],
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": dict(LLAMA3),
        "rope_theta": 500.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "vocab_size": 50,
    }
    mamba = {
        "d_model": 32,
        "ssm_cfg": {"expand": 1} | ({"ngroups": 4, "d_state": 8} if kind == "mamba2" else {"d_state": 4}) | ssm,
        "rms_norm_eps": 1e-5,
        "vocab_size": None,
        "d_inner": None if mixers == "split" else 32,
        "d_xb": 16,
        "intermediate_size": 48,
        "hidden_act": "silu",
        "n_layer": 3,
        "attn_layers": [1],
    }
    taps = ssm.get("d_conv", 4)
    shapes = {"model.embed_tokens.weight": (50, 32), "model.norm.weight": (32,)}
    for i in range(3):
        p = f"model.layers.{i}."
        shapes |= {f"{p}input_layernorm.weight": (32,), f"{p}post_attention_layernorm.weight": (32,)}
        shapes |= {f"{p}mlp.{name}_proj.weight": (48, 32) for name in ("gate", "up")}
        shapes |= {f"{p}mlp.down_proj.weight": (32, 48)}
        if i == 1:
            one = {"mha.in_proj": (64, 32), "mha.out_proj": (32, 32)}
            other = {f"self_attn.{name}_proj": (16 if name in "kv" else 32, 32) for name in "qkvo"}
            shapes |= {f"{p}{name}.weight": shape for name, shape in (one if attention == "mha" else other).items()}
        elif kind == "mamba1":
            rank = ssm.get("dt_rank", 2)
            rows = {"in_proj_z": 32, "in_proj_x": 16, "B_proj": 16, "C_proj": 32, "dt_proj_down": rank}
            channels = 32 if ssm.get("repeat_kv_before_conv", True) else 16
            names = rows if mixers == "split" else {"in_proj": sum(rows.values())}
            shapes |= {f"{p}mamba.{name}.weight": (count, 32) for name, count in names.items()}
            shapes |= {f"{p}mamba.conv1d.weight": (channels, 1, taps), f"{p}mamba.conv1d.bias": (channels,)}
            shapes |= {f"{p}mamba.dt_proj.weight": (32, rank), f"{p}mamba.dt_proj.bias": (32,)}
            shapes |= {f"{p}mamba.A_log": (32, 4), f"{p}mamba.D": (32,), f"{p}mamba.out_proj.weight": (32, 32)}
        else:
            shapes |= {f"{p}mamba.in_proj.weight": (100, 32), f"{p}mamba.out_proj.weight": (32, 32)}
            shapes |= {f"{p}mamba.conv1d.weight": (64, 1, taps), f"{p}mamba.conv1d.bias": (64,)}
            shapes |= {f"{p}mamba.{name}": (4,) for name in ("dt_bias", "A_log", "D")}
            shapes |= {f"{p}mamba.norm.weight": (32,)}
            if ssm.get("bias"):
                shapes |= {f"{p}mamba.in_proj.bias": (100,), f"{p}mamba.out_proj.bias": (32,)}
    if not tied:
        shapes["lm_head.weight"] = (50, 32)
    return base, mamba, draw(shapes)


def write(folder, files, *, store="safetensors"):
    config, mamba, weights = files
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if mamba is not None:
        (folder / "mamba_config.json").write_text(json.dumps(mamba, indent=4))
    single, _, suffix = {"safetensors": "model..safetensors", "bin": "pytorch_model..bin"}[store.split()[-1]].partition(
        "."
    )
    save = save_file if store.endswith("safetensors") else torch.save
    if not store.startswith("sharded"):
        save(weights, folder / f"{single}{suffix}")
        return folder
    names, half = sorted(weights), len(weights) // 2
    index = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"{single}-0000{number}-of-00002{suffix}"
        save({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{single}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_foreign(folder, foreign):
    mamba = foreign.files.get("mamba_config.json")
    return write(folder, (foreign.config, mamba, {k: v.contiguous() for k, v in foreign.weights.items()}))


LLAMBAS = {
    "multi-head": {},
    "multi-value, untied": {"n_qk": 2, "tied": False},
    "silu": {"silu": True, "d_conv": 3},
    "biases": {"bias": True, "n_qk": 1},
}
HYBRIDS = {
    "mamba1, M1": {},
    "mamba1, MATH": {"mixers": "split", "attention": "self_attn"},
    "mamba1, repeated after": {"repeat_kv_before_conv": False, "d_conv": 3, "dt_rank": 5, "tied": False},
    "mamba2": {"kind": "mamba2", "attention": "self_attn"},
    "mamba2, biases": {"kind": "mamba2", "bias": True, "d_conv": 3, "tied": False},
}


def all_files():
    for name, made in LLAMBAS.items():
        yield pytest.param(llamba_files, made, id=f"llamba, {name}")
    for name, made in HYBRIDS.items():
        yield pytest.param(hybrid_files, made, id=name)


def close(actual, expected):
    """Norms and files are in float32."""
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def to_foreign(model):
    return (llamba if "discrete_mamba2" in model.config.layer_mixers else mamba_in_llama).to_foreign(model)


# --- the mathematics


@pytest.mark.parametrize("options", LLAMBAS.values(), ids=LLAMBAS)
def test_llamba_gives_the_published_logits(tmp_path, options):
    config, _, weights = files = llamba_files(**options)
    model = load_model(write(tmp_path / "llamba", files), dtype=torch.float64)
    close(model(IDS).logits, llamba_logits(config, weights, IDS))
    assert model.config.vocab_size == 56


@pytest.mark.parametrize("options", HYBRIDS.values(), ids=HYBRIDS)
def test_hybrids_give_the_published_logits(tmp_path, options):
    base, mamba, weights = files = hybrid_files(**options)
    model = load_model(write(tmp_path / "hybrid", files), dtype=torch.float64)
    close(model(IDS).logits, hybrid_logits(base, mamba, weights, IDS))
    kind = options.get("kind", "mamba1")
    assert model.config.layer_mixers == [kind, "attention", kind]
    assert model.generation_config.eos_token_id == [1, 7]


def test_scaled_positions_can_be_kept(tmp_path):
    base, mamba, weights = files = hybrid_files(attention="self_attn")
    write(tmp_path / "hybrid", files)
    kept = load_released(tmp_path / "hybrid", dtype=torch.float64, rope_scaling="keep")
    close(kept(IDS).logits, hybrid_logits(base, mamba, weights, IDS, scaled=True))
    left = load_released(tmp_path / "hybrid", dtype=torch.float64)
    assert (kept(IDS).logits - left(IDS).logits).abs().max() > 1e-2
    assert left.config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}


@pytest.mark.parametrize(("files", "options"), all_files())
def test_decoding_goes_on_from_the_prompt(tmp_path, files, options):
    model = load_model(write(tmp_path / "released", files(**options)))
    whole = model(IDS).logits
    cache = model(IDS[:, :6], use_cache=True).past_key_values
    steps = [model(IDS[:, t : t + 1], past_key_values=cache).logits for t in range(6, 11)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, 6:], rtol=1e-3, atol=1e-3)


# --- reading


@pytest.mark.parametrize("store", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
@pytest.mark.parametrize("files", [llamba_files, hybrid_files])
def test_any_way_of_storing(tmp_path, files, store):
    once = load_model(write(tmp_path / "one", files()))
    again = load_model(write(tmp_path / "other", files(), store=store))
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, once.state_dict()[name])


def test_type_of_the_file(tmp_path):
    config, mamba, weights = hybrid_files()
    weights = {name: weight.bfloat16() for name, weight in weights.items()}
    write(tmp_path / "hybrid", (config, mamba, weights))
    model = load_stock(tmp_path / "hybrid", dtype=None)
    mixer = model.model.layers[0].mixer
    assert model.dtype == mixer.in_proj.weight.dtype == torch.bfloat16
    for name, file in (("A_log", "A_log"), ("D", "D"), ("dt_bias", "dt_proj.bias")):
        assert getattr(mixer, name).dtype == torch.float32
        assert torch.equal(getattr(mixer, name), weights[f"model.layers.0.mamba.{file}"].float())
    assert load_model(tmp_path / "hybrid").dtype == torch.float32


def test_a_tied_head_in_the_file_is_the_embedding(tmp_path):
    config, mamba, weights = hybrid_files()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    model = load_model(write(tmp_path / "hybrid", (config, mamba, weights)))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_generation_settings_beside_the_weights(tmp_path):
    write(tmp_path / "hybrid", hybrid_files())
    (tmp_path / "hybrid" / "generation_config.json").write_text(
        '{"eos_token_id": [9], "temperature": 0.6, "do_sample": true}'
    )
    settings = load_model(tmp_path / "hybrid").generation_config
    assert settings.eos_token_id == [9]
    assert settings.temperature == 0.6


def test_a_released_checkpoint_can_be_a_teacher(tmp_path):
    """Its mixers stay with their quirks; its attention can be replaced by the same mixer."""
    write(tmp_path / "hybrid", hybrid_files())
    student = convert(tmp_path / "hybrid", mixer="mamba1")
    released = load_model(tmp_path / "hybrid")
    assert student.config.layer_mixers == ["mamba1"] * 3
    assert student.config.options_of("mamba1") == released.config.options_of("mamba1")
    assert torch.equal(student.model.layers[0].mixer.dt_bias, released.model.layers[0].mixer.dt_bias)
    attention, mixer = released.model.layers[1].self_attn, student.model.layers[1].mixer
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)
    assert set(mamba_in_llama.to_foreign(student).files["mamba_config.json"]["attn_layers"]) == set()


# --- there and back


@pytest.mark.parametrize(("files", "options"), all_files())
def test_files_come_back_as_they_were(tmp_path, files, options):
    """Through a folder of ours: the same names, the same bits, the same settings, in the same layout."""
    config, mamba, weights = made = files(**options)
    load_stock(write(tmp_path / "released", made), dtype=None).save_pretrained(tmp_path / "ours")
    back = to_foreign(HybridForCausalLM.from_pretrained(tmp_path / "ours"))
    assert back.config == config
    assert back.files == ({} if mamba is None else {"mamba_config.json": mamba})
    assert set(back.weights) == set(weights)
    for name, weight in weights.items():
        assert back.weights[name].dtype == weight.dtype
        assert torch.equal(back.weights[name], weight), name


def student(mixer, helpers, *, attention_layers=(1,), **options):
    teacher = helpers.teacher("llama")
    teacher.config.rms_norm_eps = 1e-5
    made = convert(
        teacher, mixer=mixer, attention_layers=list(attention_layers), mixer_options=options, init="random", seed=2
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "mixer" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return made.eval()


QUIRKS = {"d_state": 4, "gqa_expand": "reference", "dt_bias_mult": 2}
OURS = [
    ("discrete_mamba2", (), {}, {}),
    ("discrete_mamba2", (), {"num_heads": 2, "num_qk_heads": 1, "d_state": 3, "activation": "silu", "d_conv": 3}, {}),
    ("mamba1", (1,), QUIRKS, {}),
    ("mamba1", (1,), QUIRKS, {"mixers": "split", "attention": "self_attn"}),
    ("mamba1", (), QUIRKS | {"repeat_kv_before_conv": False, "dt_rank": 3}, {"mixers": "split"}),
    ("mamba2", (1,), {}, {}),
    ("mamba2", (0, 2), {"d_conv": 3, "bias": True}, {"attention": "self_attn"}),
]


@pytest.mark.parametrize(("mixer", "kept", "options", "layout"), OURS)
def test_students_come_back_as_they_were(helpers, tmp_path, mixer, kept, options, layout):
    ours = student(mixer, helpers, attention_layers=kept, **options)
    format = llamba if mixer == "discrete_mamba2" else mamba_in_llama
    write_foreign(tmp_path / "released", format.to_foreign(ours, **layout))
    back = load_model(tmp_path / "released")
    assert set(back.state_dict()) == set(ours.state_dict())
    for name, weight in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    for key in ("vocab_size", "hidden_size", "layer_mixers", "layer_types", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(back.config, key) == getattr(ours.config, key)
    assert torch.equal(back(IDS).logits, ours(IDS).logits)
    again = format.to_foreign(back)
    assert again.config == read_foreign(tmp_path / "released").config
    assert set(again.weights) == set(format.to_foreign(ours, **layout).weights)


@pytest.mark.parametrize("repeat_first", [True, False])
@pytest.mark.parametrize("layout", [{}, {"mixers": "split"}])
def test_students_without_the_quirks_are_rearranged(helpers, tmp_path, repeat_first, layout):
    """Heads repeated whole and a bias added once: the published program computes the same from other weights."""
    ours = student("mamba1", helpers, d_state=2, repeat_kv_before_conv=repeat_first)
    foreign = mamba_in_llama.to_foreign(ours, **layout)
    expected = hybrid_logits(foreign.config, foreign.files["mamba_config.json"], foreign.weights, IDS)
    close(ours.double()(IDS).logits, expected)
    back = load_model(write_foreign(tmp_path / "released", foreign), dtype=torch.float64)
    close(back(IDS).logits, expected)
    assert back.config.options_of("mamba1")["gqa_expand"] == "reference"


def test_base_model_and_sizes_of_a_student_of_the_published_size():
    """The published loader starts from the model that ``_name_or_path`` names."""
    from lit_thinkfast.models import HybridConfig

    with torch.device("meta"):
        model = HybridForCausalLM(HybridConfig.published("mamba_in_llama_1b"))
        llama = HybridForCausalLM(HybridConfig.published("llamba_3b"))
    foreign = mamba_in_llama.to_foreign(model)
    assert foreign.config["_name_or_path"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert len(json.dumps(foreign.files["mamba_config.json"], indent=4)) == 305  # the size of the published file
    assert foreign.files["mamba_config.json"]["ssm_cfg"] == {"expand": 1}
    written = json.dumps(llamba.to_foreign(llama).config, indent=2)
    assert len(written.replace("1e-05", "1e-5")) == 480  # likewise
    assert not any("lm_head" in name for name in llamba.to_foreign(llama).weights)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_epsilon": 1e-6}, ["norm_epsilon is 1e-06"]),
        ({"lm_head_bias": True}, ["lm_head_bias is True"]),
        ({"n_layer": 3}, ["weights missing: ", "model.layers.2."]),
        ({"n_layer": 1}, ["weights without a place: ", "model.layers.1."]),
        ({"d_model": "x"}, ["cannot be used"]),
        ({"pad_vocab_size_multiple": 16}, ["of another shape: ", "model.embed_tokens.weight"]),
        ({"vocab_size": None}, ["cannot be used"]),
    ],
)
def test_llambas_that_are_wrong(tmp_path, change, words):
    config, _, weights = llamba_files()
    folder = write(tmp_path / "wrong", (config | change, None, weights))
    with pytest.raises(ValueError, match="wrong") as error:
        load_model(folder)
    for word in words:
        assert word in one_line(error)


@pytest.mark.parametrize(
    ("kind", "base_change", "change", "words"),
    [
        ("mamba1", {}, {"d_xb": 8}, ["d_xb is 8", "16"]),
        ("mamba1", {}, {"d_inner": 64}, ["d_inner is 64", "32"]),
        ("mamba1", {}, {"n_layer": 2}, ["n_layer is 2", "3"]),
        ("mamba1", {}, {"ssm_cfg": {"expand": 1, "ngroups": 4, "d_state": 8}}, ["describes Mamba-2", "those of Mamba-1"]),
        ("mamba1", {}, {"ssm_cfg": {"expand": 1, "conv_bias": False, "d_state": 4}}, ["conv_bias in ssm_cfg is False"]),
        ("mamba1", {}, {"attn_layers": [0, 1]}, ["weights missing: ", "model.layers.0.self_attn.k_proj.weight"]),
        ("mamba1", {"intermediate_size": 40}, {}, ["intermediate_size is 48", "40"]),
        ("mamba1", {"num_key_value_heads": 4}, {}, ["d_xb is 16", "32"]),
        ("mamba2", {}, {"ssm_cfg": {"expand": 1}}, ["describes Mamba-1", "those of Mamba-2"]),
        ("mamba2", {}, {"ssm_cfg": {"expand": 1, "ngroups": 2, "d_state": 16}}, ["ngroups in ssm_cfg is 2", "4"]),
        ("mamba2", {"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-6}, ["rms_norm_eps is 1e-06", "1e-05"]),
        ("mamba2", {}, {"ssm_cfg": {"ngroups": 4, "d_state": 8, "repeat_kv_before_conv": True}}, ["repeat_kv_before_conv"]),
    ],
)  # fmt: skip
def test_hybrids_that_are_wrong(tmp_path, kind, base_change, change, words):
    base, mamba, weights = hybrid_files(kind)
    folder = write(tmp_path / "wrong", (base | base_change, mamba | change, weights))
    with pytest.raises(ValueError, match="wrong") as error:
        load_model(folder)
    for word in words:
        assert word in one_line(error)


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_missing_or_damaged(tmp_path):
    whole = write(tmp_path / "whole", hybrid_files(mixers="split"), store="sharded safetensors")
    torn = shutil.copytree(whole, tmp_path / "torn")
    (torn / "model-00002-of-00002.safetensors").unlink()
    empty = shutil.copytree(whole, tmp_path / "empty", ignore=lambda *_: [p.name for p in whole.glob("model*")])
    damaged = write(tmp_path / "damaged", llamba_files())
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:500])
    pickled = write(tmp_path / "pickled", llamba_files(), store="bin")
    torch.save({"code": Code(tmp_path / "ran")}, pickled / "pytorch_model.bin")
    for folder, words in (
        (torn, "model-00002-of-00002.safetensors is missing"),
        (empty, "no weights"),
        (damaged, "damaged"),
        (pickled, "pickled"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=words) as error:
            load_model(folder)
        assert folder.name in one_line(error)
    assert not (tmp_path / "ran").exists(), "code in a file of weights was run"
    base, mamba, weights = hybrid_files(mixers="split")
    del weights["model.layers.0.mamba.B_proj.weight"]
    with pytest.raises(ValueError, match=r"weights missing: model.layers.0.mamba.B_proj.weight"):
        load_model(write(tmp_path / "piece", (base, mamba, weights)))


def test_students_that_the_formats_cannot_hold(helpers):
    def refuse(model, words, target=mamba_in_llama, **options):
        with pytest.raises(ValueError, match=words) as error:
            target.to_foreign(model, **options)
        one_line(error)

    refuse(student("mamba1", helpers, d_state=4), "layer 0 has the mixer 'mamba1'", llamba)
    refuse(student("mamba2", helpers), "layer 0 has the mixer 'mamba2'", llamba)
    refuse(student("discrete_mamba2", helpers), "layer 1 has the mixer 'attention'", llamba)
    refuse(student("discrete_mamba2", helpers), "the layers have discrete_mamba2")
    refuse(student("mamba2", helpers, attention_layers=(0, 1, 2)), "the layers have attention only")
    refuse(student("mamba2", helpers), "no split layout", mixers="split")
    other = convert(helpers.teacher("llama"), mixer="mamba2", attention_layers=[1])  # epsilon 1e-6
    refuse(other, "rms_norm_eps is 1e-06")
    refuse(convert(helpers.teacher("llama"), mixer="discrete_mamba2"), "rms_norm_eps is 1e-06", llamba)
    options = {"mixer": "mamba1", "attention_layers": [1], "mixer_options": {"d_state": 4}}
    refuse(convert(helpers.teacher("qwen2"), **options), "the family is qwen2")
    refuse(convert(helpers.teacher("mistral"), **options), "sliding window")
    refuse(convert(helpers.teacher("llama_bias"), **options), "MLPs have biases")
    scaled = convert(helpers.teacher("llama3_rope"), **options)
    refuse(scaled, "RoPE scaled as llama3")
    assert mamba_in_llama.to_foreign(scaled, rope_scaling="keep").config["rope_scaling"]["factor"] == 4.0


# --- the hub, tokenizers, the command line


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local cache of the hub, made by hand: ``hub(id, folder)`` puts a folder into it."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    revisions = itertools.count(1)

    def put(repo, folder):
        revision = f"{next(revisions):040d}"
        entry = tmp_path / "cache" / ("models--" + repo.replace("/", "--"))
        (entry / "refs").mkdir(parents=True)
        (entry / "refs" / "main").write_text(revision)
        shutil.copytree(folder, entry / "snapshots" / revision)
        return repo

    return put


def test_a_hub_id_that_is_in_the_local_cache(tmp_path, hub, tiny_teacher):
    plain = write(tmp_path / "llamba", llamba_files())
    math = write(tmp_path / "math", hybrid_files(), store="bin")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_teacher / name, math / name)
    for repo, folder in (("cartesia-ai/Llamba-0B", plain), ("someone/Hybrid_MATH", math)):
        hub(repo, folder)
        model, local = load_model(repo), load_model(folder)
        assert torch.equal(model(IDS).logits, local(IDS).logits)
        assert model.name_or_path == repo
    assert load_tokenizer("someone/Hybrid_MATH").chat_template == load_tokenizer(tiny_teacher).chat_template
    with pytest.raises(FileNotFoundError, match="no tokenizer in cartesia-ai/Llamba-0B") as error:
        load_tokenizer("cartesia-ai/Llamba-0B")
    assert "--tokenizer" in one_line(error)
    hub("someone/empty", tmp_path / "math")
    for path in (tmp_path / "cache").glob("models--someone--empty/snapshots/*/pytorch_model.bin"):
        path.unlink()
    for repo, words in (("someone/empty", "no weights"), ("someone/nowhere", "someone/nowhere")):
        with pytest.raises(FileNotFoundError, match=words) as error:
            load_model(repo)
        assert repo in one_line(error)


def test_what_is_downloaded(tmp_path, hub, monkeypatch):
    """Configuration, tokenizer and one kind of weights; nothing else that lies in a repository."""
    import huggingface_hub

    def download(repo, *, allow_patterns):
        for path in (tmp_path / repo.replace("/", "-")).iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshots[repo] / path.name)
        return str(snapshots[repo])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    snapshots = {}
    for repo, store in (("a/safe", "safetensors"), ("a/pickled", "sharded bin")):
        folder = write(tmp_path / repo.replace("/", "-"), hybrid_files(), store=store)
        (folder / "tokenizer.json").touch()
        for name in ("optimizer.bin", "training_args.bin", "consolidated.safetensors", "model.onnx"):
            (folder / name).touch()
        if store == "safetensors":
            (folder / "pytorch_model.bin").touch()
        hub(repo, folder)
        (snapshots[repo],) = (tmp_path / "cache" / f"models--{repo.replace('/', '--')}" / "snapshots").iterdir()
        for path in snapshots[repo].iterdir():
            if path.name not in ("config.json", "mamba_config.json"):
                path.unlink()
        assert torch.equal(load_model(repo)(IDS).logits, load_model(folder)(IDS).logits)
        settings = {"config.json", "mamba_config.json", "tokenizer.json"}
        weights = {path.name for path in folder.glob("pytorch_model*" if "bin" in store else "model.safetensors")}
        assert {path.name for path in snapshots[repo].iterdir()} == settings | weights


def test_tokenizers_of_a_llamba(tmp_path, tiny_teacher):
    folder = write(tmp_path / "llamba", llamba_files())
    config = json.loads((folder / "config.json").read_text())
    for width, words in ((2048, "meta-llama/Llama-3.2-1B"), (4096, "meta-llama/Llama-3.1-8B"), (32, "distilled from")):
        (folder / "config.json").write_text(json.dumps(config | {"d_model": width}))
        with pytest.raises(FileNotFoundError, match=words) as error:
            load_tokenizer(folder)
        one_line(error)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    assert load_tokenizer(folder).eos_token == load_tokenizer(tiny_teacher).eos_token


def test_convert_from_the_command_line(cli, tmp_path, tiny_teacher):
    source, out = write(tmp_path / "llamba", llamba_files()), tmp_path / "student"
    code, said, err = cli("convert", "--from", "llamba", source, out, "--tokenizer", tiny_teacher)
    assert code == 0, err
    assert "discrete_mamba2 discrete_mamba2" in said
    loaded, tokenizer = load_model(out), load_tokenizer(out)
    assert torch.equal(loaded(IDS).logits, load_model(source)(IDS).logits)
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    hybrid = write(tmp_path / "hybrid", hybrid_files())
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(hybrid)
    more = ("--from=mamba_in_llama", "--rope-scaling", "keep")
    code, _, err = cli("convert", hybrid, tmp_path / "kept", *more)
    assert code == 0, err
    assert load_model(tmp_path / "kept").config.rope_parameters["rope_type"] == "llama3"
    assert load_model(tmp_path / "kept").generation_config.eos_token_id == [1, 7]


def test_words_of_convert(cli, tmp_path, tiny_teacher):
    """``convert TEACHER OUT`` in any place among options, which keep their values."""
    for number, words in enumerate(
        (
            [tiny_teacher, "OUT", "--attention-layers", "1"],
            ["--attention-layers", "1", tiny_teacher, "OUT"],
            [tiny_teacher, "--attention-layers=1", "OUT"],
            ["OUT", "--teacher", tiny_teacher, "--attention-layers", "1"],
            ["--out", "OUT", tiny_teacher, "--attention-layers", "1", "--mixer_options.d_conv", "3"],
        )
    ):
        out = tmp_path / f"student{number}"
        code, said, err = cli("convert", *(out if word == "OUT" else word for word in words))
        assert code == 0, err
        assert "mamba2 attention" in said
        assert (out / "config.json").is_file()
    code, said, _ = cli("convert", "--print_config", tiny_teacher, tmp_path / "no")
    assert code == 0
    assert f"teacher: {tiny_teacher}" in said
    assert cli("convert", "--help")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["HYBRID", "OUT", "--from", "llamba"], ["format mamba_in_llama, not llamba", "--from mamba_in_llama"]),
        (["LLAMBA", "OUT", "--from", "mamba_in_llama"], ["format llamba, not mamba_in_llama"]),
        (["TEACHER", "OUT", "--from", "llamba"], ["family 'llama'", "without --from"]),
        (["LLAMBA", "OUT", "--from", "mamba"], ["'llamba', 'mamba_in_llama'", "Got value: mamba"]),
        (["LLAMBA", "OUT", "--from", "llamba"], ["no tokenizer", "--tokenizer"]),
        (["LLAMBA", "OUT", "--from", "llamba", "--mixer", "mamba2"], ["drop --mixer"]),
        (["LLAMBA", "OUT", "--from", "llamba", "--attention-layers", "1", "--init", "random"],
         ["drop --attention_layers, --init"]),
        (["LLAMBA", "OUT", "--from", "llamba", "--rope-scaling", "keep"], ["no attention", "rope_scaling"]),
        (["TEACHER", "OUT", "--tokenizer", "TEACHER"], ["--tokenizer is for a released checkpoint"]),
        (["TEACHER", "OUT", "more"], ["no place for 'more'"]),
        (["TEACHER", "OUT", "--out", "OUT"], ["no place for", "student"]),
        (["TEACHER"], ["out"]),
        (["nowhere", "OUT", "--from", "llamba"], ["nowhere"]),
    ],
)  # fmt: skip
def test_convert_refuses(cli, tmp_path, tiny_teacher, words, said):
    places = {
        "HYBRID": write(tmp_path / "hybrid", hybrid_files()),
        "LLAMBA": write(tmp_path / "llamba", llamba_files()),
        "TEACHER": tiny_teacher,
        "OUT": tmp_path / "student",
    }
    code, _, err = cli("convert", *(places.get(word, word) for word in words))
    assert code == 2, err
    last = err.splitlines()[-1]
    assert last.startswith("lit-thinkfast: error: ")
    for word in said:
        assert word in last
    assert not (tmp_path / "student").exists()
