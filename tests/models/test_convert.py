"""Conversion and loading: what is copied, what is not, and what the errors say."""

import json
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from lit_thinkfast.mixers import MIXERS
from lit_thinkfast.models import HybridForCausalLM, convert, convert_folder, load_model, load_tokenizer
from lit_thinkfast.models.convert import to_stock
from lit_thinkfast.models.layers import plan_layers


def write_tokenizer(folder):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, **{f"w{i}": i for i in range(3, 50)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")), eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)


@pytest.fixture
def folder(helpers, tmp_path):
    path = tmp_path / "teacher"
    teacher = helpers.teacher()
    teacher.generation_config.eos_token_id = [1, 7]
    teacher.save_pretrained(path)
    write_tokenizer(path)
    return path


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family", ["llama", "llama_bias", "qwen2", "qwen3", "mistral"])
def test_attention_initialisation_puts_each_weight_in_its_rows(helpers, family):
    teacher = helpers.teacher(family)
    student = convert(teacher, attention_layers=[1])
    attention, mixer = teacher.model.layers[2].self_attn, student.model.layers[2].mixer
    inner, kv_inner, heads = attention.q_proj.weight.shape[0], attention.k_proj.weight.shape[0], 4
    z, x, B, C, dt = mixer.in_proj.weight.split([inner, kv_inner, kv_inner, inner, heads])
    assert torch.equal(x, attention.v_proj.weight)
    assert torch.equal(B, attention.k_proj.weight)
    assert torch.equal(C, attention.q_proj.weight)
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)
    bound = 32**-0.5
    assert z.abs().max() <= bound
    assert dt.abs().max() <= bound
    copied = {n: p for n, p in student.state_dict().items() if ".mixer." not in n}
    for name, value in copied.items():
        assert torch.equal(value, teacher.state_dict()[name])


def test_layer_choice(helpers):
    teacher = helpers.teacher()

    def kept(**options):
        return convert(teacher, **options).config.attention_layers

    assert kept() == []
    assert kept(attention_layers=[]) == []
    assert kept(attention_layers=[2]) == [2]
    assert kept(mixer="attention") == [0, 1, 2]
    assert kept(attention_ratio=0.0) == []
    assert kept(attention_ratio=1 / 3) == [2]
    assert kept(attention_ratio=1.0) == [0, 1, 2]
    assert kept(layer_mixers=["mamba2", "attention", "mamba2"]) == [1]
    assert kept(attention_every=1) == [0, 1, 2]
    assert kept(attention_every=2) == [1]
    with pytest.raises(ValueError, match="no hybrid of 3 layers has been published, only of 16 and 28"):
        kept(attention_layers="published")


def test_published_layers():
    def kept(num_layers, **options):
        return [i for i, name in enumerate(plan_layers(num_layers, mixer="mamba1", **options)) if name == "attention"]

    assert kept(16, attention_layers="published") == kept(16, attention_every=4) == [3, 7, 11, 15]
    assert kept(28, attention_layers="published") == [3, 8, 13, 18, 23, 27]
    assert kept(32, attention_every=8) == kept(32, attention_ratio=0.125) == [7, 15, 23, 31]


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_biases_go_along(helpers, mixer):
    """Mixers have biases where the attention that they replace has them, and start from them."""
    options = {"d_state": 4} if mixer == "mamba1" else None
    assert convert(helpers.teacher(), mixer=mixer, mixer_options=options).model.layers[0].mixer.in_proj.bias is None
    for family, output in (("qwen2", False), ("llama_bias", True)):
        teacher = helpers.teacher(family)
        new, old = (
            convert(teacher, mixer=mixer, mixer_options=options).model.layers[0].mixer,
            teacher.model.layers[0].self_attn,
        )
        weights, biases = new.in_proj.weight, new.in_proj.bias
        for source in (old.q_proj, old.k_proj, old.v_proj):
            rows = [(weights == row).all(-1).nonzero()[:, 0] for row in source.weight]
            assert all(len(row) >= 1 for row in rows)
            assert all((biases[row] == bias).all() for row, bias in zip(rows, source.bias, strict=True))
        assert (new.out_proj.bias is not None) == output
        if output:
            assert torch.equal(new.out_proj.bias, old.o_proj.bias)


