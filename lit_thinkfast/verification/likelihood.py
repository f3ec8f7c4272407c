r"""A reward model without labels: how probable is a solution to a model that knows right ones?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lit_thinkfast.reading import read_causal_lm
from lit_thinkfast.records import Completion
from lit_thinkfast.verification.protocols import Loaded
from lit_thinkfast.verification.reward import StepRewardModel
from lit_thinkfast.verification.scores import log_odds_of_log
from lit_thinkfast.verification.steps import StepText, line_ends, prompt_ids

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

    The token that ends a response belongs to the last line of a completion that ended by itself. Below a probability of
    1e-323, some thousand tokens of unsure text, a score is the smallest positive number, and only ``log_odds`` still
    tell completions apart.

    Args:
        path: Hugging Face folder or hub id of model and tokenizer. Loaded at the first score.
        batch_size: Completions scored together; they are sorted by length first.
        device: Where the model runs.
        dtype: Of the weights: ``float32``, ``bfloat16`` or ``float16``. Log-odds are made of float32 logits in float64.

    Raises:
        ValueError: Unknown dtype, or a batch size below 1.
    """

    judges = "likelihood"

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

    def read(self, tokenizer: Any, dtype: Any) -> Loaded:
        return Loaded(read_causal_lm(self.path, self.path, dtype=dtype).to(self.device).eval(), tokenizer)

    def encode(self, question: str, completion: Completion) -> StepText:
        from lit_thinkfast.data.prompts import end_token_id

        tokenizer = self.loaded.tokenizer
        prompt = prompt_ids(tokenizer, question)
        ids, ends = line_ends(tokenizer, completion.text)
        if completion.finish_reason == "stop":
            ids = [*ids, end_token_id(tokenizer)]
        if ids and (not ends or ends[-1] < len(ids) - 1):
            ends.append(len(ids) - 1)  # the last line, which no newline ends
        return StepText([*prompt, *ids], len(prompt), [len(prompt) + end for end in ends])

    def cut(self, text: StepText, longest: int) -> StepText:
        """Return what is judged of a text: its lines within, or, of a first line that is too long, what lies within."""
        kept = text.cut(longest)
        return kept if kept.ends else text.cut_and_judged_at_end(longest)

    def judge(self, texts: list[StepText]) -> list[list[float]]:
        import torch

        hidden = self.hidden_states(texts)
        # each token of a solution is predicted at the one before it
        spans = [(text.prompt_tokens, max(text.prompt_tokens, len(text.ids))) for text in texts]
        before = torch.cat([row[start - 1 : end - 1] for row, (start, end) in zip(hidden, spans, strict=True)])
        targets = [token for text in texts for token in text.ids[text.prompt_tokens :]]
        log_p = log_probabilities(
            self.loaded.model, before, torch.tensor(targets, dtype=torch.long, device=hidden.device)
        )
        found = []
        for text, own in zip(texts, log_p.split([end - start for start, end in spans]), strict=True):
            so_far = own.cumsum(0).tolist()
            found.append([log_odds_of_log(so_far[end - text.prompt_tokens]) for end in text.ends])
        return found


def log_probabilities(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target, ``(n,)`` float64, from the hidden states ``(n, d)`` before it."""
    import torch

    head = model.get_output_embeddings()
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    parts = [torch.empty(0, dtype=torch.float64, device=hidden.device)]
    at_once = max(1, ELEMENTS // weight.shape[0])
    for rows, own in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        # float64, since the log-odds of a sure line are those of the little that is left to one
        scores = torch.nn.functional.linear(rows.float(), weight, bias).double().log_softmax(-1)
        parts.append(scores.gather(-1, own[:, None])[:, 0])
    return torch.cat(parts)
