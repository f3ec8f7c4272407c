r"""Protocols of reward models: how a problem and a solution become tokens, where they are judged, and by what.

Each is what the authors of a published model trained it with and score it by; where their programs differ, the
docstring says which one is followed. A protocol gives log-odds where they take a probability: P(+) among two tokens is
the sigmoid of the difference of their logits, and so is the second of two classes. None runs code of a model's
repository: the decoder is a class of transformers, and a head it lacks is read from the weights by name.

Ours are ``signs`` and ``head``, which judge lines. What judges by likelihood is no protocol but a
:class:`~lit_thinkfast.verification.LikelihoodRewardModel`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from lit_thinkfast.data.prompts import PROMPTS
from lit_thinkfast.reading import read_causal_lm, told_in_one_line
from lit_thinkfast.records import Completion
from lit_thinkfast.verification.heads import (
    Head,
    hidden_layer_head,
    linear_head,
    read_backbone,
    read_head,
    read_tensors,
    sign_head,
)
from lit_thinkfast.verification.steps import StepText, conversation, defused, joined, render, solution_lines

TAG = "\u043a\u0438"
"""What ends a step in the data of Math-Shepherd, two Cyrillic letters: chosen since no solution has it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A reward model in memory.

    Attributes:
        model: Of transformers, with or without an output embedding.
        tokenizer: Of the model.
        head: From last hidden states to log-odds, if the model is judged by one.
    """

    model: Any
    tokenizer: Any
    head: Head | None = None


class RewardProtocol(ABC):
    """How one kind of reward model is asked."""

    name: str

    def load(self, path: str, *, tokenizer: Any, dtype: Any, device: str) -> Loaded:
        """Read the model and its head. Here: a causal language model that predicts one of two tokens.

        Raises:
            FileNotFoundError: A file is missing or damaged.
            ValueError: They are not of one model of this kind.
        """
        plus, minus = self.signs(path, tokenizer)
        model = read_causal_lm(path, path, dtype=dtype).to(device).eval()
        return Loaded(model, tokenizer, sign_head(model, plus, minus))

    @abstractmethod
    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        """Return the tokens of prompt and solution, and the positions at which steps are judged.

        Raises:
            ValueError: The tokenizer, or its chat template, is not that of such a model.
        """

    def cut(self, loaded: Loaded, text: StepText, longest: int) -> StepText:
        """Return what is judged of a text with more than ``longest`` tokens. Here: the steps that end within.

        A step that does not end there is not judged: such a model was not trained to judge in its middle.
        """
        return text.cut(longest)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for two protocols to ask alike: class and, of a dataclass, fields."""
        return {"class": type(self).__qualname__, **(asdict(self) if is_dataclass(self) else {"name": self.name})}

    def signs(self, path: str, tokenizer: Any) -> tuple[int, int]:
        """Return the tokens for right and wrong."""
        plus, minus = (tokenizer(sign, add_special_tokens=False)["input_ids"] for sign in "+-")
        if len(plus) != 1 or len(minus) != 1:
            sign = "+" if len(plus) != 1 else "-"
            raise ValueError(f"{path}: its tokenizer splits {sign!r}; a reward model needs one token for it")
        return plus[0], minus[0]


class Signs(RewardProtocol):
    """Ours: each line is judged at its newline by ``+`` and ``-``, as ``RewardLoss`` trains it."""

    name = "signs"

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        return solution_lines(loaded.tokenizer, question, completion)


class OwnHead(Signs):
    """Ours: each line is judged at its newline by a linear unit in a file beside the model (``HeadRewardLoss``)."""

    name = "head"

    def load(self, path: str, *, tokenizer: Any, dtype: Any, device: str) -> Loaded:
        model = read_causal_lm(path, path, dtype=dtype).to(device).eval()
        weight, bias = read_head(path, model.get_output_embeddings().weight.shape[1])
        return Loaded(model, tokenizer, linear_head(weight.to(device), bias.to(device)))


