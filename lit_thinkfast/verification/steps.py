"""The text side of reward models: solutions as tokens, where steps end, and which texts are run together."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_thinkfast.records import Completion

RIDGE = 256
"""Tokens below which a forward pass costs what this many do: it waits for the weights, not for the arithmetic."""
WORTH = 0.15
"""Share of its tokens that a batch must save for a prefix to be read apart."""

_MARK = "\ue000"  # of a private use area: no text has it, and if one does, several of it are taken


@dataclass(frozen=True, slots=True)
class StepText:
    """Tokens of a prompt and a solution.

    Attributes:
        ids: Of both.
        prompt_tokens: How many of them are the prompt's, where it matters.
        ends: Position in ``ids`` at which each step is judged, increasing.
    """

    ids: list[int]
    prompt_tokens: int
    ends: list[int]

    def cut(self, longest: int) -> StepText:
        """Return the first ``longest`` tokens and the steps that are judged among them."""
        return StepText(self.ids[:longest], self.prompt_tokens, [end for end in self.ends if end < longest])

    def cut_and_judged_at_end(self, longest: int) -> StepText:
        """Return the first ``longest`` tokens, judged at the last of them if it is one of the solution's."""
        ids = self.ids[:longest]
        return StepText(ids, self.prompt_tokens, [len(ids) - 1] if len(ids) > self.prompt_tokens else [])


def tokenizer_values(tokenizer: Any) -> dict[str, Any]:
    """Return what a fast tokenizer does to a text, as plain values, but for its chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
        backend.pop(state, None)
    return {"backend": backend, "special_tokens": tokenizer.special_tokens_map}


@functools.lru_cache(maxsize=4096)
def prompt_ids(tokenizer: Any, question: str) -> tuple[int, ...]:
    """Return the tokens of a problem's prompt, rendered as for sampling."""
    from lit_thinkfast.data.prompts import render_prompt

    return tuple(render_prompt(tokenizer, question))


def solution_lines(tokenizer: Any, question: str, completion: Completion) -> StepText:
    """Return prompt and solution as our own reward models were trained on them, each line judged at its newline.

    The completion is given a last newline if it lacks one (:func:`lit_thinkfast.data.prompts.encode_example`).
    """
    prompt = prompt_ids(tokenizer, question)
    text = completion.text if completion.text.endswith("\n") or not completion.text else completion.text + "\n"
    ids, ends = line_ends(tokenizer, text)
    return StepText([*prompt, *ids], len(prompt), [len(prompt) + end for end in ends])


def line_ends(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a text and the positions of those that hold a newline."""
    encoded = tokenizer(text, add_special_tokens=False)
    tokens = (encoded.char_to_token(position) for position, character in enumerate(text) if character == "\n")
    return list(encoded["input_ids"]), sorted({token for token in tokens if token is not None})


def conversation(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> StepText:
    """Return the tokens of a conversation whose last turn is the solution, judged at its last token.

    Raises:
        ValueError: As :func:`render`.
    """
    turns = [(role, defused(tokenizer, content)) for role, content in messages]
    (text,) = render(tokenizer, turns)
    encoded = tokenizer(text, add_special_tokens=False)
    ids = list(encoded["input_ids"])
    start = text.rfind(turns[-1][1].strip())  # a template may strip it; one that changes it leaves the start unknown
    prompt = encoded.char_to_token(start) if 0 <= start < len(text) else None
    return StepText(ids, prompt or 0, [len(ids) - 1])


def joined(
    tokenizer: Any, parts: Sequence[str], marker: str, marker_id: int, *, at: int = 0, begin: bool = False
) -> StepText:
    """Return the tokens of texts with ``marker`` between them; each marker is where a step is judged.

    Markers are found by where they were put, so that the same characters in a text are not taken for one.

    Args:
        tokenizer: A fast one.
        parts: One more than there are steps.
        marker: What stands between them.
        marker_id: The token that it must become, whole or as its last one.
        at: Added to a marker's position: -1 is the token that predicts it.
        begin: Let the tokenizer add its special tokens.

    Raises:
        ValueError: The tokenizer joins a marker with what is around it.
    """
    text = marker.join(parts)
    encoded = tokenizer(text, add_special_tokens=begin)
    ids, ends, position = list(encoded["input_ids"]), [], 0
    for part in parts[:-1]:
        position += len(part) + len(marker)
        token = encoded.char_to_token(position - 1)
        if token is None or ids[token] != marker_id:
            raise ValueError(
                f"the tokenizer joins the step marker {marker!r} with the text around it; it is not that of this "
                "reward model"
            )
        ends.append(token + at)
    return StepText(ids, 0, ends)


def render(tokenizer: Any, messages: Sequence[tuple[str, str | Sequence[str]]]) -> list[str]:
    """Return a conversation as its chat template writes it, cut between the pieces of those contents that have some.

    Args:
        tokenizer: With a chat template.
        messages: Role and content of each turn, a content being a text or the pieces of one.

    Raises:
        ValueError: There is no chat template, or it does not write the contents as they are.
    """
    from lit_thinkfast.data.prompts import PROMPT_DATE

    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, and this reward model is asked by one; save the tokenizer that was "
            "published with it"
        )
    pieces = [(role, [content] if isinstance(content, str) else content) for role, content in messages]
    mark = _MARK
    while any(mark in piece for _, content in pieces for piece in content):
        mark += _MARK
    turns = [{"role": role, "content": mark.join(content)} for role, content in pieces]
    text = tokenizer.apply_chat_template(turns, tokenize=False, date_string=PROMPT_DATE)
    parts: list[str] = text.split(mark)
    if len(parts) != 1 + sum(len(content) - 1 for _, content in pieces):
        raise ValueError("the tokenizer's chat template leaves turns out; it is not that of this reward model")
    return parts


def defused(tokenizer: Any, text: str) -> str:
    """Return a text in which nothing is read as a special token: a space is put into what is spelled like one.

    A model may write anything; ``<|eot_id|>`` in its text must not end a turn, nor ``<extra_0>`` a step.
    """
    pattern = _specials(tokenizer)
    return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if pattern is not None else text


@functools.lru_cache(maxsize=8)
def _specials(tokenizer: Any) -> re.Pattern[str] | None:
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def batches(texts: Sequence[StepText], owners: Sequence[str], batch_size: int) -> list[list[int]]:
    """Return which texts to run together: of like length, and of one problem where they share enough of their start.

    Args:
        texts: What is to be run.
        owners: The problem of each.
        batch_size: Texts a batch, at most.
    """
    groups: dict[str, list[int]] = {}
    for i, owner in enumerate(owners):
        groups.setdefault(owner, []).append(i)
    apart: list[list[int]] = []
    together: list[list[int]] = []
    for rows in groups.values():
        (apart if shared_prefix([texts[i] for i in rows[:batch_size]]) else together).append(rows)
    pools = [*apart, [i for rows in together for i in rows]]
    made = []
    for pool in pools:
        pool.sort(key=lambda i: len(texts[i].ids))
        made += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
    return made


def shared_prefix(texts: Sequence[StepText]) -> int:
    """Return how many first tokens of a batch are the same and worth reading once, 0 if none are."""
    first, last = min(text.ids for text in texts), max(text.ids for text in texts)
    length = next((t for t, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    width = max(len(text.ids) for text in texts)
    length = min(length, width - 1)  # a pass needs a token
    whole, rest = len(texts) * width, len(texts) * (width - length)
    cost = max(length, RIDGE) + max(rest, RIDGE)
    return length if length > 0 and cost <= (1 - WORTH) * max(whole, RIDGE) else 0
