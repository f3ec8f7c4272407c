"""Exports to stock architectures. The student is the twin of what transformers loads from the folder, without our code."""

import functools
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from lit_thinkfast.mixers import MIXERS, Mamba2Mixer
from lit_thinkfast.models import convert, load_model
from lit_thinkfast.models import export as module
from lit_thinkfast.models.export import EXPECTED, TARGETS, export_model, verify_export

SIZES = {
    "vocab_size": 56,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,  # larger ones amplify rounding: student and stock each differ more from float64
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TEACHERS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama3_rope": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "attention_bias": lambda: LlamaConfig(**SIZES, attention_bias=True),
    "mlp_bias": lambda: LlamaConfig(**SIZES, mlp_bias=True),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2_kept": lambda: Qwen2Config(**SIZES),  # its biases only where attention is
    "wide_heads": lambda: LlamaConfig(**SIZES, head_dim=16),
    "idle_heads": lambda: LlamaConfig(**SIZES, head_dim=12),
    "too_wide": lambda: LlamaConfig(**SIZES, head_dim=32),
    "vocabulary": lambda: LlamaConfig(**SIZES | {"vocab_size": 50}),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "windows": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "gelu": lambda: LlamaConfig(**SIZES, hidden_act="gelu"),
}
LAYOUTS = {"hybrid": [1], "recurrent": []}
NOT_IN_LLAMA_CPP = {
    ("llama3_rope", "hybrid"),
    ("wide_heads", "hybrid"),
    ("attention_bias", "hybrid"),
    ("attention_bias", "recurrent"),
    ("qwen2", "hybrid"),
    ("qwen2", "recurrent"),
    ("idle_heads", "hybrid"),
    ("idle_heads", "recurrent"),
}
CASES = [
    (family, layout, to)
    for to in ("granite_hybrid", "bamba", "llama_cpp")
    for layout in LAYOUTS
    for family in TEACHERS
    if (family, to) != ("mlp_bias", "granite_hybrid")
    and (family, layout) != ("qwen3", "hybrid")
    and family not in ("too_wide", "vocabulary", "windows", "gelu")
    and (to != "llama_cpp" or (family, layout) not in NOT_IN_LLAMA_CPP)
]


def make_student(family="llama", attention_layers=(1,), *, dtype=torch.float32, mixer="mamba2", **options):
    """A student that remembers: steps are large, and nothing is left at a value that hides a mistake."""
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(TEACHERS[family]()).eval()
    if mixer == "mamba2":
        options = {"dt_min": 0.1, "dt_max": 1.0} | ({"bias": False} if family == "qwen2_kept" else {}) | options
    student = convert(teacher, attention_layers=list(attention_layers), mixer=mixer, mixer_options=options or None)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return student.to(dtype)