class RLHFlow(RewardProtocol):
    r"""RLHFlow's Llama3.1-8B-PRM-Deepseek-Data: a conversation in which the assistant answers each step with ``+``.

    Steps are what blank lines separate, empty ones included. The first turn is the question, a space and the first
    step. The token before each ``+`` predicts it; since all earlier answers are ``+`` too, one pass gives what a pass
    for each step gives. As ``search-and-learn`` does it; RLHFlow's own ``math-rm/prm_evaluate.py`` also strips each
    step, which the chat template of Llama 3.1 does for all but the first.
    """

    name = "rlhflow-deepseek"

    def steps(self, text: str) -> list[str]:
        """Return the steps of a solution."""
        return text.split("\n\n")

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        tokenizer = loaded.tokenizer
        first, *rest = (defused(tokenizer, step) for step in self.steps(completion.text))
        turns = [f"{defused(tokenizer, question)} {first}", *rest]
        parts = render(tokenizer, [message for turn in turns for message in (("user", turn), ("assistant", ("", "")))])
        return joined(tokenizer, parts, "+", tokenizer("+", add_special_tokens=False)["input_ids"][-1], at=-1)


class RLHFlowMistral(RLHFlow):
    """RLHFlow's Llama3.1-8B-PRM-Mistral-Data: the same conversation, whose steps are those of Math-Shepherd.

    They are stripped, and end with its tag and a newline where the generator writes the tag
    (``math-rm/prm_evaluate.py``). Where it writes none, as most do, they are the lines: those of the training data.
    """

    name = "rlhflow-mistral"

    def steps(self, text: str) -> list[str]:
        end = f"{TAG}\n" if f"{TAG}\n" in text else "\n"
        return [step.strip() for step in text.strip().split(end) if step.strip()] or [""]


@dataclass(frozen=True)
class MathShepherd(RewardProtocol):
    r"""Math-Shepherd's Mistral 7B: each step ends with the tag, where ``+`` or ``-`` is predicted.

    As the card of its data set has it: question, space, solution, whose steps are the lines. ``search-and-learn`` puts
    a system prompt and a newline before the question, a newline after it, and takes what blank lines separate for
    steps.

    Args:
        separator: What ends a step, newlines. Several in a row end one.
        before: Written before the question.
        after: Written between question and solution.
        name: Under which it is chosen.
    """

    separator: str = "\n"
    before: str = ""
    after: str = " "
    name: str = "math-shepherd"

    def signs(self, path: str, tokenizer: Any) -> tuple[int, int]:
        ids = tokenizer("+ -", add_special_tokens=False)["input_ids"]
        if len(ids) != 2:
            raise ValueError(f"{path}: its tokenizer splits '+ -' into {len(ids)} tokens, not 2; it is not Mistral's")
        return ids[0], ids[1]

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        tokenizer = loaded.tokenizer
        start = f"{self.before}{defused(tokenizer, question)}{self.after}"
        parts: list[str] = []
        gap = ""
        for step in defused(tokenizer, completion.text).split(self.separator):
            if step.strip(" \t"):
                untagged = step.rstrip(" \t").removesuffix(TAG).rstrip(" \t")
                parts.append(f"{gap if parts else start}{untagged}".rstrip(" ") + " ")
                gap = ""
            gap += self.separator
        parts = parts or [start.rstrip(" ") + " "]
        tag = tokenizer(TAG, add_special_tokens=False)["input_ids"][-1]
        return joined(tokenizer, [*parts, ""], TAG, tag, begin=True)


