import random
import time

import pytest

from lit_thinkfast.verification import canonical, equivalent, extract_answer
from lit_thinkfast.verification.answers import MAX_ANSWER, decide, number, too_hard


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


SAME = [
    (
        "1000",
        "1,000",
        "$1000$",
        r"\$1,000",
        "1000.00",
        "1{,}000",
        r"1,\!000",
        "1000.",
        "x = 1000",
        r"\(1000\)",
        "+1000",
    ),
    (
        "1/2",
        "0.5",
        r"\frac{1}{2}",
        r"\dfrac12",
        r"\tfrac{1}2",
        r"\frac1{2}",
        "0.50",
        ".5",
        "5e-1",
        r"\frac{0.5}{1}",
        "2/4",
    ),
    ("-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", "\u22120.75", "-.75", r"$-\frac{3}{4}$."),
    ("13/4", r"3\frac{1}{4}", "3 1/4", "3.25"),
    ("300000", r"3 \times 10^5", "3e5", r"3\times10^{5}"),
    (
        "12",
        "12 cm",
        r"12\text{ cm}",
        r"12 \text{ square units}",
        r"12\,\mathrm{cm}^2",
        "12 cm^2",
        r"12^\circ",
        "12 dollars",
    ),
    ("50", r"50\%", "50%", "50 percent"),
    (r"\{1,2\}", r"\{1,1,2\}", r"\{2, 1, 1\}", r"\{2,1\}"),
    (r"(1,1/2)", "(1, 0.5)", r"\left( 1, \frac{1}{2} \right)", r"$(1.0 , \dfrac{1}{2})$"),
    (r"\{1,2\}", r"\{ 2, 1 \}", r"\left\{1.0,2\right\}"),
    ("1,2", "2, 1"),
    ("evelyn", r"\text{Evelyn}", "Evelyn", "**Evelyn**", "evelyn."),
    ("B", "(B)", r"\text{B}", r"\text{(B)}", r"\textbf{(B)}"),
    (r"x^2+\sqrt{2}", r"x^{2} + \sqrt2", r"$ x^2 + \sqrt{2} $"),
    (r"\frac{\pi}{2}", r"\dfrac{\pi}{2}", r"\frac{ \pi }{ 2 }"),
    ("7", "\uff17"),
]


@pytest.mark.parametrize("same", SAME, ids=lambda same: same[0])
def test_equal_answers_share_a_canonical_form_and_are_equal(same):
    for answer in same:
        assert canonical(answer) == same[0], answer
        assert canonical(canonical(answer)) == same[0]
        for other in same:
            assert decide(answer, other) is True


DIFFERENT = ["1", "2", "-1", "1/2", "50", "(1,2)", "(2,1)", "(1,2,3)", "[1,2]", "yes", "no", "10000", "1000"]


def test_different_answers_differ_without_computer_algebra(monkeypatch):
    def refuse():
        raise AssertionError("no process is needed for these")

    monkeypatch.setattr("lit_thinkfast.verification.workers.shared_pool", refuse)
    for answer in DIFFERENT[:8] + DIFFERENT[9:]:
        for other in DIFFERENT[:8] + DIFFERENT[9:]:
            if "(" not in answer + other or ("(" in answer and "(" in other):
                assert equivalent(answer, other) is (answer == other)
    assert len({canonical(answer) for answer in DIFFERENT}) == len(DIFFERENT)


PLAIN = ["5", "-5", "1,205", "3.5", "3/4", r"\frac{3}{4}", "3 1/4", "50%"]
UNITS = [
    "apples",
    "apples.",
    "men",
    "kids' low-price tickets",
    "miles per hour",
    "apples and pears left over",
    "of the cake",
    "times",
]


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize(
    "form", ["{} {}", "${}$ {}", "**{}** {}", r"\({}\) {}", r"{}\ \text{{{}}}", r"{} \mathrm{{{}}}"]
)
def test_a_number_votes_the_same_with_and_without_its_unit(form, plain):
    for unit in UNITS:
        answer = form.format(plain, unit)
        assert number(answer) == number(plain), answer
        assert decide(answer, plain) is decide(plain, answer) is True
        assert canonical(answer) == canonical(plain)
        assert canonical(extract_answer(f"The answer is {answer}.")) == canonical(plain)
        assert canonical(extract_answer(f"#### {answer}")) == canonical(plain)


