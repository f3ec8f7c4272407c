import pytest

from lit_thinkfast.verification.extraction import MAX_TEXT, STYLES, boxed, extract_answer
from lit_thinkfast.verification.notation import MAX_ANSWER


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So the answer is $\boxed{42}$.", "42"),
        (r"First \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{ x \mid x > 0 \right\}}", r"\left\{ x \mid x > 0 \right\}"),
        (r"\boxed{ \text{Monday} }", r"\text{Monday}"),
        (r"$\boxed 7$", "7"),
        (r"\fbox{12}", "12"),
        (r"\boxed{\boxed{3}}", "3"),
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### 1,234\n", "1,234"),
        ("2 + 3 = 5\n#### 5 apples", "5 apples"),
        ("Text\n#### Step 4: divide\nThe answer is 9.", "9"),
        ("Text\n#### 4. Divide the rest\nThe answer is 9.", "9"),
        ("The answer is 3.5.", "3.5"),
        ("the final answer is: **18**.", "18"),
        (r"Therefore, the final answer is: $x + 1$. I hope it is correct.", "$x + 1$"),
        ("The answer is $18.", "$18"),
        ("ANSWER: B", "B"),
        ("answer is 3\nWait. The answer is 4 apples\nok", "4 apples"),
        ("**Answer**: 42", "42"),
        ("**Final Answer**\n\n42", "42"),
        ("# Answer\n42", "42"),
        ("## Final answer:\n$x$\nThat is all.", "$x$"),
        ("The answer is 42. I am confident that this answer is correct.", "42"),
        ("The answer is 42.\n\nLet me know if the answer is unclear!", "42"),
        (
            "The answer is 42, for the answer is what all of this was for.",
            "42, for the answer is what all of this was for",
        ),
        (r"The answer is $\sin x$. The answer is correct.", r"$\sin x$"),
        ("The answer is right.", "right"),
        ("The answer is 5. No, the answer is yes.", "yes"),
        (r"The answer is $\$42$.", r"$\$42$"),
        ("The answer is $x=1$ or $x=2$.", "$x=1$ or $x=2$"),
        ("The answers are $x=1$ and $x=2$.", "$x=1$ and $x=2$"),
        ("The answers are $x+1$, $3$, and $4$, as we saw.", "$x+1$, $3$, and $4$"),
        ("The answer is $x+1$, which is $2$ here.", "$x+1$"),
        ("The answer is:\n\n- 42", "42"),
        ("The answer is:\n-42", "-42"),
        ("The answer is -42.", "-42"),
        ("The answer is 12, since 3*4 = 12.", "12"),
        ("The answer is 12 because 3*4 = 12.", "12"),
        ("The answer is $5$, not $6$.", "$5$"),
        ("The correct answer is (B) 12.", "(B)"),
        ("The correct answer is **(B)** 12.", "(B)"),
        ("The answer is B) 12", "B"),
        ("The answer is (A) and (C).", "(A) and (C)"),
        ("The answer isn't 5.", None),
        ("", None),
        ("   \n", None),
        ("There is none.", None),
        (r"\boxed{}", None),
        (r"\boxed{12", None),
        (r"So \boxed{4}. Again \boxed{12", None),
        (r"\boxed{$}", None),
        ("\\boxed{" + "9" * (MAX_ANSWER + 1) + "}", None),
        ("\\boxed{\u202e42\u202c\x00}", "42"),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_the_last_number_is_taken_only_when_asked_for():
    assert extract_answer("He has 3 and then 1,205 pens.") is None
    assert extract_answer("He has 3 and then 1,205 pens.", last_number=True) == "1,205"
    assert extract_answer("from -3 to 5/6.", last_number=True) == "5/6"
    assert extract_answer("no number", last_number=True) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 2 Apply the formula\nwork\nThe answer is 9.", "9"),
        ("#### 3 Ways to count\nfinal answer is 12.", "12"),
        ("#### 12 apples", "12 apples"),
        ("#### 12 apples\nDone.", "12 apples"),
        ("The answer is 5.\n#### 5", "5"),
        ("#### 2 Calculate the total\n5+13 = 18\n\\boxed{18}", "18"),
        ("#### 2 Calculate the total\n5+13 = 18\nSo she pays \\$18.", "$18"),
        ("#### 2 calculate the total\n\\boxed{18}", "18"),
        ("#### 17\n\\boxed{18}", "18"),
        ("\\boxed{17}\n#### 18", "18"),
        ("#### 12 apples\n\nQ: Tom has 5 pears.", "12 apples"),
    ],
)
def test_a_heading_is_no_answer(text, answer):
    assert extract_answer(text, extraction="gsm8k") == answer


def test_each_set_has_its_way():
    both = "So \\boxed{4}.\n#### 5\nThe answer is 6. There are 7"
    assert extract_answer(both) == extract_answer(both, extraction="math500") == "4"
    assert extract_answer(both, extraction="gsm8k") == "5"
    assert extract_answer("He has 3 and then 1,205 pens.", extraction="gsm8k") == "1,205"
    assert extract_answer("He has 3 and then 1,205 pens.", extraction="math500") is None
    assert extract_answer("The answer is 6.\n#### 5", extraction="math500") == "6"
    with pytest.raises(ValueError, match="'gsm9k' is not one of default, arithmetic, gsm8k, math500"):
        extract_answer("1", extraction="gsm9k")


def test_a_style_of_ones_own(monkeypatch):
    def shouted(text, cut):
        return text.partition("!!")[2] or None

    monkeypatch.setitem(STYLES, "mine", (shouted, boxed))
    assert extract_answer("so !!12", extraction="mine") == "12"
    assert extract_answer(r"so \boxed{3}", extraction="mine") == "3"


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("The answer is 1", "1", None),  # the 28 that should follow was cut off
        ("The answer is 12.", "12", None),  # .5 may have been cut off
        ("The answer is 12. I", "12", "12"),
        ("The answer is 12\nand", "12", "12"),
        ("The answer is $x+12$", "$x+12$", "$x+12$"),
        ("The answer is $x=1$ or $x=", "$x=1$", None),
        ("The answer is 12. I am sure this answer is correct, a", "12", "12"),
        ("#### 12", "12", None),
        ("#### 12\n", "12", "12"),
        (r"\boxed{12}", "12", "12"),
        (r"\boxed{12", None, None),
        ("We had 30, and 12", "12", None),
    ],
)
def test_what_the_token_budget_may_have_shortened_is_no_answer(text, whole, cut):
    assert extract_answer(text, extraction="gsm8k") == whole
    assert extract_answer(text, extraction="gsm8k", cut=True) == cut
    assert extract_answer(text, last_number=True, cut=True) == cut


def test_only_the_end_of_a_text_is_searched():
    assert extract_answer(r"\boxed{1}" + " " * MAX_TEXT) is None
    assert extract_answer(r"\boxed{1}" + " " * (MAX_TEXT - len(r"\boxed{1}"))) == "1"
