import copy
import datetime

import pytest

from lit_thinkfast.data.prompts import (
    PROMPT_DATE,
    PROMPTS,
    encode_example,
    encode_examples,
    end_token_id,
    render_prompt,
    system_prompt,
)
from lit_thinkfast.records import Example

CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + ':' + m['content'] | trim + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_training_document_starts_with_the_prompt_of_the_sampler(tokenizer):
    example = Example("a", "How many?", "Two.\nAnd two.\n\\boxed{4}")
    ids, labels = encode_example(tokenizer, example)
    prompt = render_prompt(tokenizer, example.prompt)
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids) == f"<|user|>How many?<|end|><|assistant|>{example.response}<|end|>"
    assert labels == [-100] * len(prompt) + ids[len(prompt) :]
    assert ids[-1] == end_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>")


def test_a_batch_encodes_as_its_examples_do(tokenizer):
    examples = [
        Example(str(i), "q" * i, f"line {i}\nx", step_labels=(True, False) if i % 2 else None) for i in range(6)
    ]
    assert encode_examples(tokenizer, examples) == [encode_example(tokenizer, e) for e in examples]


@pytest.mark.parametrize("last_newline", ["", "\n"])
def test_step_labels_sit_after_the_newline_of_each_line(tokenizer, last_newline):
    example = Example("a", "Q", "1+1=2\n2+2=5\n=5" + last_newline, step_labels=(True, False, False))
    ids, labels = encode_example(tokenizer, example)
    newline, plus, minus = (tokenizer.convert_tokens_to_ids(t) for t in ("Ċ", "+", "-"))
    predicted_at = {t - 1: label for t, label in enumerate(labels) if label != -100}
    assert [ids[t] for t in predicted_at] == [newline] * 3
    assert list(predicted_at.values()) == [plus, minus, minus]
    assert list(predicted_at) == [t for t, token in enumerate(ids) if token == newline]
    assert tokenizer.decode(ids).endswith("=5\n<|end|>")


def test_step_labels_must_match_the_lines(tokenizer):
    with pytest.raises(ValueError, match=r"example 'a': 1 step labels for 2 lines; give one for each line"):
        encode_example(tokenizer, Example("a", "Q", "x\ny", step_labels=(True,)))


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("response", ["one line", "1+1=2\n2+2=5\n=5", "blank\n\nlines\n", "\n\n"])
def test_an_outcome_is_labelled_where_the_last_step_would_be(tokenizer, response, right):
    whole = response if response.endswith("\n") else response + "\n"
    steps = encode_example(tokenizer, Example("a", "Q", response, step_labels=(right,) * whole.count("\n")))
    last = max(t for t, label in enumerate(steps[1]) if label != -100)
    expected = [-100] * len(steps[0])
    expected[last] = steps[1][last]
    assert encode_example(tokenizer, Example("a", "Q", response, outcome=right)) == (steps[0], expected)
    assert tokenizer.decode(steps[0]).endswith(whole + "<|end|>")


def test_steps_and_outcome_together_are_refused(tokenizer):
    with pytest.raises(ValueError, match="example 'a' has step labels and an outcome; name the column of one of them"):
        encode_example(tokenizer, Example("a", "Q", "x", step_labels=(True,), outcome=True))


def test_without_a_template_there_is_one_begin_token(plain_tokenizer):
    ids, labels = encode_example(plain_tokenizer, Example("a", "1+1?", "2"))
    assert plain_tokenizer.decode(ids) == "<s>Question: 1+1?\nAnswer:\n2</s>"
    assert ids.count(plain_tokenizer.bos_token_id) == 1
    assert labels[-2:] == ids[-2:]
    assert set(labels[:-2]) == {-100}


def test_plain_text_is_labelled_throughout_but_for_its_first_token(tokenizer, plain_tokenizer):
    for tok in (tokenizer, plain_tokenizer):
        ids, labels = encode_example(tok, Example("a", "", "some text"))
        assert labels == [-100, *ids[1:]]
        assert ids[-1] == tok.eos_token_id


def test_text_after_the_end_token_of_a_template_is_not_learnt(plain_tokenizer, tokenizer):
    tok = copy.deepcopy(tokenizer)
    tok.chat_template = CHATML
    ids, _ = encode_example(tok, Example("a", "Q", " spaced "), system="Be brief.")
    assert tok.decode(ids) == "<|user|>system:Be brief.<|end|>\n<|user|>user:Q<|end|>\n<|assistant|> spaced <|end|>"
    tok.chat_template = "{{ bos_token }}" + CHATML.replace("<|end|>", "")  # ends a turn with no special token
    assert end_token_id(tok) == tok.eos_token_id


def test_a_begin_token_written_by_the_template_is_not_doubled(plain_tokenizer):
    tok = copy.deepcopy(plain_tokenizer)
    tok.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert tok.decode(render_prompt(tok, "Q", system="boxed")) == f"<s>{PROMPTS['boxed']}Q"


LLAMA_DATE = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{ 'Today Date: ' + date_string + '\\n' }}"
)
DATES = {
    LLAMA_DATE: f"Today Date: {PROMPT_DATE}\n",
    "Today is {{ strftime_now(format='%A, %B %d, %Y') }}, {{ strftime_now('%Y') | int + 1 }}: ": (
        "Today is Friday, July 26, 2024, 2025: "
    ),
    "{% macro head() %}Current date: {{ strftime_now('%Y-%m-%d %H:%M') }} {% endmacro %}{{ head() }}": (
        "Current date: 2024-07-26 00:00 "
    ),
}


@pytest.mark.parametrize("template", DATES)
def test_prompts_do_not_know_the_day(tokenizer, template, monkeypatch):
    def clock(*now):
        return type("Clock", (), {"now": staticmethod(lambda: datetime.datetime(*now))})

    seen = []
    for year in (2024, 2031):
        tok = copy.deepcopy(tokenizer)
        tok.chat_template = template + CHATML
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock(year, 12, 31))
        seen.append((render_prompt(tok, "Q"), encode_example(tok, Example("a", "Q", "A")), end_token_id(tok)))
    assert seen[0] == seen[1]
    assert (
        tok.decode(seen[0][0]).removeprefix(tok.bos_token or "")
        == DATES[template] + "<|user|>user:Q<|end|>\n<|assistant|>"
    )


@pytest.mark.parametrize(
    "start", ["", "\n", "  ", "\n\n  {% if true %}\n  {% endif %}\n x", "{#- -#}  ", "  {%- if true %} y {% endif %}"]
)
def test_a_template_without_a_date_renders_as_in_transformers(tokenizer, start):
    tok = copy.deepcopy(tokenizer)
    tok.chat_template = start + CHATML
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    expected = tok.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert render_prompt(tok, "Q", system="Be brief.") == expected


def test_system_prompts_by_name_or_text():
    assert system_prompt(None) is None
    assert system_prompt("search-and-learn").startswith("Solve the following math problem")
    assert system_prompt("Think hard.") == "Think hard."
    with pytest.raises(ValueError, match="unknown system prompt 'boxd'; known: boxed, search-and-learn"):
        system_prompt("boxd")