def test_discrete_mamba2_undoes_the_grouping(helpers):
    teacher = helpers.teacher()
    mixer, attention = (
        convert(teacher, mixer="discrete_mamba2").model.layers[0].mixer,
        teacher.model.layers[0].self_attn,
    )
    x, B, C = mixer.in_proj.weight[:96].view(3, 4, 8, 32)
    for part, name in ((x, "v_proj"), (B, "k_proj")):
        assert torch.equal(part, getattr(attention, name).weight.view(2, 8, 32)[[0, 0, 1, 1]])
    assert torch.equal(C, attention.q_proj.weight.view(4, 8, 32))
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)


def test_mohawk_initialisation(helpers):
    student = convert(helpers.teacher(), mixer="discrete_mamba2", init="mohawk", mixer_options={"num_heads": 2})
    mixer = student.model.layers[0].mixer
    assert torch.allclose(torch.nn.functional.silu(mixer.z_bias), torch.ones(32), atol=1e-6)
    assert not mixer.in_proj.weight[-34:-2].any()
    other = convert(student, mixer="mamba2", init="random")
    again = convert(other, mixer="discrete_mamba2", init="mohawk").model.layers[0].mixer
    assert torch.allclose(torch.nn.functional.silu(again.z_bias), torch.ones(32), atol=1e-6)
    with pytest.raises(ValueError, match="a Mamba2Mixer has no neutral start"):
        convert(helpers.teacher(), init="mohawk")


def test_seed_and_random_initialisation(helpers):
    teacher = helpers.teacher()
    before = torch.get_rng_state()

    def weights(**options):
        return convert(teacher, **options).model.layers[0].mixer.in_proj.weight

    assert torch.equal(weights(seed=1), weights(seed=1))
    assert not torch.equal(weights(seed=1), weights(seed=2))
    assert not torch.equal(weights(seed=1, init="random")[32:48], weights(seed=1)[32:48])
    assert torch.equal(torch.get_rng_state(), before)


def test_options_reach_the_mixers_and_the_file(helpers, tmp_path):
    student = convert(helpers.teacher(), mixer_options={"d_conv": 3})
    assert student.model.layers[0].mixer.conv1d.kernel_size == 3
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.model.layers[0].mixer.conv1d.kernel_size == 3


def test_teacher_is_not_changed_and_tied_heads_stay_tied(helpers):
    teacher = helpers.teacher("llama_bias")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = convert(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_convert_folder_is_complete(folder, tmp_path, helpers):
    out = tmp_path / "deep" / "student"
    convert_folder(folder, out, attention_layers=[1])
    loaded = load_model(out)
    assert not loaded.training
    assert loaded.config.layer_mixers == ["mamba2", "attention", "mamba2"]
    assert loaded.generation_config.eos_token_id == [1, 7]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == load_tokenizer(folder).chat_template
    assert tokenizer.eos_token == "<eos>"
    assert [path.name for path in out.parent.iterdir()] == ["student"]
    with pytest.raises(FileExistsError, match="not empty") as error:
        convert_folder(folder, out)
    one_line(error)


def test_a_student_converts_again(folder, tmp_path):
    convert_folder(folder, tmp_path / "half", attention_layers=[1, 2])
    further = convert(tmp_path / "half", attention_layers=[2])
    assert further.config.layer_mixers == ["mamba2", "mamba2", "attention"]
    half = load_model(tmp_path / "half")
    assert torch.equal(further.model.layers[0].mixer.A_log, half.model.layers[0].mixer.A_log)
    assert torch.equal(further.model.layers[1].mixer.out_proj.weight, half.model.layers[1].self_attn.o_proj.weight)


def test_attention_goes_step_by_step(helpers):
    """Of a student that is converted again, layers with a mixer keep it; the others start from its attention."""
    first = convert(helpers.teacher(), attention_layers=[1], mixer_options={"d_conv": 3})
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    second = convert(first, attention_layers=[])
    assert second.config.options_of("mamba2") == {"d_conv": 3}
    before, after = first.state_dict(), second.state_dict()
    for name, value in after.items():
        if "layers.1.mixer" not in name:
            assert torch.equal(value, before[name]), name
    attention, mixer = first.model.layers[1].self_attn, second.model.layers[1].mixer
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)


