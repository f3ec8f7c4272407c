r"""Reward models: how likely is a solution right, step by step?

A reward model reads a solution and gives each step t the log-odds l_t that all is right up to and including it.
Log-odds are kept because probabilities saturate: computed in bf16, a third of good samples tie at exactly 1. With
r_t = sigmoid(l_t) the score of a solution is r_T (``last``), min r_t, the product or the mean of r_t, computed from
log-odds without loss.

Here is the way of models that were trained to predict ``+`` or ``-`` at the end of each step; for others see
:mod:`lit_thinkfast.verification.head` and :mod:`lit_thinkfast.verification.likelihood`. An outcome reward model was
trained on one label a solution, at its last line. Its config says so under ``reward_scope``, and only there is it read.
"""

from __future__ import annotations

import math
import os
import struct
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from lit_thinkfast.reading import read_causal_lm, told_in_one_line
from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification.grading import problems_of

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal["last", "min", "product", "mean"]
Judge = Literal["signs", "head", "likelihood"]
Scope = Literal["process", "outcome"]

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


class StepRewardModel(RewardModel):
    """What reward models share that run a causal language model once over prompt and solution, lines being steps.

    A subclass says where in a text the steps end (:meth:`encode`), how they are judged (:meth:`judge`), and what that
    is called in a model's config, under ``reward_judge`` (``judges``). Where the config says ``reward_scope: outcome``
    the whole text is one step: the end of the last one within the model's longest context is judged alone.

    Args:
        path: Hugging Face folder or hub id of model and tokenizer. Loaded at the first score.
        aggregation: From steps to solution.
        batch_size: Completions scored together; they are sorted by length first.
        device: Where the model runs.
        dtype: Of the weights: ``float32``, ``bfloat16`` or ``float16``. Log-odds are float32 at least in any case.

    Raises:
        ValueError: Unknown aggregation or dtype, or a batch size below 1.
    """

    judges: ClassVar[Judge]

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
            ValueError: It cannot be read, lacks weights, looks ahead, is made for another judge or an unknown scope,
                or its tokenizer or what it does to logits is not understood here.
        """
        if self._loaded is not None:
            return
        import torch
        from transformers import AutoTokenizer

        if not os.path.isdir(self.path) and (os.path.isabs(self.path) or self.path.count("/") != 1):
            raise FileNotFoundError(f"{self.path}: there is no such folder, and it is no hub id; name a reward model")
        with told_in_one_line(self.path):
            tokenizer = AutoTokenizer.from_pretrained(self.path)
        if not tokenizer.is_fast:
            raise ValueError(f"{self.path}: finding line ends in tokens needs a fast tokenizer; this one is slow")
        self.check_tokenizer(tokenizer)
        model = read_causal_lm(self.path, self.path, dtype=getattr(torch, self.dtype)).to(self.device).eval()
        made_for = getattr(model.config, "reward_judge", self.judges)
        if made_for != self.judges:
            raise ValueError(
                f"{self.path} was made to judge by {made_for}, not by {self.judges}; use the class for that"
            )
        if (scope := _scope(model)) not in Scope.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path}: reward_scope {scope!r} of its config is not one of process, outcome")
        self._check_reading(model)
        self._loaded = model, tokenizer

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise ``ValueError`` if steps cannot be judged with it."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[RewardScore]:
        """Return the reward of each completion, in order.

        Raises:
            ValueError: A completion whose problem is missing, or a token that the model does not know.
        """
        import torch

        owners = problems_of(problems, completions)
        self.load()
        assert self._loaded is not None
        model, tokenizer = self._loaded
        longest = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        prompts: dict[str, list[int]] = {}
        texts = [
            self.encode(tokenizer, _prompt(tokenizer, problem, prompts), completion).cut(longest)
            for problem, completion in zip(owners, completions, strict=True)
        ]
        if _scope(model) == "outcome":
            texts = [StepText(text.ids, text.prompt_tokens, text.ends[-1:]) for text in texts]
        known = model.get_input_embeddings().weight.shape[0]
        if texts and (largest := max(max(text.ids) for text in texts)) >= known:
            raise ValueError(
                f"{self.path}: its tokenizer gives token {largest}, but the model knows {known}; resize its embeddings"
            )
        found: list[RewardScore | None] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            with torch.inference_mode():
                log_odds = self.judge(model, tokenizer, [texts[i] for i in rows])
            for i, steps in zip(rows, log_odds, strict=True):
                found[i] = RewardScore(tuple(steps), aggregate(steps, self.aggregation))
        return [score for score in found if score is not None]

    @abstractmethod
    def encode(self, tokenizer: Any, prompt: list[int], completion: Completion) -> StepText:
        """Return the tokens of prompt and solution, and where its steps end."""

    @abstractmethod
    def judge(self, model: Any, tokenizer: Any, texts: list[StepText]) -> list[list[float]]:
        """Return for each text the log-odds that all is right up to and including each step."""

    def _check_reading(self, model: Any) -> None:
        """Refuse a model that looks ahead, such as an encoder, or does more to its logits than a head does."""
        import torch

        probes = [[0] + [i] * 7 for i in (0, 1)]
        tolerance = torch.finfo(model.dtype).eps ** 0.5
        with torch.inference_mode():
            hidden = self.hidden_states(model, [StepText(ids, 0, []) for ids in probes])
            one, other = hidden[:, 0].float()
            if (one - other).norm() > tolerance * one.norm():
                raise ValueError(f"{self.path}: a {type(model).__name__} looks ahead; a reward model must be a decoder")
            own = model(input_ids=torch.tensor(probes, device=self.device), use_cache=False).logits.float()
            ours = logits_of(model, hidden, slice(None))
        if (own - ours).norm() > tolerance * own.norm():
            raise ValueError(
                f"{self.path}: a {type(model).__name__} scales or caps its logits, which is not understood here; "
                "write a RewardModel of your own for it"
            )

    def hidden_states(self, model: Any, texts: list[StepText]) -> Tensor:
        """Run the model once and return its last hidden states ``(texts, longest, d)``."""
        import torch

        width = max(len(text.ids) for text in texts)
        # Padding on the right, where a causal model does not look back from.
        rows = [text.ids + [0] * (width - len(text.ids)) for text in texts]
        mask = [[1] * len(text.ids) + [0] * (width - len(text.ids)) for text in texts]
        hidden: Tensor = model.base_model(
            input_ids=torch.tensor(rows, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            use_cache=False,
        ).last_hidden_state
        return hidden


class LineRewardModel(StepRewardModel):
    """What reward models share that were trained to judge a line at its newline, by :meth:`log_odds` of its state.

    The prompt is rendered as for sampling; the completion follows, with a last newline if it lacks one, as in training
    (:func:`lit_thinkfast.data.prompts.encode_example`). One forward pass judges all lines. Tokens beyond the model's
    longest context are cut off, and lines there are not judged.
    """

    def encode(self, tokenizer: Any, prompt: list[int], completion: Completion) -> StepText:
        text = completion.text if completion.text.endswith("\n") or not completion.text else completion.text + "\n"
        ids, ends = line_ends(tokenizer, text)
        return StepText([*prompt, *ids], len(prompt), [len(prompt) + end for end in ends])

    def judge(self, model: Any, tokenizer: Any, texts: list[StepText]) -> list[list[float]]:
        import torch

        hidden = self.hidden_states(model, texts)
        places = [(i, t) for i, text in enumerate(texts) for t in text.ends]
        where = torch.tensor(places, dtype=torch.long, device=self.device).reshape(-1, 2)  # there may be none
        values = iter(self.log_odds(model, tokenizer, hidden[where[:, 0], where[:, 1]]).tolist())
        return [[next(values) for _ in text.ends] for text in texts]

    @abstractmethod
    def log_odds(self, model: Any, tokenizer: Any, hidden: Tensor) -> Tensor:
        """Return the log-odds, ``(n,)``, of last hidden states ``(n, d)`` at newlines."""


class ProcessRewardModel(LineRewardModel):
    """Judges each line of a solution by predicting ``+`` (right so far) or ``-`` at its newline.

    Log-odds are the difference of the two logits: those of P(+) renormalised over both signs, as
    :class:`~lit_thinkfast.distill.rewards.RewardLoss` trains them. Arguments and errors are those of
    :class:`StepRewardModel`; a tokenizer that splits a sign is refused.
    """

    judges = "signs"

    def check_tokenizer(self, tokenizer: Any) -> None:
        for sign in "+-":
            if len(tokenizer(sign, add_special_tokens=False)["input_ids"]) != 1:
                raise ValueError(f"{self.path}: its tokenizer splits {sign!r}; a reward model needs one token for it")

    def log_odds(self, model: Any, tokenizer: Any, hidden: Tensor) -> Tensor:
        signs = [tokenizer(sign, add_special_tokens=False)["input_ids"][0] for sign in "+-"]
        logits = logits_of(model, hidden, signs)
        return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True, slots=True)
class StepText:
    """Tokens of a prompt and a solution.

    Attributes:
        ids: Of both.
        prompt_tokens: How many of them are the prompt's.
        ends: Position in ``ids`` of the last token of each step, increasing.
    """

    ids: list[int]
    prompt_tokens: int
    ends: list[int]

    def cut(self, longest: int) -> StepText:
        """Return the first ``longest`` tokens and the steps that end among them."""
        return StepText(self.ids[:longest], self.prompt_tokens, [end for end in self.ends if end < longest])


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


def _scope(model: Any) -> str:
    return getattr(model.config, "reward_scope", "process")


def _prompt(tokenizer: Any, problem: Problem, seen: dict[str, list[int]]) -> list[int]:
    """Return the tokens of a problem's prompt, made once."""
    from lit_thinkfast.data.prompts import render_prompt

    if problem.id not in seen:
        seen[problem.id] = render_prompt(tokenizer, problem.question)
    return seen[problem.id]


def line_ends(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a text and the positions of those that hold a newline."""
    encoded = tokenizer(text, add_special_tokens=False)
    tokens = (encoded.char_to_token(position) for position, character in enumerate(text) if character == "\n")
    return list(encoded["input_ids"]), sorted({token for token in tokens if token is not None})


def logits_of(model: Any, hidden: Tensor, rows: Any) -> Tensor:
    """Return the logits of some vocabulary rows, a list or a slice, in float32: ``(..., d)`` -> ``(..., rows)``."""
    import torch

    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias[rows].float()
    return torch.nn.functional.linear(hidden.float(), head.weight[rows].float(), bias)
