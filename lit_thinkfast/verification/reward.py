r"""Reward models: how likely is a solution right, step by step?

A process reward model reads a solution and, at the end of each step, predicts ``+`` (right so far) or ``-``. Its
judgement of step t is the difference of the two logits, in float32: the log-odds l_t of P(+) renormalised over both
signs. Log-odds are kept because probabilities saturate: computed in bf16, a third of good samples tie at exactly 1.
With r_t = sigmoid(l_t) the score of a solution is r_T (``last``), min r_t, the product or the mean of r_t, computed
from log-odds without loss.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification.grading import problems_of

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal["last", "min", "product", "mean"]

NO_STEP = -100.0
"""Log-odds of a text without any step: as good as impossible, yet finite."""


@dataclass(frozen=True, slots=True)
class RewardScore:
    """Reward of one completion.

    Attributes:
        step_log_odds: Log-odds (natural logarithm) that the text is right up to and including each step.
        log_odds: The aggregate, as log-odds, rounded to float32. Rank by this one.
    """

    step_log_odds: tuple[float, ...]
    log_odds: float

    @property
    def score(self) -> float:
        """The aggregate as a probability: positive, so it can weigh votes.

        >>> RewardScore((0.0,), 0.0).score
        0.5
        """
        x = self.log_odds
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@runtime_checkable
class RewardModel(Protocol):
    """Whatever scores completions. Its attribute ``name``, if any, goes into the verdicts."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[RewardScore]:
        """Return the reward of each completion, whose problem is the one of ``problems`` with its id."""
        ...