@pytest.mark.parametrize(
    "answer",
    [
        *("5x", "5 x", "5 xy", "5 abc", "5 AB", "5i", "5 i", r"5 \pi", "5 pi", r"5 \sqrt{2}", "5 sqrt", r"5 \sin x"),
        *("5 sin", "5 mod 7", "5 mod seven", "5 squared", "5 million", "5 hundred dollars", "5 dozen eggs", "5 halves"),
        *("5 and a half", "5 hours and 30 minutes", "5 or more", "5 one-half cups", "5 am", "5 pm today"),
        *("5 base seven", "5. Add the rest"),
    ],
)
def test_words_that_may_change_a_number_stay(answer):
    assert number(answer) is None
    assert canonical(answer) == "".join(answer.split())
    assert decide(answer, "5") is None


def test_percentages():
    assert equivalent(r"50\%", "0.5")
    assert equivalent("0.5", "50%")
    assert equivalent("50", "50%")
    assert equivalent("50 per cent", "0.5")
    assert equivalent("50% of the boxes", "0.5")
    assert not equivalent("0.5", "50")
    assert not equivalent("5%", "50%")


def test_numbers_that_are_none():
    for text in (
        "",
        "x",
        "1/0",
        r"\frac{1}{0}",
        "1..2",
        "1,23",
        "--1",
        "9" * 65,
        "1e999",
        "\u0663",
        "10\u00b2",
        "nan",
        "inf",
        "1_000",
    ):
        assert number(text) is None, text
    assert not equivalent("", "")
    assert not equivalent("", "5")
    assert not equivalent("5" * 600, "5" * 600)


HOSTILE = [
    "9^{9^{9^{9}}}",
    "9**9**9**9",
    "9^9^9",
    "((((((10!)!)!)!)!)!)!!",
    "123456!",
    "2^{99999999}",
    r"\frac{" * 10_000 + "1" + "}{2}" * 10_000,
    r"\frac{" * 40 + "1" + "}{2}" * 40,
    "1" * 100_000,
    "(" * 100_000,
    "{" * 400 + "}" * 400,
    "__import__('os').system('touch canary')",
    "eval('1')",
    "\x00\x01\x02",
    "\u202e\u2066" * 100,
    "1," * 200,
    "," * 500,
    "$" * 500,
    "\\" * 500,
    "\\left" * 100,
    "\\frac" * 100,
    " " * 500,
    "1" + " " * 400 + "x",
    "answer" + " " * 60_000,
    "answer is " * 10_000,
    "\\boxed{" * 20_000,
    "\\boxed" * 20_000,
    "#" * 100_000,
    "1" + ",000" * 120,
    "\ud800",
    "a" * 1_000_000,
    "the answer is $" + "1" * 70_000,
    "-" * 500,
    "0." + "0" * 400 + "1",
    "\\text{" * 80 + "}" * 80,
    "^" * 500,
    "5 " + "square " * 60,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_handled_in_no_time(text):
    start = time.process_time()
    for form in (text, f"\\boxed{{{text}}}", f"The answer is {text}.", f"#### {text}"):
        extract_answer(form)
        extract_answer(form, last_number=True)
        canonical(form)
        number(form)
        too_hard(form)
        decide(form, "5")
        decide("5", form)
    assert time.process_time() - start < 0.5


def test_random_text_never_raises():
    rng = random.Random(0)
    pieces = [
        *r"\{}()[]^_$%,.;:+-*/=!<> 0123456789abxyz",
        r"\frac",
        r"\text{",
        r"\left",
        r"\boxed{",
        "####",
        "answer is ",
    ]
    for _ in range(1000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        for answer in (
            text,
            extract_answer(text) or "",
            extract_answer("\\boxed{" + text + "}", last_number=True) or "",
        ):
            assert isinstance(canonical(answer), str)
            assert decide(answer, answer) in (True, False)
            assert decide(answer, "17") in (True, False, None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 2 Apply the formula\nwork\nThe answer is 9.", "9"),
        ("#### 3 Ways to count\nfinal answer is 12.", "12"),
        ("#### 12 apples", "12 apples"),
        ("#### 12 apples\nDone.", "12 apples"),
        ("The answer is 5.\n#### 5", "5"),
    ],
)
def test_a_heading_is_no_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "words", ["in the morning", "below freezing", "less than that", "more than Ada", "minutes before noon", "or so"]
)
def test_words_that_change_a_value_are_no_unit(words):
    assert canonical(f"5 {words}") != canonical("5")


def test_percent_is_read_before_other_words():
    assert canonical("50 percent of the boxes") == canonical("50% of the boxes") == canonical("50\\%")
