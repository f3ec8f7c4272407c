r"""From text to token ids: prompt templates, and where the loss is taken.

A prompt and the response after it are tokenised apart, so that a training document begins with exactly the ids that
:func:`render_prompt` hands to the sampler. The response is followed by the token with which the chat template ends an
assistant's turn, and that token carries a label too, so that a student learns to stop.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_thinkfast.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of a position without a target, as in Hugging Face models."""

PLAIN_TEMPLATE = "Question: {question}\nAnswer:\n"
"""Prompt of a tokenizer that has no chat template."""

PROMPTS: dict[str, str] = {
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "search-and-learn": (
        "Solve the following math problem efficiently and clearly:\n\n"
        "- For simple problems (2 steps or fewer):\nProvide a concise solution with minimal explanation.\n\n"
        "- For complex problems (3 steps or more):\nUse this step-by-step format:\n\n"
        "## Step 1: [Concise description]\n[Brief explanation and calculations]\n\n"
        "## Step 2: [Concise description]\n[Brief explanation and calculations]\n\n...\n\n"
        "Regardless of the approach, always conclude with:\n\n"
        "Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct.\n\n"
        "Where [answer] is just the final number or expression that solves the problem."
    ),
}
"""Published system prompts by name: ``boxed`` (Qwen2.5-Math) and ``search-and-learn`` (its MATH-500 recipes)."""

PROMPT_DATE = "26 Jul 2024"
"""Today, for chat templates that write a date into the system turn: the one that those of Llama 3 fall back on.

The real one would make tomorrow's prompts differ from those that a student was trained on and a run was started with.
"""

_STRFTIME = (
    "%d=26 %-d=26 %e=26 %b=Jul %B=July %m=07 %-m=7 %Y=2024 %y=24 %a=Fri %A=Friday %j=208 %F=2024-07-26 "
    "%H=00 %-H=0 %I=12 %-I=12 %M=00 %S=00 %p=AM %T=00:00:00 %x=07/26/24 %X=00:00:00 %Z=UTC %z=+0000"
)
# transformers lets no function into a template but its own clock, so a macro in front of the template hides that one
_STOPPED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(".replace('{}', '{}')".format(*pair.split("=")) for pair in _STRFTIME.split())
    + " }}{% endmacro %}\n"
)

_PROBE = "PROBE-OF-THE-TURN"


def system_prompt(name_or_text: str | None) -> str | None:
    """Return the system prompt that ``name_or_text`` names in ``PROMPTS``, or the text itself.

    Raises:
        ValueError: One word that names no prompt.

    >>> system_prompt("boxed")[:28]
    'Please reason step by step, '
    """
    if name_or_text is None or name_or_text in PROMPTS:
        return PROMPTS[name_or_text] if name_or_text is not None else None
    if len(name_or_text.split()) < 2:
        raise ValueError(f"unknown system prompt {name_or_text!r}; known: {', '.join(PROMPTS)}, or write the text out")
    return name_or_text


