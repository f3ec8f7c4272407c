"""From logits to tokens, all rows at once: temperature, top-k, top-p, min-p, inverse of the cumulative distribution.

Every row has settings of its own. All work is on *weights*, ``exp((logit - largest) / temperature)``: the likeliest
token weighs 1, and each filter is one number a row, the least weight that is kept. Nothing is normalised: a token is
drawn by comparing the running sum of the kept weights, in the order of the vocabulary, with a part of the total.

A large vocabulary is drawn from in two levels: sums of blocks of tokens, then the tokens of the one block chosen. That
reads the vocabulary once where a running sum over all of it is several times slower. On a CPU a few rows are
taken at a time, so that their weights stay in the cache.

Left out: penalties of repetition, and filters that no setting asks for (typical, epsilon, eta).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_thinkfast.generation.config import SamplingConfig

# Likeliest tokens looked at before the whole vocabulary is sorted; a nucleus is rarely wider
_SHORT_LISTS = (32, 256, 2048)
# Up to here one running sum is faster than two levels (64 rows on one core: 85 against 110 us at 512 tokens, 410
# against 210 us at 2,048)
_ONE_LEVEL = 1024
_LEAST_BLOCK, _LARGEST_BLOCK = 32, 256
# Weights computed together on a CPU: 1 MiB of float32
_CPU_CHUNK = 2**18


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What is known about the settings of all rows without asking the device.

    Attributes:
        all_greedy: Every row is greedy.
        any_greedy: Some row may be greedy.
        all_top_k: Every row has a top-k.
        widest_top_k: No row has a larger top-k; 0: none has one.
        any_top_p: Some row may have a top-p.
        any_min_p: Some row may have a min-p.
    """

    all_greedy: bool
    any_greedy: bool
    all_top_k: bool
    widest_top_k: int
    any_top_p: bool
    any_min_p: bool

    def joined(self, other: RowFacts) -> RowFacts:
        """Return what holds when rows of both are mixed."""
        return RowFacts(
            all_greedy=self.all_greedy and other.all_greedy,
            any_greedy=self.any_greedy or other.any_greedy,
            all_top_k=self.all_top_k and other.all_top_k,
            widest_top_k=max(self.widest_top_k, other.widest_top_k),
            any_top_p=self.any_top_p or other.any_top_p,
            any_min_p=self.any_min_p or other.any_min_p,
        )


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How each row picks its tokens: tensors of one entry a row, and what the host knows of them.

    Attributes:
        temperature: float32 ``(rows,)``; 0 is greedy.
        top_k: int64 ``(rows,)``; 0 keeps all.
        top_p: float32 ``(rows,)``; 1 keeps all.
        min_p: float32 ``(rows,)``; 0 keeps all.
        facts: Of all rows. After :meth:`take` and :meth:`put` they may name more than the rows now have, which costs
            time and never changes a token.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    facts: RowFacts

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig], *, device: torch.device | str = "cpu") -> RowSettings:
        """Return the settings of rows with a config each."""
        # float32 has a largest number, and infinity would give impossible tokens a weight
        largest = torch.finfo(torch.float32).max
        temperature = torch.tensor([config.temperature for config in configs], dtype=torch.float64).clamp(max=largest)
        temperature = temperature.to(torch.float32)
        top_k = torch.tensor([config.top_k for config in configs], dtype=torch.int64)
        top_p = torch.tensor([config.top_p for config in configs], dtype=torch.float32)
        min_p = torch.tensor([config.min_p for config in configs], dtype=torch.float32)
        facts = RowFacts(
            all_greedy=bool((temperature == 0).all()),
            any_greedy=bool((temperature == 0).any()),
            all_top_k=bool((top_k > 0).all()),
            widest_top_k=max((config.top_k for config in configs), default=0),
            any_top_p=bool((top_p < 1).any()),
            any_min_p=bool((min_p > 0).any()),
        )
        return cls(temperature.to(device), top_k.to(device), top_p.to(device), min_p.to(device), facts)

    @classmethod
    def repeat(cls, config: SamplingConfig, rows: int, *, device: torch.device | str = "cpu") -> RowSettings:
        """Return the settings of ``rows`` rows with the same config.

        >>> RowSettings.repeat(SamplingConfig(temperature=0.5), 3).temperature
        tensor([0.5000, 0.5000, 0.5000])
        """
        return cls.of([config] * rows, device=device)

    @property
    def wants_uniform(self) -> bool:
        """Whether any row needs a random number."""
        return not self.facts.all_greedy

    @property
    def waits(self) -> bool:
        """Whether :func:`pick_tokens` may wait for the device, so that it cannot be captured in a CUDA graph.

        True with top-p where some row has no top-k: whether a short list of likely tokens holds the nucleus must be
        looked at. Without that wait the whole vocabulary would have to be sorted at every step, which costs more than
        all else here together (49,152 tokens on one core: 6 ms a row, the short list of 32 some 0.03 ms).
        """
        return self.wants_uniform and self.facts.any_top_p and not self.facts.all_top_k

    def take(self, index: Tensor | slice) -> RowSettings:
        """Return the rows at ``index``: an int64 tensor, or a slice."""
        return RowSettings(self.temperature[index], self.top_k[index], self.top_p[index], self.min_p[index], self.facts)

    def put(self, index: Tensor | slice, other: RowSettings) -> RowSettings:
        """Overwrite the rows at ``index`` with those of ``other``, in place, and return the settings to use from now.

        The tensors stay where they are; only the facts are new.
        """
        for name in ("temperature", "top_k", "top_p", "min_p"):
            getattr(self, name)[index] = getattr(other, name)
        return dataclasses.replace(self, facts=self.facts.joined(other.facts))


