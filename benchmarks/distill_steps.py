"""Whole training steps for ``benchmarks/distill.py``: ours and one of stock transformers modules, packed and padded."""

from __future__ import annotations

import copy
import functools
import statistics
from typing import Any, NamedTuple

import numpy as np
import torch
from mixers import HEADS, HIDDEN, KV_HEADS, compared, error, in_turns
from torch import Tensor
from torch.nn import functional as F

from lit_thinkfast.data.rows import Document, best_fit, collate_rows
from lit_thinkfast.distill.losses import ForwardKL
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.models import convert
from lit_thinkfast.records import PackedBatch

GSM8K = [
    (107, 79), (81, 58), (141, 166), (84, 105), (86, 168), (72, 83), (110, 140), (91, 106),
    (76, 91), (131, 79), (59, 72), (92, 137), (84, 61), (74, 113), (62, 110), (64, 45),
]  # fmt: skip
"""Tokens of prompt and response of 16 problems in a row (6128 on) of the training set, chosen for being typical: 189
tokens a problem, of all problems 190; 62 % of a batch padded to its longest, as of batches of 16 on average."""
PACKED = 1056
"""Length of packed rows: the 16 fill three of them to 96 %, as blocks of 128 problems fill rows of 1024."""
PADDED = 512
"""Length of padded rows where it is one for all: the longest problem has 499 tokens."""


class Sizes(NamedTuple):
    """Of the models."""

    vocab: int = 49152
    hidden: int = HIDDEN
    intermediate: int = 1536
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    layers: int = 4


def models(sizes: Sizes) -> tuple[Any, Any]:
    """Return a stock teacher and our student of one attention layer and Mamba-2 layers, made from it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocab, hidden_size=sizes.hidden, intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5, initializer_range=0.05,
    )  # fmt: skip
    teacher = LlamaForCausalLM(config).eval().requires_grad_(False)
    student = convert(teacher, mixer="mamba2", attention_layers=[sizes.layers // 2])
    return teacher, student.requires_grad_(True).train()


class Step:
    """What ends a training step; of the first one the loss and the embeddings' gradient are kept, to be compared."""

    student: Any
    optimizer: torch.optim.Optimizer
    first: tuple[Tensor, ...] = ()

    def learn(self, loss: Tensor) -> None:
        loss.backward()
        self.first = self.first or (loss.detach(), self.student.get_input_embeddings().weight.grad.clone())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def error(self, other: Step) -> float:
        """Largest relative difference of what the first steps computed."""
        return max(error(a, b) for a, b in zip(self.first, other.first, strict=True))


class OurStep(Step):
    """A training step as :class:`~lit_thinkfast.distill.DistillationModule` makes it, without the Trainer around it."""

    def __init__(self, teacher: Any, student: Any) -> None:
        self.teacher, self.student, self.loss = convert(teacher, mixer="attention").eval(), student, ForwardKL()
        self.teacher.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)

    def __call__(self, batch: PackedBatch) -> None:
        needs = frozenset({"logits"})
        with torch.no_grad():
            teacher = read_signals(self.teacher, batch, needs=needs)
        self.learn(self.loss(read_signals(self.student, batch, needs=needs), teacher, batch))


class StockStep(Step):
    """The same step with classes of transformers and whole logits; it takes each row for one document.

    Its Mamba layers have keys for each head, which ours share as the attention does: 3 % more parameters.
    """

    def __init__(self, teacher: Any, student: Any) -> None:
        from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

        from lit_thinkfast.models.granite import to_granite_hybrid

        foreign = to_granite_hybrid(student)
        self.teacher = teacher
        self.student = GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig(**foreign.config)).train()
        self.student.load_state_dict({name: w.clone() for name, w in foreign.weights.items()}, strict=False)
        self.student.tie_weights()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5)

    def __call__(self, batch: PackedBatch) -> None:
        with torch.no_grad():
            theirs = F.log_softmax(self.teacher(input_ids=batch["input_ids"], use_cache=False).logits, dim=-1)
        ours = F.log_softmax(self.student(input_ids=batch["input_ids"], use_cache=False).logits, dim=-1)
        each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        self.learn(each[:, :-1][batch["labels"][:, 1:] != -100].mean())


def documents(lengths: list[tuple[int, int]], sizes: Sizes) -> list[Document]:
    """Random tokens behind one another, of which those of the prompt have no label."""
    rng = np.random.default_rng(0)
    made = []
    for prompt, response in lengths:
        ids = rng.integers(sizes.vocab, size=prompt + response).astype(np.int32)
        made.append(Document(ids, np.where(np.arange(len(ids)) < prompt, -100, ids).astype(np.int32)))
    return made


def bench_step(rows: int, lengths: tuple[int, int], rounds: int, sizes: Sizes) -> dict[str, Any]:
    """A step on rows of one document each, which is all that the stock student can do, against transformers' own."""
    batch = collate_rows([[d] for d in documents([lengths] * rows, sizes)], seq_len=sum(lengths), pad_token_id=0)
    teacher, student = models(sizes)
    stock, ours = StockStep(teacher, student), OurStep(teacher, student)
    case = {"transformers": lambda: stock(batch), "ours": lambda: ours(batch)}
    time = compared(case, rounds=rounds)
    tokens = rows * sum(lengths)
    return {
        "rows": rows,
        "tokens": tokens,
        "labelled": rows * lengths[1],
        "error": ours.error(stock),
        "time": time,
        "tokens_per_second": {name: round(1000 * tokens / t, 1) for name, t in time["milliseconds"].items()},
    }


def bench_packing(lengths: list[tuple[int, int]], packed: int, padded: int, rounds: int, sizes: Sizes) -> list[Any]:
    """The same documents in packed rows and in one padded row each: useful tokens a second of our step."""
    made = documents(lengths, sizes)
    teacher, student = models(sizes)
    bins = best_fit([len(d) for d in made], packed)
    rows = collate_rows([[made[i] for i in row] for row in bins], seq_len=packed, pad_token_id=0)
    tokens, longest = sum(map(len, made)), max(map(len, made))
    batches = {"packed": rows}
    for name, length in {f"padded to {padded}": padded, "padded to the longest": longest}.items():
        batches[name] = collate_rows([[d] for d in made], seq_len=length, pad_token_id=0)
    steps = {name: OurStep(teacher, copy.deepcopy(student)) for name in batches}
    seconds = in_turns({name: functools.partial(steps[name], batches[name]) for name in batches}, rounds=rounds)
    found = []
    for name in list(batches)[1:]:
        time = summary(seconds[name], seconds["packed"], names=(name, "packed"))
        found.append(
            {
                "against": name,
                "tokens": tokens,
                "filled": {n: round(tokens / batches[n]["input_ids"].numel(), 3) for n in (name, "packed")},
                "error": steps["packed"].error(steps[name]),
                "time": time,
                "useful_tokens_per_second": {n: round(1000 * tokens / t, 1) for n, t in time["milliseconds"].items()},
            }
        )
    return found


def summary(slow: list[float], fast: list[float], *, names: tuple[str, str]) -> dict[str, Any]:
    """Seconds of two functions that were called with others between, as :func:`compared` reports those of two."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "milliseconds": {n: round(1000 * statistics.median(v), 3) for n, v in zip(names, (slow, fast), strict=True)},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }
