r"""A reward model without labels: how probable is a solution to a model that knows right ones?"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from lit_thinkfast.records import Completion
from lit_thinkfast.verification.reward import StepRewardModel, StepText, line_ends, logits_of

if TYPE_CHECKING:
    from torch import Tensor

ELEMENTS = 1 << 23
"""Logits held at a time."""


class LikelihoodRewardModel(StepRewardModel):
    r"""Judges a solution by how probable its lines are to a model that was trained on right solutions.

    The probability that all is right up to and including line t is taken to be that of the text so far,
    :math:`P_t = \prod_{i \le t} p(y_i | y_{<i})`, and its log-odds are :math:`\log P_t - \log(1 - P_t)`. Where a right
    step can be written in one way only, as in the arithmetic world, a perfect model gives right steps 1 and wrong ones
    0. Where it can be written in many, only texts of one problem compare, and only roughly. It is the implicit process
    reward (arXiv:2412.01981) with a uniform reference.

    The token that ends a response belongs to the last line of a completion that ended by itself.

    Args:
        path: Hugging Face folder or hub id of model and tokenizer. Loaded at the first score.
        batch_size: Completions scored together; they are sorted by length first.
        device: Where the model runs.
        dtype: Of the weights: ``float32``, ``bfloat16`` or ``float16``. Log-odds are made in float64.

    Raises:
        ValueError: Unknown dtype, or a batch size below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        # each line's log-odds already tell of all lines before it
        super().__init__(path, aggregation="last", batch_size=batch_size, device=device, dtype=dtype)
        self.name = f"{os.path.basename(os.path.normpath(self.path))} (likelihood)"

    def encode(self, tokenizer: Any, prompt: list[int], completion: Completion) -> StepText:
        from lit_thinkfast.data.prompts import end_token_id

        ids, ends = line_ends(tokenizer, completion.text)
        if completion.finish_reason == "stop":
            ids = [*ids, end_token_id(tokenizer)]
        if ids and (not ends or ends[-1] < len(ids) - 1):
            ends.append(len(ids) - 1)  # the last line, which no newline ends
        return StepText([*prompt, *ids], len(prompt), [len(prompt) + end for end in ends])

    def judge(self, model: Any, tokenizer: Any, texts: list[StepText]) -> list[list[float]]:
        hidden = self.hidden_states(model, texts)
        found = []
        for row, text in zip(hidden, texts, strict=True):
            log_p = _log_probabilities(model, row, text).cumsum(0)
            found.append([_log_odds(float(log_p[end - text.prompt_tokens])) for end in text.ends])
        return found


def _log_probabilities(model: Any, hidden: Tensor, text: StepText) -> Tensor:
    """Return the log-probability of each token of the solution, float64, ``(tokens,)``; ``hidden`` is ``(t, d)``."""
    import torch

    before = hidden[text.prompt_tokens - 1 : len(text.ids) - 1]
    targets = torch.tensor(text.ids[text.prompt_tokens :], device=hidden.device)
    # float64, since the log-odds of a sure line are those of the little that is left to one; in parts, since the
    # vocabulary may be large
    at_once = max(1, ELEMENTS // model.config.vocab_size)
    parts = [torch.empty(0, dtype=torch.float64, device=hidden.device)]
    for start in range(0, len(targets), at_once):
        logits = logits_of(model, before[start : start + at_once], slice(None)).double()
        parts.append(torch.log_softmax(logits, -1).gather(-1, targets[start : start + at_once, None])[:, 0])
    return torch.cat(parts)


def _log_odds(log_p: float) -> float:
    """Return log p - log(1 - p).

    >>> round(_log_odds(math.log(0.75)), 6) == round(math.log(3), 6)
    True
    """
    log_p = min(log_p, -1e-16)  # a probability of one, to the last digit
    return log_p - math.log(-math.expm1(log_p))
