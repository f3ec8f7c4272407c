"""Models from GGUF files: the stock model whose weights are written is the twin of what is read."""

import json

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_thinkfast.models import load_model, load_tokenizer
from lit_thinkfast.records import Completion, Problem, read_jsonl, write_jsonl

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

Q8 = gguf.GGMLQuantizationType.Q8_0
VOCABULARY = ["<pad>", "<eos>", *sorted(ByteLevel.alphabet()), "ab"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def twin(*, tied):
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def write(model, path, *, merges=("a b",), quantized=False, skip=()):
    """Write a model as llama.cpp does, with a tokenizer over bytes; ``quantized`` matrices have 8 bits."""
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3] + [1] * (len(VOCABULARY) - 2))
    writer.add_token_merges(list(merges))
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp turns neighbours, transformers halves
            weight = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if name in skip or (name == "output.weight" and config.tie_word_embeddings):
            continue
        values = weight.numpy().astype(np.float32)
        if quantized and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_logits_are_those_of_the_model_that_was_written(tmp_path, tied, quantized):
    model = twin(tied=tied)
    read = load_model(write(model, tmp_path / "m.gguf", quantized=quantized))
    if quantized:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Q8), Q8)))
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_file_is_converted_exported_and_sampled(cli, tmp_path):
    file = write(twin(tied=True), tmp_path / "m.gguf", quantized=True)
    tokenizer = load_tokenizer(file)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc")["input_ids"]) == ["ab", "c"]
    ids, read = torch.arange(3, 40)[None], load_model(file)
    for verb, out, options in (
        ("convert", "student", ("--teacher", file, "--attention_layers", "1")),
        ("export", "exported", ("--model", file)),
    ):
        code, _, err = cli(verb, *options, "--out", tmp_path / out)
        assert code == 0, err
        saved = tmp_path / out
        assert "quantization_config" not in json.loads((saved / "config.json").read_text())
        assert load_tokenizer(saved).chat_template == tokenizer.chat_template
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert type(exported) is LlamaForCausalLM
    torch.testing.assert_close(exported(ids).logits, read(ids).logits, rtol=1e-5, atol=1e-5)

    problems = tmp_path / "problems.jsonl"
    write_jsonl([Problem("p", "1+1?", "2")], problems)
    sampling = ("--num-samples", 2, "--max-new-tokens", 5)
    texts = []
    for model in (file, tmp_path / "exported", tmp_path / "student"):
        out = tmp_path / f"{model.stem}.jsonl"
        code, _, err = cli("generate", "--model", model, "--problems", problems, "--out", out, *sampling)
        assert code == 0, err
        texts.append([made.text for made in read_jsonl(Completion, out)])
    assert len(texts[0]) == 2
    assert texts[0] == texts[1] != texts[2]


def test_a_file_that_contradicts_itself(cli, tmp_path):
    torn = write(twin(tied=False), tmp_path / "torn.gguf", skip=("blk.1.ffn_up.weight",))
    merges = write(twin(tied=False), tmp_path / "merges.gguf", merges=("a b", "b q"))
    for file, words in ((torn, "missing: 1, first model.layers.1.mlp.up_proj.weight"), (merges, "bq")):
        code, _, err = cli("convert", "--teacher", file, "--out", tmp_path / "student")
        assert code == 2
        assert words in err.splitlines()[-1]
        assert not (tmp_path / "student").exists()
