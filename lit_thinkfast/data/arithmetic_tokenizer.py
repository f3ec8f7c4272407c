"""Build the tokenizer of the arithmetic world: byte-level pairs, digits apart, a newline always a token of its own.

Run as ``python -m lit_thinkfast.data.arithmetic_tokenizer OUT`` to make the shipped folder again.
"""

import sys
from itertools import islice
from pathlib import Path

from lit_thinkfast.data import arithmetic

SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
# A name with the equals sign behind it is one piece: the first digit of a count then follows the very token that tells
# whose count it is, which is what attention and recurrence alike learn first. Digits and newlines stand alone.
PIECES = r"\p{L}+=|'s|\n|\d| ?\p{L}+| ?[^\s\p{L}\d]|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(out: str | Path, *, vocab_size: int = 512, texts: int = 3000) -> None:
    """Train the tokenizer on problems of all levels and save it as a Hugging Face folder.

    Args:
        out: Folder to write.
        vocab_size: Tokens, the 256 bytes and the special ones included.
        texts: Training problems.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = (
        f"{example.prompt}\n{example.response}"
        for level in arithmetic.LEVELS
        for example in islice(arithmetic.examples(level=level), texts // len(arithmetic.LEVELS))
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)


if __name__ == "__main__":
    build(sys.argv[1])
