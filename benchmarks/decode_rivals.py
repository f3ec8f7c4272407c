"""What our decoding is timed against: transformers on the same weights, and batches that wait for their longest row."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.engine import Engine
from lit_thinkfast.generation.picking import RowSettings, pick_tokens
from lit_thinkfast.generation.rng import uniforms
from lit_thinkfast.generation.rows import Prompt
from lit_thinkfast.models.cache import HybridCache
from lit_thinkfast.models.decoding import decode_step
from lit_thinkfast.models.modeling import HybridForCausalLM
from lit_thinkfast.models.slots import SlotCache


@dataclass
class Decoded:
    """One run: greedy tokens, (rows, new), and seconds of the steps, the prompt's encoding left out."""

    tokens: Tensor
    seconds: float


def stock_granite(model: HybridForCausalLM) -> Any:
    """Return transformers' GraniteMoeHybrid with the weights of our hybrid."""
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    from lit_thinkfast.models.granite import to_granite_hybrid

    foreign = to_granite_hybrid(model)
    stock = GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig(**foreign.config)).eval()
    missing, unexpected = stock.load_state_dict(foreign.weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    stock.tie_weights()
    return stock


def stock_llama(model: HybridForCausalLM) -> Any:
    """Return transformers' Llama with the weights of our all-attention model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = model.config.to_dict()
    names = LlamaConfig().to_dict().keys() & ours.keys() - {"model_type", "architectures", "transformers_version"}
    stock = LlamaForCausalLM(LlamaConfig(**{name: ours[name] for name in names})).eval()
    stock.load_state_dict(model.state_dict())
    return stock


@torch.inference_mode()
def encoded(stock: Any, prompt: list[int], rows: int) -> Any:
    """Return transformers' dynamic cache of all tokens but the last, for ``rows`` samples of the prompt."""
    from transformers import DynamicCache

    cache = DynamicCache(config=stock.config)
    stock(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.reorder_cache(torch.zeros(rows, dtype=torch.int64))  # the one row, so many times
    return cache


def as_static(cache: Any, stock: Any, capacity: int) -> Any:
    """Return transformers' static cache with the contents of a dynamic one."""
    from transformers import StaticCache

    static = StaticCache(config=stock.config, max_cache_len=capacity)
    for mine, theirs in zip(static.layers, cache.layers, strict=True):
        mine.update(theirs.keys, theirs.values)
    return static


@torch.inference_mode()
def step_stock(stock: Any, cache: Any, prompt: list[int], rows: int, new: int) -> Decoded:
    """Decode with a bare loop around the stock model's forward: what ``generate`` does without its own overhead."""
    cache = copy.deepcopy(cache)
    token = torch.full((rows, 1), prompt[-1])
    said = []
    start = time.perf_counter()
    for position in range(len(prompt) - 1, len(prompt) - 1 + new):
        at = torch.full((rows, 1), position)
        logits = stock(input_ids=token, past_key_values=cache, position_ids=at, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        said.append(token)
    return Decoded(torch.cat(said, dim=1), time.perf_counter() - start)


@torch.inference_mode()
def generate_stock(stock: Any, cache: Any, prompt: list[int], rows: int, new: int) -> Decoded:
    """Decode with ``generate``, greedily, from a cache that holds the prompt."""
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=1)
    cache, ids = copy.deepcopy(cache), torch.tensor([prompt]).expand(rows, -1)
    start = time.perf_counter()
    out = stock.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, generation_config=settings)
    return Decoded(out[:, len(prompt) :], time.perf_counter() - start)


def ours(model: HybridForCausalLM, prompt: list[int], rows: int, new: int, *, backend: str = "eager") -> Decoded:
    """Decode with our engine, greedily."""
    config = SamplingConfig(temperature=0, num_samples=1, max_new_tokens=new)
    capacity = len(prompt) - 1 + new
    engine = Engine(model, rows=rows, capacity=capacity, max_new_tokens=new, backend=backend)
    tokens = torch.zeros(rows, new, dtype=torch.int64)
    for ended in engine.run([Prompt(prompt, 0, range(rows), config)]):
        for row in ended:
            tokens[row.sample] = torch.tensor(row.tokens)
    return Decoded(tokens, engine.times.decode_seconds)


@torch.inference_mode()
def static_batches(
    model: HybridForCausalLM, prompts: list[Prompt], *, batch: int, end_tokens: list[int], encode_each: bool = True
) -> tuple[dict[tuple[int, int], list[int]], float]:
    """Sample as the published engines do: a batch runs until its longest row has ended, finished rows go on in vain.

    The same decode step, random numbers and tokens as ours; only the scheduling differs. As there, each row's prompt is
    encoded for itself, in one batch, unless ``encode_each`` is false.

    Returns:
        Tokens by (prompt, sample), and the seconds it took.
    """
    found: dict[tuple[int, int], list[int]] = {}
    rows = [(index, sample) for index, prompt in enumerate(prompts) for sample in prompt.samples]
    start = time.perf_counter()
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        given = [prompts[index] for index, _ in part]
        config, count = given[0].config, len(part)
        length = len(given[0].tokens)  # equal lengths: what the published engines ask for
        cache = SlotCache(model.config, count, length - 1 + config.max_new_tokens, dtype=model.dtype)
        ids = torch.tensor([list(prompt.tokens) for prompt in given])
        for row in range(count) if not encode_each else ():
            own = HybridCache(model.config, 1, length - 1, dtype=model.dtype)
            model.model(input_ids=ids[row : row + 1, :-1], past_key_values=own, use_cache=True)
            cache.admit(torch.tensor([row]), own)
        if encode_each:
            together = HybridCache(model.config, count, length - 1, dtype=model.dtype)
            model.model(input_ids=ids[:, :-1], past_key_values=together, use_cache=True)
            for row in range(count):
                cache.admit(torch.tensor([row]), together.keep(torch.tensor([row])))
        keys = torch.tensor([prompt.key for prompt in given])
        samples = torch.tensor([sample for _, sample in part])
        drawn = uniforms(keys[:, None], samples[:, None], torch.arange(config.max_new_tokens), seed=config.seed)
        settings = RowSettings.repeat(config, count)
        token, done = ids[:, -1], torch.zeros(count, dtype=torch.bool)
        said = torch.zeros(count, config.max_new_tokens, dtype=torch.int64)
        ends = torch.tensor(end_tokens)
        lengths = torch.full((count,), config.max_new_tokens)
        for index in range(config.max_new_tokens):
            logits = decode_step(model, token, cache, longest=length + index)
            token = pick_tokens(logits, drawn[:, index], settings)
            said[:, index] = token
            ended = torch.isin(token, ends) & ~done
            lengths[ended] = index + 1
            done |= ended
            if done.all():
                break
        for row, key in enumerate(part):
            found[key] = said[row, : int(lengths[row])].tolist()
    return found, time.perf_counter() - start


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of rows whose tokens are all the same."""
    return float((a == b).all(dim=1).double().mean())