def render_prompt(tokenizer: PreTrainedTokenizerBase, question: str, *, system: str | None = None) -> list[int]:
    """Return the token ids of ``question`` up to where the response begins, with exactly one begin-of-text token.

    Args:
        tokenizer: Its chat template is used if it has one, else ``PLAIN_TEMPLATE``.
        question: The text put to the model.
        system: System prompt as text, or a name in ``PROMPTS``.
    """
    ids = tokenizer(_prompt_text(tokenizer, question, system_prompt(system)), add_special_tokens=False)["input_ids"]
    return _with_begin(tokenizer, ids)


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends a response: the chat template's end of turn, or the end-of-text token.

    Raises:
        ValueError: The tokenizer has neither.
    """
    return _end_token_id(tokenizer, tokenizer.chat_template)


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, system: str | None = None
) -> tuple[list[int], list[int]]:
    """Return ``(input_ids, labels)`` of one training document; see :func:`encode_examples`."""
    return encode_examples(tokenizer, [example], system=system)[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, system: str | None = None
) -> list[tuple[list[int], list[int]]]:
    """Return ``(input_ids, labels)`` of each example, two lists of equal length.

    ``labels[t]`` is the target at position t, predicted from position t-1: the response and its end token are labelled,
    the prompt is -100, and the first token of a document always is. An example without a prompt is plain text.

    An example with ``step_labels`` trains a reward model instead. Its response is given a last newline if it lacks one,
    and for the token t that holds the newline ending a line, ``labels[t + 1]`` is the id of ``+`` (right so far) or
    ``-``; every other label is -100. So the verdict is the prediction made *at* the newline. One with an ``outcome``
    is labelled in the same way at the last newline alone, whatever the number of its lines: what judges the whole
    response is what would judge its last step.

    Raises:
        ValueError: ``step_labels`` do not match the lines of the response, there is an ``outcome`` too, or the
            tokenizer cannot tell steps apart.
    """
    system = system_prompt(system)
    prompts = [_prompt_text(tokenizer, e.prompt, system) if e.prompt else "" for e in examples]
    judged = [e.step_labels is not None or e.outcome is not None for e in examples]
    responses = [
        e.response + "\n" if of_reward and not e.response.endswith("\n") else e.response
        for e, of_reward in zip(examples, judged, strict=True)
    ]
    encode = functools.partial(
        tokenizer, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    prompt_ids, encoded = encode(prompts)["input_ids"], encode(responses)
    end = end_token_id(tokenizer)
    documents = []
    for index, example in enumerate(examples):
        before = _with_begin(tokenizer, prompt_ids[index])
        after = [*encoded["input_ids"][index], end]
        if not judged[index]:
            labels = [IGNORE] * len(before) + after
            labels[0] = IGNORE
        else:
            labels = [IGNORE] * (len(before) + len(after))
            verdicts = _verdicts(responses[index], example)
            tokens = [encoded.char_to_token(index, position) for position in verdicts]
            if len(set(tokens)) < len(tokens):
                raise ValueError(
                    f"example {example.id!r}: the tokenizer joins two line ends in one token; remove blank lines"
                )
            for token, right in zip(tokens, verdicts.values(), strict=True):
                labels[len(before) + token + 1] = sign_ids(tokenizer)[0 if right else 1]
        documents.append((before + after, labels))
    return documents


@functools.lru_cache(maxsize=8)
def sign_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of ``+`` and ``-``, which label what is right and what is wrong.

    Raises:
        ValueError: The tokenizer splits one of them.
    """
    plus, minus = (tokenizer(sign, add_special_tokens=False)["input_ids"] for sign in "+-")
    if len(plus) != 1 or len(minus) != 1:
        raise ValueError(
            "labels of steps and outcomes need a tokenizer with '+' and '-' as single tokens; this one splits them"
        )
    return int(plus[0]), int(minus[0])


def _verdicts(response: str, example: Example) -> dict[int, bool]:
    """Return the truth values of an example by the character positions of the newlines that they belong to."""
    ends = [position for position, character in enumerate(response) if character == "\n"]
    if example.outcome is not None:
        if example.step_labels is not None:
            raise ValueError(
                f"example {example.id!r} has step labels and an outcome; name the column of one of them, not of both"
            )
        return {ends[-1]: example.outcome}
    labels = example.step_labels or ()
    if len(ends) != len(labels):
        raise ValueError(
            f"example {example.id!r}: {len(labels)} step labels for {len(ends)} lines; give one for each line"
        )
    return dict(zip(ends, labels, strict=True))


def _prompt_text(tokenizer: PreTrainedTokenizerBase, question: str, system: str | None) -> str:
    if not tokenizer.chat_template:
        return (f"{system}\n\n" if system else "") + PLAIN_TEMPLATE.format(question=question)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], *, add_generation_prompt: bool
) -> str:
    """Apply the chat template as if today were ``PROMPT_DATE``."""
    return str(
        tokenizer.apply_chat_template(
            messages,
            chat_template=_STOPPED_CLOCK + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=PROMPT_DATE,
        )
    )


def _with_begin(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Put the begin-of-text token in front where the tokenizer wants one and the template has not written it."""
    begin = _begin_ids(tokenizer)
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


@functools.lru_cache(maxsize=8)
def _begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("")["input_ids"][:1] == [begin] else []


@functools.lru_cache(maxsize=8)
def _end_token_id(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> int:
    if chat_template:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        ending = _rendered(tokenizer, messages, add_generation_prompt=False).rpartition(_PROBE)[2]
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        for token in tokenizer(ending, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set its eos_token")
    return int(tokenizer.eos_token_id)