class ProcessRewardModel(RewardModel):
    """A causal language model that judges each line of a solution by predicting ``+`` or ``-`` at its newline.

    The prompt is rendered as for sampling; the completion follows, with a last newline if it lacks one, as in training
    (:func:`lit_thinkfast.data.prompts.encode_example`). One forward pass judges all lines. Tokens beyond the model's
    longest context are cut off, and lines there are not judged.

    Args:
        path: Hugging Face folder or hub id of model and tokenizer. Loaded at the first score.
        aggregation: From steps to solution.
        batch_size: Completions scored together; they are sorted by length first.
        device: Where the model runs.
        dtype: Of the weights: ``float32``, ``bfloat16`` or ``float16``. Log-odds are float32 in any case.

    Raises:
        ValueError: Unknown aggregation or dtype, or a batch size below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        aggregation: Aggregation = "last",
        batch_size: int = 16,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        if aggregation not in Aggregation.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"aggregation {aggregation!r} is not one of last, min, product, mean")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is below 1; use at least 1")
        self.path = os.fspath(path)
        self.aggregation: Aggregation = aggregation
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.name = f"{os.path.basename(os.path.normpath(self.path))} ({aggregation})"
        self._loaded: tuple[Any, Any] | None = None

    def load(self) -> None:
        """Load model and tokenizer, once.

        Raises:
            FileNotFoundError: ``path`` looks like a folder and is none.
            ValueError: The model or its tokenizer cannot judge steps.
        """
        if self._loaded is not None:
            return
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not os.path.isdir(self.path) and (os.path.isabs(self.path) or self.path.count("/") != 1):
            raise FileNotFoundError(f"{self.path}: there is no such folder, and it is no hub id; name a reward model")
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=getattr(torch, self.dtype))
        if not tokenizer.is_fast:
            raise ValueError(f"{self.path}: finding line ends in tokens needs a fast tokenizer; this one is slow")
        for sign in "+-":
            if len(tokenizer(sign, add_special_tokens=False)["input_ids"]) != 1:
                raise ValueError(f"{self.path}: its tokenizer splits {sign!r}; a reward model needs one token for it")
        self._loaded = model.to(self.device).eval(), tokenizer

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[RewardScore]:
        """Return the reward of each completion, in order.

        Raises:
            ValueError: A completion whose problem is missing.
        """
        import torch

        owners = problems_of(problems, completions)
        self.load()
        assert self._loaded is not None
        model, tokenizer = self._loaded
        longest = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        prompts: dict[str, list[int]] = {}
        texts = [
            _encode(tokenizer, problem, completion, prompts, longest)
            for problem, completion in zip(owners, completions, strict=True)
        ]
        found: list[RewardScore | None] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            with torch.inference_mode():
                log_odds = self._log_odds(model, tokenizer, [texts[i] for i in rows])
            for i, steps in zip(rows, log_odds, strict=True):
                found[i] = RewardScore(tuple(steps), aggregate(steps, self.aggregation))
        return [score for score in found if score is not None]

    def _log_odds(self, model: Any, tokenizer: Any, texts: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the log-odds of ``+`` against ``-`` after each marked position of each text."""
        import torch

        width = max(len(ids) for ids, _ in texts)
        # Padding on the right, where a causal model does not look back from.
        rows = [ids + [0] * (width - len(ids)) for ids, _ in texts]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in texts]
        hidden: Tensor = model.base_model(
            input_ids=torch.tensor(rows, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            use_cache=False,
        ).last_hidden_state
        where = torch.tensor([(i, t) for i, (_, ends) in enumerate(texts) for t in ends], device=self.device).reshape(
            -1, 2
        )
        signs = [tokenizer(sign, add_special_tokens=False)["input_ids"][0] for sign in "+-"]
        head = model.get_output_embeddings()
        at_ends = hidden[where[:, 0], where[:, 1]].float()
        logits = torch.nn.functional.linear(
            at_ends, head.weight[signs].float(), None if head.bias is None else head.bias[signs].float()
        )
        values = iter((logits[:, 0] - logits[:, 1]).tolist())
        return [[next(values) for _ in ends] for _, ends in texts]


def aggregate(step_log_odds: Sequence[float], aggregation: Aggregation) -> float:
    """Return the log-odds of the aggregated probability, rounded to float32; ``NO_STEP`` if there is no step.

    ``product``: log P = sum of log sigmoid(l), and its log-odds log P - log(1 - P). ``mean``: the log of the sum of
    sigmoid(l) over that of sigmoid(-l).

    >>> aggregate([2.0, -1.0, 0.5], "last"), aggregate([2.0, -1.0, 0.5], "min"), aggregate([1.5, -1.5], "mean")
    (0.5, -1.0, 0.0)
    """
    if not step_log_odds:
        return NO_STEP
    if aggregation == "last":
        value = step_log_odds[-1]
    elif aggregation == "min":
        value = min(step_log_odds)
    elif aggregation == "product":
        log_p = math.fsum(_log_sigmoid(x) for x in step_log_odds)
        value = log_p - (math.log(-math.expm1(log_p)) if log_p < 0 else -math.inf)
    else:
        value = _log_sum_exp([_log_sigmoid(x) for x in step_log_odds])
        value -= _log_sum_exp([_log_sigmoid(-x) for x in step_log_odds])
    value = min(max(value, -1e30), 1e30)
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def _encode(
    tokenizer: Any, problem: Problem, completion: Completion, prompts: dict[str, list[int]], longest: int
) -> tuple[list[int], list[int]]:
    """Return the token ids of prompt and solution, and the positions of the tokens that end its lines."""
    from lit_thinkfast.data.prompts import render_prompt

    if problem.id not in prompts:
        prompts[problem.id] = render_prompt(tokenizer, problem.question)
    prompt = prompts[problem.id]
    text = completion.text if completion.text.endswith("\n") or not completion.text else completion.text + "\n"
    encoded = tokenizer(text, add_special_tokens=False)
    ids = [*prompt, *encoded["input_ids"]][:longest]
    tokens = (encoded.char_to_token(position) for position, character in enumerate(text) if character == "\n")
    ends = sorted({len(prompt) + token for token in tokens if token is not None})
    return ids, [end for end in ends if end < len(ids)]