def tokens(*shape, seed=0):
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(seed))


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def load_stock(path):
    """What a user of transformers loads; asserts that it is all there and no class of ours."""
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.")
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    return model


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Student and stock model of a case, made once."""

    @functools.cache
    def make(family, layout, to):
        student = make_student(family, LAYOUTS[layout])
        path = tmp_path_factory.mktemp(to) / "out"
        assert export_model(student, None, path, to=to) <= 1e-5
        return student, load_stock(path), path

    return make


@pytest.fixture(params=CASES, ids="-".join)
def case(request, exports):
    return exports(*request.param)


@torch.no_grad()
def test_prefill_of_more_than_a_chunk(case):
    student, stock, _ = case
    ids = tokens(2, 270)
    assert error(stock(ids).logits, student(ids).logits) <= 1e-5


@torch.no_grad()
def test_decoding_token_by_token(case):
    student, stock, _ = case
    ids = tokens(2, 24)
    out = stock(ids[:, :7], use_cache=True)
    found = [out.logits]
    for i in range(7, 24):
        position = torch.tensor([[i]])  # Bamba does not count
        out = stock(ids[:, i : i + 1], position_ids=position, past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits)
    assert error(torch.cat(found, dim=1), student(ids).logits) <= 1e-5


@torch.no_grad()
def test_rows_padded_on_the_left_and_their_greedy_tokens(case):
    student, stock, path = case
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    biased = student.model.layers[0].mixer.in_proj.bias is not None
    assert ("Do not pad" in (path / "README.md").read_text()) == biased
    if not biased:
        mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found, expected = (
        model(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()] for model in (stock, student)
    )
    assert error(found, expected) <= 1e-5
    greedy = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(stock.generate(ids, **greedy), student.generate(ids, **greedy))


def test_the_folder_verifies_itself(case):
    _, _, path = case
    assert verify_export(path) <= 1e-5
    card = (path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n")
    for words in ("transformers 5.23 or later", "vLLM", "llama.cpp", f"--verify {'this/folder'}", EXPECTED):
        assert words in card
    assert str(path) not in card


@pytest.mark.parametrize("layout", LAYOUTS)
def test_configurations_say_what_old_readers_need(exports, layout):
    granite, bamba = (
        json.loads((exports("llama", layout, to)[2] / "config.json").read_text()) for to in ("granite_hybrid", "bamba")
    )
    expected = ["mamba", "attention", "mamba"] if layout == "hybrid" else ["mamba", "mamba", "mamba", "attention"]
    assert granite["layer_types"] == expected
    assert bamba["attn_layer_indices"] == [expected.index("attention")]
    assert bamba["rope_parameters"]["partial_rotary_factor"] == 1.0
    assert granite["attention_multiplier"] == 8**-0.5
    assert granite["pad_token_id"] is bamba["pad_token_id"] is None
    for values in (granite, bamba):
        assert "Infinity" not in json.dumps(values)


def test_a_student_without_attention_gets_a_layer_that_adds_nothing(exports):
    for to in ("granite_hybrid", "bamba", "llama_cpp"):
        student, stock, path = exports("llama", "recurrent", to)
        layers = stock.model.layers
        assert len(layers) == len(student.model.layers) + 1
        assert all(not parameter.any() for parameter in layers[-1].parameters())
        assert "attention whose weights are all zero" in (path / "README.md").read_text()


def test_heads_that_do_not_fill_the_width_are_joined_by_idle_ones(exports):
    _, stock, path = exports("idle_heads", "hybrid", "bamba")
    assert (stock.config.mamba_n_heads, stock.config.num_attention_heads, stock.config.mamba_expand) == (8, 4, 3)
    assert "The last 4 heads" in (path / "README.md").read_text()
    assert exports("wide_heads", "hybrid", "bamba")[1].config.mamba_n_heads == 4


def test_llama_cpp_gets_twice_the_hidden_size_and_an_idle_layer_that_it_knows(exports):
    for family, layout, heads in (
        ("llama", "hybrid", 4),
        ("llama3_rope", "recurrent", 4),
        ("wide_heads", "recurrent", 2),
    ):
        _, stock, path = exports(family, layout, "llama_cpp")
        values = json.loads((path / "config.json").read_text())
        assert values["architectures"] == ["BambaForCausalLM"]
        assert (values["mamba_expand"], values["mamba_n_heads"] * values["mamba_d_head"]) == (2, 64)
        assert "head_dim" not in values
        assert values["num_attention_heads"] == heads
        assert values["rope_parameters"]["rope_type"] == "default"
        assert values["rope_parameters"]["partial_rotary_factor"] == 1.0
        index = values["attn_layer_indices"][0]
        assert stock.model.layers[index].self_attn.q_proj.weight.shape == (32, 32)
    card = (exports("llama", "hybrid", "llama_cpp")[2] / "README.md").read_text()
    assert "convert_hf_to_gguf.py" in card
    assert "The last 4 heads" in card


@torch.no_grad()
def test_a_vocabulary_is_filled_up_for_llama_cpp_as_the_refusal_says(tmp_path):
    student = make_student("vocabulary")
    ids = tokens(2, 9).clamp_max(49)
    before = student(ids).logits
    student.resize_token_embeddings(56)
    assert export_model(student, None, tmp_path / "out", to="llama_cpp") <= 1e-5
    assert error(load_stock(tmp_path / "out")(ids).logits[..., :50], before) <= 1e-5


def test_what_other_programs_compute_wrongly_is_told(exports, tmp_path, caplog):
    cards = {to: (exports("llama", "hybrid", to)[2] / "README.md").read_text() for to in ("granite_hybrid", "bamba")}
    assert "switches RoPE off" in cards["granite_hybrid"]
    assert "vLLM has had no Bamba since its version 0.23" in cards["bamba"]
    assert all("--to llama_cpp" in card and "Do not serve" not in card for card in cards.values())
    caplog.clear()
    export_model(make_student("wide_heads", []), None, tmp_path / "recurrent")
    export_model(make_student("wide_heads"), None, tmp_path / "bamba", to="bamba")
    assert not caplog.messages
    export_model(make_student("wide_heads"), None, tmp_path / "out")
    (message,) = caplog.messages
    assert "do not serve it with vLLM: it ignores head_dim=16" in message
    assert "Do not serve it with vLLM" in (tmp_path / "out" / "README.md").read_text()


def test_biases_that_the_stock_class_adds_at_padding_are_told(tmp_path, caplog):
    export_model(make_student("llama"), None, tmp_path / "plain")
    assert not caplog.messages
    student = make_student("llama", bias=True)
    assert student.model.layers[0].mixer.in_proj.bias.abs().max() > 0.1
    export_model(student, None, tmp_path / "out")
    assert [message for message in caplog.messages if "do not pad batches on the left" in message]
    config = load_stock(tmp_path / "out").config
    assert (config.mamba_proj_bias, config.attention_bias) == (True, False)


@torch.no_grad()
def test_a_student_in_bfloat16_loses_nothing(tmp_path):
    student = make_student().to(torch.bfloat16)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    rounded = student.model.rotary_emb.inv_freq.clone()
    assert export_model(student, None, tmp_path / "out") <= 1e-5
    for name, value in student.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert torch.equal(student.model.rotary_emb.inv_freq, rounded)

    weights = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name for name, value in weights.items() if value.dtype == torch.float32}
    assert {name.rsplit(".")[-1] for name in kept} == {"A_log", "D", "dt_bias"}
    assert load_stock(tmp_path / "out").dtype == torch.bfloat16
    assert "stored in float32" in (tmp_path / "out" / "README.md").read_text()
    student.save_pretrained(tmp_path / "student")
    ids = tokens(2, 30)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert error(stock(ids).logits, load_model(tmp_path / "student")(ids).logits) <= 1e-5


def test_tokenizer_template_and_settings_come_along(tmp_path, tokenizer, monkeypatch):
    student = make_student()
    student.generation_config.eos_token_id = [1, 7]
    student.config.reward_judge = "likelihood"
    shards = functools.partial(module.save_torch_state_dict, max_shard_size=20_000)
    monkeypatch.setattr(module, "save_torch_state_dict", shards)
    export_model(student, tokenizer, tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.chat_template == tokenizer.chat_template
    stock = load_stock(tmp_path / "out")
    assert stock.generation_config.eos_token_id == [1, 7]
    assert stock.config.reward_judge == "likelihood"
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_student_of_the_hub_is_named_in_the_card(tmp_path):
    student = make_student()
    student.name_or_path = "someone/student-1B"
    export_model(student, None, tmp_path / "out")
    assert "\nbase_model: someone/student-1B\n" in (tmp_path / "out" / "README.md").read_text()


def test_kernels_of_other_packages_do_not_verify(tmp_path, monkeypatch):
    export_model(make_student(), None, tmp_path / "out")
    stock = sys.modules[type(load_stock(tmp_path / "out")).__module__]

    @functools.wraps(stock.mamba2_chunk_scan.__wrapped__)
    def kernel(*args, **kwargs):
        raise RuntimeError("CUDA only")

    monkeypatch.setattr(stock, "mamba2_chunk_scan", kernel)
    with pytest.raises(RuntimeError, match="CUDA only"):
        load_stock(tmp_path / "out")(tokens(1, 4))
    assert verify_export(tmp_path / "out") <= 1e-5
    assert stock.mamba2_chunk_scan is kernel


class Foreign(Mamba2Mixer):
    """A mixer of another package."""


@pytest.mark.parametrize(
    ("student", "to", "words"),
    [
        (lambda: make_student(attention_layers=[0, 1, 2]), "bamba", "stock model already; export it without"),
        (
            lambda: make_student(mixer="mamba1", d_state=8),
            "bamba",
            "layer 0 has a mamba1 mixer.*use the target mamba_in_llama",
        ),
        (
            lambda: make_student(mixer="discrete_mamba2"),
            "granite_hybrid",
            "discrete_mamba2 mixer.*use the target llamba",
        ),
        (lambda: make_student(mixer="foreign"), "granite_hybrid", "layer 0 has a foreign mixer.*keep the folder"),
        (lambda: make_student("windows"), "bamba", "layer 1 attends within a sliding window"),
        (lambda: make_student("qwen3"), "granite_hybrid", "layer 1 keeps the attention of Qwen3.*norms on queries"),
        (lambda: make_student("mlp_bias"), "granite_hybrid", "use the target bamba"),
        (lambda: make_student("gelu"), "bamba", "hidden_act is 'gelu'"),
        (make_student, "gguf", "unknown export format 'gguf'; known: granite_hybrid, bamba, llama_cpp"),
        (
            lambda: make_student("llama3_rope"),
            "llama_cpp",
            "layer 1 keeps attention with llama3 RoPE scaling.*use the target granite_hybrid",
        ),
        (lambda: make_student("wide_heads"), "llama_cpp", "layer 1 keeps attention with head_dim=16.* = 32/4"),
        (
            lambda: make_student("idle_heads"),
            "llama_cpp",
            r"4 heads of 12 channels .* 2 \* hidden_size = 64 by whole heads",
        ),
        (lambda: make_student("too_wide", []), "llama_cpp", "4 heads of 32 channels.*use the target granite_hybrid"),
        (lambda: make_student("qwen2"), "llama_cpp", "biases at their projections.*bias: false"),
        (lambda: make_student("qwen2_kept", bias=True), "llama_cpp", "biases at their projections"),
        (lambda: make_student("vocabulary"), "llama_cpp", r"50 tokens.*resize_token_embeddings\(56\)"),
        (lambda: make_student("windows"), "llama_cpp", "layer 1 attends within a sliding window"),
        (lambda: AutoModelForCausalLM.from_config(TEACHERS["llama"]()), "bamba", "LlamaForCausalLM is not a student"),
    ],
)
def test_what_cannot_be_said_is_refused(tmp_path, monkeypatch, student, to, words):
    monkeypatch.setitem(MIXERS, "foreign", Foreign)
    with pytest.raises(ValueError, match=words) as told:
        export_model(student(), None, tmp_path / "out", to=to)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_versions_of_transformers_that_compute_another_model_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.22.4")
    with pytest.raises(ValueError, match=r"5\.22\.4 norms all heads.*install transformers 5\.23"):
        export_model(make_student(), None, tmp_path / "out")


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    student = make_student()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        export_model(student, None, full)

    class Broken:
        def save_pretrained(self, path):
            raise OSError("disk full")

    out = tmp_path / "there" / "out"
    with pytest.raises(OSError, match="disk full"):
        export_model(student, Broken(), out)
    wrong = module.TARGETS["bamba"]
    monkeypatch.setitem(TARGETS, "bamba", wrong._replace(make=f"{__name__}:half_rope"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    with pytest.raises(ValueError, match=f"{out} does not give the logits"):
        export_model(student, None, out, to="bamba")
    with torch.no_grad():
        student.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        export_model(student, None, out)
    assert list(out.parent.iterdir()) == []


def half_rope(student):
    from lit_thinkfast.models.granite import to_bamba

    foreign = to_bamba(student)
    foreign.config["rope_parameters"].pop("partial_rotary_factor")
    return foreign


def test_damage_is_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        verify_export(tmp_path / "out")
    export_model(make_student(), None, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mamba.D"][1] += 0.1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not give the logits .* relative error .*e-0., tolerance 1e-04"):
        verify_export(tmp_path / "out")
    weights["model.layers.0.mamba.D"][1] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="relative error nan"):
        verify_export(tmp_path / "out")
    del weights["model.layers.0.mamba.D"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: 1, first model\.layers\.0\.mamba\.D"):
        verify_export(tmp_path / "out")
    expected = tmp_path / "out" / EXPECTED
    with np.load(expected) as stored:
        np.savez(expected, **dict(stored) | {"target": np.str_("other")})
    with pytest.raises(ValueError, match="exported as 'other'"):
        verify_export(tmp_path / "out")
    expected.write_bytes(expected.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        verify_export(tmp_path / "out")
    expected.unlink()
    with pytest.raises(ValueError, match=f"has no {EXPECTED}"):
        verify_export(tmp_path / "out")