def pick_tokens(logits: Tensor, uniform: Tensor | None, settings: RowSettings) -> Tensor:
    """Draw one token a row.

    Filters come in the order of transformers' ``generate``: temperature, top-k, top-p of what top-k kept, min-p
    relative to the likeliest token. (vLLM applies min-p before top-p. That differs where both are set: there the mass
    of top-p is counted over the tokens that min-p kept.) Tokens exactly as likely as the last one kept are kept too,
    so the result does not depend on how a sort orders ties.

    A token of probability 0 is never drawn. Nothing waits for the device unless :attr:`RowSettings.waits`.

    Args:
        logits: ``(rows, vocabulary)``. Half precision is computed in float32, float64 stays.
        uniform: ``(rows,)`` in [0, 1): a row's token is the first at which the running sum of the kept weights, in the
            order of the vocabulary, exceeds ``uniform`` times their total. Greedy rows do not use theirs; ``None``
            will do where all are greedy.
        settings: Of these rows. A temperature of 0 takes the likeliest token, the first of equals, and no filter.

    Returns:
        int64 ``(rows,)``.

    >>> settings = RowSettings.repeat(SamplingConfig(temperature=1.0, top_k=2), 3)
    >>> pick_tokens(torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(3, 4), torch.tensor([0.0, 0.26, 0.27]), settings)
    tensor([2, 2, 3])
    """
    if settings.facts.all_greedy:
        return _likeliest(logits)
    if uniform is None:
        raise ValueError(
            "uniform None: rows with a temperature above 0 need a number each; pass them or use temperature 0"
        )
    logits = logits.contiguous()
    rows, vocabulary = logits.shape
    together = max(1, _CPU_CHUNK // vocabulary) if logits.device.type == "cpu" else rows
    if together >= rows:
        token = _draw(logits, uniform, settings)
    else:
        parts = [slice(start, start + together) for start in range(0, rows, together)]
        token = torch.cat([_draw(logits[part], uniform[part], settings.take(part)) for part in parts])
    if settings.facts.any_greedy:
        token = torch.where(settings.temperature == 0, _likeliest(logits), token)
    return token


def token_weights(logits: Tensor, settings: RowSettings) -> Tensor:
    """Return the weight of every token after temperature and filters; divided by their sum they are probabilities.

    Args:
        logits: ``(rows, vocabulary)``.
        settings: Of these rows. A greedy row is treated as one of temperature 1.

    Returns:
        ``(rows, vocabulary)``, 1 for the likeliest token, 0 for those left out; float32, or float64 for such logits.
    """
    facts = settings.facts
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    temperature = settings.temperature
    if facts.any_greedy:
        temperature = temperature.masked_fill(temperature == 0, 1)
    weights = (logits - logits.amax(-1, keepdim=True)).div_(temperature.unsqueeze(-1)).exp_()
    largest = None
    if facts.widest_top_k:
        width = min(facts.widest_top_k, weights.shape[-1])
        largest = _largest(weights, width)
        last = (settings.top_k.unsqueeze(-1) - 1).clamp(0, width - 1)
        least = largest.gather(-1, last) * (settings.top_k > 0).unsqueeze(-1)
        weights = _at_least(weights, least)
    if facts.any_top_p:
        # where every row has a top-k, the likeliest tokens found for it hold all that is left, but for ties
        weights = _at_least(weights, nucleus(weights, settings.top_p, ordered=largest if facts.all_top_k else None))
    if facts.any_min_p:
        weights = _at_least(weights, settings.min_p.unsqueeze(-1))
    return weights


def nucleus(weights: Tensor, top_p: Tensor, *, ordered: Tensor | None = None) -> Tensor:
    """Return the least weight in the nucleus of each row.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p`` (Holtzman et al.,
    arXiv:1904.09751, sec. 3.1).

    Args:
        weights: ``(rows, vocabulary)``, not negative, of any sum.
        top_p: ``(rows,)``, above 0; rows at 1 keep all.
        ordered: The largest weights of each row in falling order, if known, ``(rows, any)``: no token left out of it
            weighs more than 0, unless as much as the last. Else they are searched, which waits for the device.

    Returns:
        ``(rows, 1)``, 0 where ``top_p`` is 1.

    >>> nucleus(torch.tensor([[5.0, 3.0, 1.5, 0.5]]), torch.tensor([0.7]))
    tensor([[3.]])
    """
    vocabulary = weights.shape[-1]
    top_p = top_p.unsqueeze(-1)
    wanted = top_p * weights.sum(-1, keepdim=True)
    for width in (*_SHORT_LISTS, vocabulary):
        known = ordered if ordered is not None else _largest(weights, min(width, vocabulary))
        cumulative = known.cumsum(-1)
        if ordered is not None or width >= vocabulary:
            break
        if bool(((cumulative[:, -1:] >= wanted) | (top_p >= 1)).all()):
            break
    size = (cumulative - known < wanted).sum(-1, keepdim=True)
    return known.gather(-1, (size - 1).clamp_(min=0)) * (top_p < 1)


def _draw(logits: Tensor, uniform: Tensor, settings: RowSettings) -> Tensor:
    """Draw from rows of which none is greedy; a greedy one gets some token."""
    vocabulary = logits.shape[-1]
    uniform = uniform.to(torch.float64).unsqueeze(-1)
    if vocabulary <= _ONE_LEVEL:
        reached = token_weights(logits, settings).to(torch.float64).cumsum_(-1)
        token = _first_above(reached, uniform * reached[:, -1:])
        return token.squeeze(-1)
    blocks = _in_blocks(token_weights(_whole_blocks(logits), settings))
    sums = blocks.sum(-1)
    reached = sums.cumsum(-1, dtype=torch.float64)
    target = uniform * reached[:, -1:]
    block = _first_above(reached, target)
    target = target - (reached.gather(-1, block) - sums.gather(-1, block))
    reached = _chosen(blocks, block).cumsum(-1, dtype=torch.float64)
    # the two sums over a block are rounded differently, and what is left of the target must stay within this one
    target = torch.minimum(target.clamp_(min=0), reached[:, -1:] * (1 - 2.0**-53))
    token = block * blocks.shape[-1] + _first_above(reached, target)
    return token.squeeze(-1).clamp_(max=vocabulary - 1)


def _first_above(reached: Tensor, target: Tensor) -> Tensor:
    """Return the first place of each row where the running sum exceeds the target; the last place if none does.

    The sum does not fall, and stays the same where a weight is 0: such a place is never the first.
    """
    return torch.searchsorted(reached, target, right=True).clamp_(max=reached.shape[-1] - 1)


def _likeliest(logits: Tensor) -> Tensor:
    """``logits.argmax(-1)``, the first of equals, in two levels: on a CPU a maximum is much faster than its place."""
    blocks = _in_blocks(_whole_blocks(logits))
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    return block.squeeze(-1) * blocks.shape[-1] + _chosen(blocks, block).argmax(-1)


def _largest(weights: Tensor, count: int) -> Tensor:
    """``weights.topk(count).values`` by way of the ``count`` blocks with the largest maxima, which must hold them.

    Blocks are strided (tokens i, i + n, i + 2 n ...), so that their maxima are taken over whole vectors.
    """
    vocabulary = weights.shape[-1]
    size = 32
    while size > 1 and (size * size * count > vocabulary or vocabulary % size):
        size //= 2
    if size == 1:
        return weights.topk(count, dim=-1).values
    blocks = weights.view(-1, size, vocabulary // size)
    best = blocks.amax(1).topk(count, dim=-1, sorted=False).indices
    return blocks.gather(2, best.unsqueeze(1).expand(-1, size, -1)).flatten(1).topk(count, dim=-1).values


def _at_least(weights: Tensor, least: Tensor) -> Tensor:
    """Set weights below ``least`` to 0, in place. Compared as numbers: on a CPU that is 8 times faster than a mask."""
    return weights.mul_(weights.clone().ge_(least))


def _whole_blocks(logits: Tensor) -> Tensor:
    """Return the logits, with impossible tokens behind them where no block size divides the vocabulary."""
    vocabulary = logits.shape[-1]
    if vocabulary % _LEAST_BLOCK == 0:
        return logits
    size = _LEAST_BLOCK
    while size < _LARGEST_BLOCK and size * size < vocabulary:
        size *= 2
    return F.pad(logits, (0, -vocabulary % size), value=-math.inf)


def _in_blocks(values: Tensor) -> Tensor:
    """``(rows, vocabulary)`` to ``(rows, blocks, size)``, a view; sizes about the root of the vocabulary are best."""
    rows, vocabulary = values.shape
    size = _LARGEST_BLOCK
    while size > _LEAST_BLOCK and (size * size > 2 * vocabulary or vocabulary % size):
        size //= 2
    return values.view(rows, vocabulary // size, size)


def _chosen(blocks: Tensor, block: Tensor) -> Tensor:
    """Return ``(rows, size)``: one block a row, chosen by ``block (rows, 1)``."""
    return blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, blocks.shape[-1])).squeeze(1)