def test_initial_values_are_for_new_mixers_only(helpers):
    first = convert(helpers.teacher(), attention_layers=[1], mixer_options={"d_conv": 3, "a_max": 2.0})
    second = convert(first, mixer_options={"a_min": 20.0, "a_max": 30.0})
    assert second.config.options_of("mamba2") == {"d_conv": 3, "a_min": 20.0, "a_max": 30.0}
    rates = [layer.mixer.A_log.exp() for layer in second.model.layers]
    assert torch.equal(rates[0], first.model.layers[0].mixer.A_log.exp())
    assert 20 <= rates[1].min() <= rates[1].max() <= 30
    with pytest.raises(
        ValueError, match="layer 0 keeps its mamba2 mixer, which has d_conv 3; leave d_conv out"
    ) as error:
        convert(first, mixer_options={"d_conv": 4})
    assert "mixer_options" in one_line(error)
    assert convert(first, attention_layers=[1]).config.options_of("mamba2") == {"d_conv": 3, "a_max": 2.0}


def test_lost_attention_does_not_come_back(helpers, monkeypatch):
    class Another(MIXERS["mamba2"]):
        pass

    monkeypatch.setitem(MIXERS, "another", Another)
    first = convert(helpers.teacher(), attention_layers=[0])
    for options, message in [
        ({"mixer": "attention"}, "layer 1 of the teacher has a mamba2 mixer and no attention to go back to"),
        ({"attention_layers": [0, 2]}, "layer 2 of the teacher has a mamba2 mixer and no attention to go back to"),
        ({"mixer": "another"}, "layer 1 of the teacher has a mamba2 mixer and no attention to start another from"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            convert(first, **options)
        one_line(error)
    fresh, again = (convert(first, mixer="another", init="random", seed=seed) for seed in (0, 1))
    for layer in (1, 2):
        weights = [model.model.layers[layer].mixer.in_proj.weight for model in (first, fresh, again)]
        assert not torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[1], weights[2])


def test_a_bias_that_the_family_ignores(helpers):
    """Qwen2 and Mistral have no output bias whatever their file says: the stock class is the twin."""
    for family in ("qwen2", "mistral"):
        config = helpers.teacher(family).config
        config.attention_bias = True
        torch.manual_seed(0)
        teacher = AutoModelForCausalLM.from_config(config).eval()
        student = convert(teacher, attention_layers=[1])
        assert student.model.layers[0].mixer.out_proj.bias is None
        ids = helpers.tokens(2, 9)
        torch.testing.assert_close(
            convert(teacher, mixer="attention")(ids).logits, teacher(ids).logits, rtol=1e-5, atol=1e-5
        )


def test_load_stock_model_as_all_attention(folder, helpers):
    model = load_model(folder)
    assert isinstance(model, HybridForCausalLM)
    ids = helpers.tokens(2, 9)
    stock = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_bad_arguments(helpers):
    teacher = helpers.teacher()
    for options, message in [
        ({"mixer": "mambo"}, "unknown mixer 'mambo'; known: attention, discrete_mamba2, mamba1, mamba2"),
        ({"layer_mixers": ["attention", "mambo", "attention"]}, "unknown mixer 'mambo'"),
        ({"layer_mixers": ["attention"]}, "names 1 layers, but the teacher has 3"),
        ({"attention_layers": [3]}, "attention layer 3 does not exist; the teacher has layers 0 to 2"),
        ({"attention_layers": [-1]}, "attention layer -1 does not exist"),
        ({"attention_ratio": 1.5}, "attention_ratio 1.5 is not between 0 and 1"),
        ({"attention_layers": [1], "attention_ratio": 0.5}, "exclude each other"),
        ({"attention_every": 4}, "attention_every 4 is not between 1 and the 3 layers"),
        ({"attention_layers": "all"}, "attention_layers 'all' is neither a list of layers nor 'published'"),
        ({"mixer": "mamba1", "mixer_options": {"gqa_expand": "heads"}}, "give it as Literal['head', 'reference']"),
        ({"mixer": "mamba1", "mixer_options": {"dt_bias_mult": 3}}, "give it as Literal[1, 2]"),
        ({"mixer_options": {"d_cov": 4}}, "mixer 'mamba2' has no option 'd_cov'; its options: a_max"),
        ({"mixer_options": {"d_conv": 1}}, "d_conv 1 is too small"),
        ({"init": "zeros"}, "unknown initialisation 'zeros'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            convert(teacher, **options)
        one_line(error)


def test_bad_teachers(helpers, tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(**sizes, intermediate_size=8))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))
    config = helpers.teacher().config
    for teacher in (bert, gpt2, LlamaModel(config), LlamaForSequenceClassification(config)):
        with pytest.raises(ValueError, match="known families: llama, mistral, qwen2, qwen3") as error:
            convert(teacher)
        one_line(error)
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="family 'bert'") as error:
        convert(tmp_path / "bert")
    one_line(error)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="LlamaForSequenceClassification is not a decoder-only") as error:
        convert(tmp_path / "classifier")
    one_line(error)