class Skywork(RewardProtocol):
    """Skywork-o1-Open-PRM on Qwen 2.5: each line is judged at its newline by a linear value head, ``v_head.summary``.

    Question and newline, then line after line, each tokenised apart and followed by the newline's token, empty ones
    included (``skywork-o1-prm-inference``, ``model_utils/io_utils.py``).
    """

    name = "skywork"

    def load(self, path: str, *, tokenizer: Any, dtype: Any, device: str) -> Loaded:
        model = read_backbone(path, dtype=dtype, beside=("v_head.", "lm_head.")).to(device).eval()
        width = model.config.hidden_size
        weight, bias = read_tensors(path, {"v_head.summary.weight": (1, width), "v_head.summary.bias": (1,)})
        return Loaded(model, tokenizer, linear_head(weight.to(device), bias.to(device)))

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        tokenizer = loaded.tokenizer
        if tokenizer.bos_token is None:
            raise ValueError("the tokenizer has no token for the beginning of a text; it is not that of Skywork's PRM")

        def tokens(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        ids = tokens(f"{tokenizer.bos_token}{defused(tokenizer, question)}\n")
        prompt, newline, ends = len(ids), tokens("\n")[-1], []
        for step in completion.text.split("\n"):
            ids += [*tokens(defused(tokenizer, step)), newline] if step else [newline]
            ends.append(len(ids) - 1)
        return StepText(ids, prompt, ends)


class QwenPRM(RewardProtocol):
    r"""Qwen2.5-Math-PRM: each step is followed by ``<extra_0>``, where a head of two classes judges it.

    A conversation of system prompt, question and solution, whose steps are what blank lines separate (model card). The
    head is ``score``: one hidden layer with ReLU. Log-odds are the second output minus the first.
    """

    name = "qwen-prm"
    outputs = 2

    def load(self, path: str, *, tokenizer: Any, dtype: Any, device: str) -> Loaded:
        model = read_backbone(path, dtype=dtype, beside=("score.", "lm_head.")).to(device).eval()
        width, outputs = model.config.hidden_size, self.outputs
        shapes = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (outputs, width), "2.bias": (outputs,)}
        tensors = read_tensors(path, {f"score.{name}": shape for name, shape in shapes.items()})
        tensors = [tensor.to(device) for tensor in tensors]
        return Loaded(model, tokenizer, hidden_layer_head(tensors[:2], tensors[2:]))

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        tokenizer, marker = loaded.tokenizer, "<extra_0>"
        steps = [defused(tokenizer, step) for step in completion.text.split("\n\n")]
        asked = [("system", PROMPTS["boxed"]), ("user", defused(tokenizer, question)), ("assistant", [*steps, ""])]
        return joined(tokenizer, render(tokenizer, asked), marker, tokenizer.convert_tokens_to_ids(marker))


class QwenRM(QwenPRM):
    """Qwen2.5-Math-RM, an outcome model: the same conversation, judged at its last token by a head of one output.

    The output is unbounded and was trained on pairs of solutions (Bradley and Terry), so that differences are log-odds
    of one solution against another. It is taken as log-odds of being right, up to a constant of the problem. What is
    longer than the context is judged at the last token within.
    """

    name = "qwen-rm"
    outputs = 1

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        turns = [("system", PROMPTS["boxed"]), ("user", question), ("assistant", completion.text)]
        return conversation(loaded.tokenizer, turns)

    def cut(self, loaded: Loaded, text: StepText, longest: int) -> StepText:
        return text.cut_and_judged_at_end(longest)


class Classifier(RewardProtocol):
    """Any sequence classifier of transformers with one label, such as Skywork-Reward: an outcome model.

    A conversation of question and solution, judged at the last token that is not for padding, as transformers does it.
    Its unbounded reward is taken as log-odds, and what is longer than the context is cut, see :class:`QwenRM`.
    """

    name = "classifier"

    def load(self, path: str, *, tokenizer: Any, dtype: Any, device: str) -> Loaded:
        from transformers import AutoModelForSequenceClassification

        with told_in_one_line(path):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
        lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        score: Any = getattr(model, "score", None)  # so it is called in every decoder of transformers
        if lacking or getattr(score, "out_features", 0) != 1:
            why = f"weights missing: {len(lacking)}, first {min(lacking)}" if lacking else "no unit with one output"
            raise ValueError(f"{path}: it is no {type(model).__name__} with one label ({why})")
        bias = None if score.bias is None else score.bias.float().to(device)
        return Loaded(model.to(device).eval(), tokenizer, linear_head(score.weight.float().to(device), bias))

    def encode(self, loaded: Loaded, question: str, completion: Completion) -> StepText:
        return self._at_last(
            loaded, conversation(loaded.tokenizer, [("user", question), ("assistant", completion.text)])
        )

    def cut(self, loaded: Loaded, text: StepText, longest: int) -> StepText:
        kept = text.cut_and_judged_at_end(longest)
        return self._at_last(loaded, kept) if kept.ends else kept

    def _at_last(self, loaded: Loaded, text: StepText) -> StepText:
        """Return the text, judged at the last token that is not for padding."""
        padding = loaded.model.config.pad_token_id
        last = max((t for t, token in enumerate(text.ids) if token != padding), default=0)
        return StepText(text.ids, text.prompt_tokens, [last])


PROTOCOLS: dict[str, RewardProtocol] = {
    protocol.name: protocol
    for protocol in (
        Signs(),
        OwnHead(),
        RLHFlow(),
        RLHFlowMistral(),
        MathShepherd(),
        MathShepherd("\n\n", PROMPTS["search-and-learn"] + "\n", "\n ", "math-shepherd-blocks"),
        Skywork(),
        QwenPRM(),
        QwenRM(),
        Classifier(),
    )
}
"""All protocols by name."""
