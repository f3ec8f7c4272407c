"""Tiny random reward models of the published kinds, with tokenizers and chat templates of their build."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 4096,
}
CORPUS = [
    "What is 2 + 3 - 1? Step 1: a = 2 + 3 = 5. The answer is 5.\n\nStep 2: so 5 - 1 = 4.\n- one + two\n",
    "user\n\nassistant\n\nsystem user assistant Please reason step by step, and put your final answer within \\boxed{}. Today Date: July",
] * 20

LLAMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for part in [{'role': 'system', 'content': 'Today Date: ' + (date_string or '26 Jul 2024')}] + messages %}"
    "<|start_header_id|>{{ part.role }}<|end_header_id|>\n\n{{ part.content | trim }}<|eot_id|>"
    "{% endfor %}"
)
QWEN_TEMPLATE = "{% for part in messages %}<|im_start|>{{ part.role }}\n{{ part.content }}<|im_end|>\n{% endfor %}"


def byte_level(specials, template, **named):
    """A tokenizer as Llama 3 and Qwen 2.5 have it: BPE on bytes, digits apart, newlines together."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(
        pattern=Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        behavior="isolated",
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    made.chat_template = template
    return made


def llama_tokenizer():
    specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(specials, LLAMA_TEMPLATE, bos_token=specials[0], eos_token=specials[3])


def qwen_tokenizer(**named):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    return byte_level(specials, QWEN_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>", **named)


def mistral_tokenizer():
    """BPE on characters, spaces written as a sign of their own, one of them put in front: ``+`` is a token after one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=["\u2581", *"+-"],
        max_token_length=5,
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # so that no token ends with a space
    words = [f" {word} " for word in ("+", "-", "\u043a\u0438", "Step", "is", "=")] * 50
    tokenizer.train_from_iterator(words + CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def config_of(kind, tokenizer, **values):
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    return kind(vocab_size=len(tokenizer), **(SIZES | ids | values))


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama(folder, **values):
    torch.manual_seed(0)
    tokenizer = llama_tokenizer()
    return saved(LlamaForCausalLM(config_of(LlamaConfig, tokenizer, **values)), tokenizer, folder)


def mistral(folder, **values):
    torch.manual_seed(0)
    tokenizer = mistral_tokenizer()
    return saved(MistralForCausalLM(config_of(MistralConfig, tokenizer, **values)), tokenizer, folder)


def classifier(folder, **values):
    torch.manual_seed(0)
    tokenizer = llama_tokenizer()
    config = config_of(LlamaConfig, tokenizer, **{"num_labels": 1, **values})
    return saved(LlamaForSequenceClassification(config), tokenizer, folder)


def qwen(folder, architecture, heads, *, parts=1, tokenizer=None):
    """A Qwen 2 decoder with more weights beside it, and code in the folder that must not be run.

    Args:
        folder: Where to.
        architecture: As the config calls it.
        heads: Name -> shape of the weights beside the decoder.
        parts: Files that the weights are in.
        tokenizer: Default: Qwen's.
    """
    torch.manual_seed(0)
    tokenizer = tokenizer or qwen_tokenizer()
    config = config_of(Qwen2Config, tokenizer)
    weights = {name: weight.clone() for name, weight in Qwen2ForCausalLM(config).state_dict().items()}
    weights |= {name: torch.randn(shape) / 4 for name, shape in heads.items()}
    folder.mkdir()
    names = sorted(weights)
    files = {f"model-{i + 1:05}-of-{parts:05}.safetensors": names[i::parts] for i in range(parts)}
    if parts == 1:
        files = {"model.safetensors": names}
    else:
        index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, own in files.items():
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
    remote = {"AutoModel": "modeling_remote.Remote", "AutoConfig": "modeling_remote.Config"}
    values = config.to_dict() | {"architectures": [architecture], "auto_map": remote, "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modeling_remote.py").write_text("raise SystemExit('code of a repository was run')\n")
    tokenizer.save_pretrained(folder)
    return folder