def test_bad_places(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "noweights").mkdir()
    (tmp_path / "noweights" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name in ("missing", "empty", "noweights", "broken", "missing.gguf"):
        with pytest.raises(FileNotFoundError) as error:
            load_model(tmp_path / name)
        assert name in one_line(error)
    with pytest.raises(FileNotFoundError) as error:
        load_model("some-user/no-such-model")
    one_line(error)
    with pytest.raises(FileNotFoundError, match="no tokenizer") as error:
        load_tokenizer(tmp_path / "noweights")
    one_line(error)
    with pytest.raises(ValueError, match="not a device") as error:
        load_model(folder, device="quantum")
    one_line(error)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available"):
            load_model(folder, device="cuda")


def test_file_with_an_unknown_mixer(folder, tmp_path):
    out = tmp_path / "student"
    convert_folder(folder, out)
    config = json.loads((out / "config.json").read_text())
    config["layer_mixers"][0] = "mambo"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown mixer 'mambo'") as error:
        load_model(out)
    one_line(error)


def test_failed_save_leaves_nothing(folder, tmp_path, monkeypatch):
    out = tmp_path / "student"

    def fail(*args, **kwargs):
        raise RuntimeError("disk")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="disk"):
        convert_folder(folder, out)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_teacher_in_sixteen_bits_keeps_its_positions(helpers, tmp_path):
    """A cast would round the rotary frequencies: the model as it is loaded again is the twin."""
    helpers.teacher("llama3_rope").save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype=torch.bfloat16)
    ids = helpers.tokens(1, 200)
    for made in (student := convert(teacher, attention_layers=[0, 2]), to_stock(convert(teacher, mixer="attention"))):
        assert made.model.rotary_emb.inv_freq.dtype == torch.float32
        made.save_pretrained(tmp_path / type(made).__name__)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / type(made).__name__, dtype=torch.bfloat16)
        assert torch.equal(again(ids).logits, made(ids).logits)
    frequencies = student.model.rotary_emb.inv_freq
    assert torch.equal(student.half().model.rotary_emb.inv_freq, frequencies)


def test_options_that_would_change_kept_mixers_are_refused(helpers):
    options = {"d_state": 4, "gqa_expand": "reference", "dt_bias_mult": 2}
    first = convert(helpers.teacher(), attention_layers=[1], mixer="mamba1", mixer_options=options)
    for changed in ({"dt_bias_mult": 1}, {"gqa_expand": "head"}, {"d_conv": 3}):
        with pytest.raises(ValueError, match="layer 0 keeps its mamba1 mixer") as error:
            convert(first, mixer="mamba1", mixer_options=changed)
        one_line(error)
    again = convert(first, mixer="mamba1", mixer_options={"dt_bias_mult": 2, "d_conv": 4, "dt_max": 0.2})
    assert again.config.options_of("mamba1") == {**options, "d_conv": 4, "dt_max": 0.2}
    assert convert(first, mixer="mamba2", init="random").config.layer_mixers == ["mamba2"] * 3


def test_a_student_keeps_its_kind_of_mixer(helpers):
    """Without ``mixer``, what a student has stays, and further layers get the same."""
    for mixer, options in (("mamba1", {"d_state": 4}), ("discrete_mamba2", None)):
        first = convert(helpers.teacher(), attention_layers=[1], mixer=mixer, mixer_options=options)
        second = convert(first)
        assert second.config.layer_mixers == [mixer] * 3
        for layer in (0, 2):
            own, kept = first.model.layers[layer].mixer, second.model.layers[layer].mixer
            assert torch.equal(own.in_proj.weight, kept.in_proj.weight)
    mixed = convert(helpers.teacher(), layer_mixers=["mamba2", "attention", "discrete_mamba2"])
    assert convert(mixed).config.layer_mixers == ["mamba2", "mamba2", "discrete_mamba2"]
    with pytest.raises(ValueError, match="keep it with mixer 'discrete_mamba2', or start anew with init 'random'"):
        convert(second, mixer="mamba2")
