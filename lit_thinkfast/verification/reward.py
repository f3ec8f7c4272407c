r"""Reward models that run a language model once over prompt and solution: how likely is a solution right, step by step?

:class:`StepRewardModel` is what they share: loading, checking, batching, reading the start that samples share once.
:class:`ProcessRewardModel` asks by a protocol (:mod:`lit_thinkfast.verification.protocols`), ours or that of a
published model. What they give are log-odds, see :mod:`lit_thinkfast.verification.scores`.

An outcome reward model was trained on one label a solution. Ours say so in their config under ``reward_scope``, and
only the last line is judged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.reading import told_in_one_line
from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification.detection import Judge, judge_of, marked
from lit_thinkfast.verification.grading import problems_of
from lit_thinkfast.verification.heads import logits_of
from lit_thinkfast.verification.protocols import PROTOCOLS, Loaded, RewardProtocol
from lit_thinkfast.verification.running import hidden_states, shares_prefixes
from lit_thinkfast.verification.scores import (
    NO_STEP,
    Aggregation,
    RewardModel,
    RewardScore,
    aggregate,
    check_aggregation,
)
from lit_thinkfast.verification.steps import StepText, batches, tokenizer_values

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NO_STEP",
    "Aggregation",
    "Judge",
    "ProcessRewardModel",
    "RewardModel",
    "RewardScore",
    "Scope",
    "StepRewardModel",
    "aggregate",
]

Scope = Literal["process", "outcome"]

log = logging.getLogger(__name__)


class StepRewardModel(RewardModel):
    """What reward models share that run a language model once over prompt and solution and judge at some tokens.

    A subclass says which tokens a text becomes and where its steps are judged (:meth:`encode`), and how
    (:meth:`judge`). Texts of like length run together, right-padded. Where the samples of a problem start with the
    same tokens and that saves 15 % of the work, these are read once and their keys and values reused: for models of
    transformers that attend only. Of a text beyond the model's longest context, what lies within is judged
    (:meth:`cut`); where nothing there can be, the log-odds are ``NO_STEP``. A warning says how many there are of each.

    Where the config says ``reward_scope: outcome``, the last step within that context is judged alone.

    Args:
        path: Hugging Face folder or hub id of model and tokenizer. Loaded at the first score.
        aggregation: From steps to solution.
        batch_size: Completions scored together.
        device: Where the model runs.
        dtype: Of the weights: ``float32``, ``bfloat16`` or ``float16``. Log-odds are float32 at least in any case.

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
        check_aggregation(aggregation)
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
        self.num_cut = 0
        """Completions so far that were longer than the model's context."""
        self.num_unjudged = 0
        """Those of them in which nothing could be judged: no step ends within the context, or no solution begins."""
        self._loaded: Loaded | None = None
        self._shares = False

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
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise ValueError(f"{self.path}: finding steps in tokens needs a fast tokenizer; this one is slow")
        if (made_for := marked(self.path)) is not None and made_for != self.judges:
            raise ValueError(
                f"{self.path} was made to judge by {made_for}, not by {self.judges}; load it with load_reward_model"
            )
        loaded = self.read(tokenizer, getattr(torch, self.dtype))
        if (scope := _scope(loaded.model)) not in Scope.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path}: reward_scope {scope!r} of its config is not one of process, outcome")
        self._check_reading(loaded.model)
        self._shares = shares_prefixes(loaded.model)
        self._loaded = loaded

    @property
    def loaded(self) -> Loaded:
        """Model, tokenizer and head, loaded if they were not."""
        self.load()
        assert self._loaded is not None
        return self._loaded

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[RewardScore]:
        """Return the reward of each completion, in order.

        Raises:
            ValueError: A completion whose problem is missing, or a token that the model does not know.
        """
        import torch

        owners = problems_of(problems, completions)
        texts = self._texts(owners, completions)
        found: list[RewardScore | None] = [None] * len(texts)
        for rows in batches(texts, [owner.id for owner in owners], self.batch_size):
            with torch.inference_mode():
                log_odds = self.judge([texts[i] for i in rows])
            for i, steps in zip(rows, log_odds, strict=True):
                found[i] = RewardScore(tuple(steps), aggregate(steps, self.aggregation))
        return [score for score in found if score is not None]

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for two calls to score alike, but for batch size and device.

        Besides the weights: how the text is asked (protocol, tokenizer, chat template), what the config says
        of the forward pass, how much of a text is read, and how steps become a score.
        """
        import torch

        from lit_thinkfast.generation.describe import fingerprint

        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        values: dict[str, Any] = {
            "judge": self.judges,
            "aggregation": self.aggregation,
            "dtype": self.dtype,
            "weights": fingerprint(model),
            "scope": _scope(model),
            "context": _context(model),
            "config": _digest({k: v for k, v in model.config.to_dict().items() if k not in _OF_THE_FILE}),
            "chat_template": _digest(tokenizer.chat_template),
            "tokenizer": _digest(tokenizer_values(tokenizer)),
        }
        if self.loaded.head is not None:  # the head may be no part of the model
            probe = torch.linspace(-1, 1, model.config.hidden_size, device=model.device)
            values["head"] = f"{self.loaded.head(probe[None]).item():.4g}"
        return values

    @property
    @abstractmethod
    def judges(self) -> str:
        """What this way of judging is called in a config, under ``reward_judge``."""

    @abstractmethod
    def read(self, tokenizer: Any, dtype: Any) -> Loaded:
        """Read the model, in eval mode on its device, and the head that judges.

        Raises:
            FileNotFoundError: A file is missing or damaged.
            ValueError: It is not such a model, or its tokenizer is not one for it.
        """

    @abstractmethod
    def encode(self, question: str, completion: Completion) -> StepText:
        """Return the tokens of prompt and solution, and where steps are judged."""

    def cut(self, text: StepText, longest: int) -> StepText:
        """Return what is judged of a text with more than ``longest`` tokens: here, the steps that end within."""
        return text.cut(longest)

    def judge(self, texts: list[StepText]) -> list[list[float]]:
        """Return for each text the log-odds that all is right up to and including each step."""
        import torch

        head = self.loaded.head
        assert head is not None, "a subclass without a head judges in its own way"
        hidden = self.hidden_states(texts)
        places = [(i, t) for i, text in enumerate(texts) for t in text.ends]
        where = torch.tensor(places, dtype=torch.long, device=hidden.device).reshape(-1, 2)  # there may be none
        values = iter(head(hidden[where[:, 0], where[:, 1]]).tolist())
        return [[next(values) for _ in text.ends] for text in texts]

    def hidden_states(self, texts: list[StepText]) -> Tensor:
        """Run the model once and return its last hidden states ``(texts, longest, d)``."""
        return hidden_states(self.loaded.model, texts, share=self._shares)

    def _texts(self, owners: Sequence[Problem], completions: Sequence[Completion]) -> list[StepText]:
        known, longest = self.loaded.model.get_input_embeddings().weight.shape[0], _context(self.loaded.model)
        whole = [self.encode(owner.question, each) for owner, each in zip(owners, completions, strict=True)]
        if whole and (largest := max(max(text.ids) for text in whole)) >= known:
            raise ValueError(
                f"{self.path}: its tokenizer gives token {largest}, but the model knows {known}; resize its embeddings"
            )
        overlong = [i for i, text in enumerate(whole) if len(text.ids) > longest]
        texts = list(whole)
        for i in overlong:
            texts[i] = self.cut(whole[i], longest)
        if _scope(self.loaded.model) == "outcome":
            texts = [StepText(text.ids, text.prompt_tokens, text.ends[-1:]) for text in texts]
        self._tell_of_cuts(len(overlong), sum(not texts[i].ends for i in overlong), len(whole), longest)
        return texts

    def _tell_of_cuts(self, cut: int, unjudged: int, total: int, longest: int) -> None:
        """Count completions that are too long, and warn at the first, and at the first that cannot be judged."""
        if (cut and not self.num_cut) or (unjudged and not self.num_unjudged):
            log.warning(
                "%s: %d of %d completions are longer than its context of %d tokens; judged by what lies within: %d; "
                "with nothing there to judge, and so log-odds of %g: %d",
                *(self.path, cut, total, longest, cut - unjudged, NO_STEP, unjudged),
            )
        self.num_cut += cut
        self.num_unjudged += unjudged

    def _check_reading(self, model: Any) -> None:
        """Refuse a model that looks ahead, such as an encoder, or does more to its logits than a head does."""
        import torch

        probes = [[0] + [i] * 7 for i in (0, 1)]
        tolerance = torch.finfo(model.dtype).eps ** 0.5
        with torch.inference_mode():
            hidden = hidden_states(model, [StepText(ids, 0, []) for ids in probes])
            one, other = hidden[:, 0].float()
            if (one - other).norm() > tolerance * one.norm():
                raise ValueError(f"{self.path}: a {type(model).__name__} looks ahead; a reward model must be a decoder")
            if model.get_output_embeddings() is None:
                return
            own = model(input_ids=torch.tensor(probes, device=hidden.device), use_cache=False).logits.float()
            ours = logits_of(model, hidden, slice(None))
        if (own - ours).norm() > tolerance * own.norm():
            raise ValueError(
                f"{self.path}: a {type(model).__name__} scales or caps its logits, which is not understood here; "
                "write a RewardModel of your own for it"
            )


class ProcessRewardModel(StepRewardModel):
    """Judges each step of a solution, or its end, by the protocol that the model was trained with.

    Args:
        path: Hugging Face folder or hub id of model and tokenizer. Loaded at the first score.
        protocol: A name in :data:`~lit_thinkfast.verification.protocols.PROTOCOLS`, a protocol of your own, or
            ``auto``: what config, architecture or name of the model tell.
        aggregation: From steps to solution.
        batch_size: Completions scored together.
        device: Where the model runs.
        dtype: Of the weights: ``float32``, ``bfloat16`` or ``float16``. Heads and log-odds are float32 in any case.

    Raises:
        ValueError: Unknown protocol, aggregation or dtype, or a batch size below 1. When it is loaded, a model that is
            not one of the protocol.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        protocol: str | RewardProtocol = "auto",
        aggregation: Aggregation = "last",
        batch_size: int = 16,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        super().__init__(path, aggregation=aggregation, batch_size=batch_size, device=device, dtype=dtype)
        if isinstance(protocol, str) and protocol != "auto" and protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}; known: auto, {', '.join(PROTOCOLS)}")
        self._protocol = PROTOCOLS.get(protocol) if isinstance(protocol, str) else protocol

    @property
    def protocol(self) -> RewardProtocol:
        """How the model is asked.

        Raises:
            ValueError: ``auto``, and nothing tells, or the model judges by likelihood.
        """
        if self._protocol is None:
            judge = judge_of(self.path)
            if judge not in PROTOCOLS:
                raise ValueError(
                    f"{self.path} was made to judge by {judge}, not by signs or any protocol; load it with "
                    "load_reward_model"
                )
            self._protocol = PROTOCOLS[judge]
        return self._protocol

    @property
    def judges(self) -> str:
        return self.protocol.name

    def read(self, tokenizer: Any, dtype: Any) -> Loaded:
        return self.protocol.load(self.path, tokenizer=tokenizer, dtype=dtype, device=self.device)

    def encode(self, question: str, completion: Completion) -> StepText:
        try:
            return self.protocol.encode(self.loaded, question, completion)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def cut(self, text: StepText, longest: int) -> StepText:
        return self.protocol.cut(self.loaded, text, longest)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "protocol": self.protocol.identity()}


_OF_THE_FILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "auto_map"}
"""Values of a config that change no score, or are told apart already."""


def _scope(model: Any) -> str:
    return getattr(model.config, "reward_scope", "process")


def _context(model: Any) -> int:
    """Return the longest text that the model takes, in tokens."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)


def _digest(value: Any) -> str:
    told = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
