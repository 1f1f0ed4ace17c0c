"""Proves that the verdicts given without computer algebra are those that math-verify gives.

Run: pytest tests/tasks/test_answers.py
"""

from __future__ import annotations

import random

import pytest

from dinghai.tasks.answers import final_answer, is_words, quick_verdict, text_verdict
from dinghai.tasks.check_math import as_latex, make_checker

PIECES = [
    *("so", "she has", "####", "=", "the answer is", "Answer:", "final answer is", "final answer, of course, is"),
    *(
        "**",
        "\\boxed{",
        "}",
        "$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "[",
        "]",
        "%",
        "percent",
        "x=",
        "+",
        "-",
        "*",
        "/",
        "1/2",
    ),
    *(
        "3 +",
        "(",
        ")",
        "and",
        "or",
        ",",
        ".",
        ":",
        "\n",
        "I hope it is correct.",
        "\\frac{1}{2}",
        "dollars",
        "^2",
        "\\%",
    ),
    *("costs $5 and $7", "10 20", "5 000", "€", "12:30", "<<3*4=12>>", "Thus,"),
]


def a_number(draw: random.Random) -> str:
    n = draw.choice([draw.randint(-20, 20), draw.randint(0, 2000), draw.randint(-(10**7), 10**8)])
    return draw.choice([str(n), f"{n:,}", f"{n}.{draw.randint(0, 999)}", f"{n}.{'0' * draw.randint(1, 3)}"])


def a_completion(draw: random.Random, answer: str) -> str:
    noise = [draw.choice(PIECES) if draw.random() < 0.8 else a_number(draw) for _ in range(draw.randint(0, 5))]
    stated = draw.choice([f"\\boxed{{{answer}}}", f"#### {answer}", f"so {answer}", f"{answer}.", answer])
    return draw.choice([" ", "\n", ""]).join([*noise, stated, *draw.sample(["", "", "", "%", "x", "}"], 1)])


def test_quick_verdict_is_math_verifys_verdict() -> None:
    draw, check = random.Random(7), make_checker(None)
    decided = 0
    for _ in range(4000):
        gold = draw.choice(["", "", "$"]) + a_number(draw)
        text = a_completion(draw, gold.lstrip("$") if draw.random() < 0.5 else a_number(draw))
        verdict = quick_verdict(gold, text)
        if verdict is not None:
            decided += 1
            assert verdict == bool(check({"gold": gold, "text": text})), (gold, text)
    assert decided > 500  # it is worth having, and the comparison above compared something


@pytest.mark.parametrize(
    ("gold", "text", "verdict"),
    [
        ("18", "18", True),
        ("18", "Janet makes money.\n#### 18", True),
        ("1,234", "so \\boxed{1234}", True),
        ("$18", "\\boxed{18}", True),
        ("18", "\\boxed{17}", False),
        ("2.5", "2.50", True),
        ("2.5", "2.4999999", None),  # rounding is math-verify's to do
        ("18", "The answer is 18", None),  # what stands after that word has rules of its own
        ("18", "\\boxed{18} or \\boxed{17}", None),
        ("18", "\\boxed{18}%", None),
        ("1/2", "0.5", None),
        ("18", "", None),
    ],
)
def test_quick_verdict_cases(gold: str, text: str, verdict: bool | None) -> None:
    assert quick_verdict(gold, text) is verdict


def test_words_are_compared_as_words() -> None:
    # math-verify reads Paris as the product of five symbols, and so does it Sirap.
    assert make_checker(None)({"gold": "Paris", "text": "\\boxed{Sirap}"}) == 1.0
    assert is_words("Paris")
    assert is_words("\\text{New York}")
    assert is_words("B")
    assert not is_words("x^2")
    assert not is_words("18")
    assert not text_verdict("Paris", "\\boxed{Sirap}")
    for text in ("\\boxed{paris}", "\\boxed{\\text{Paris}}", "I think.\nThe answer is Paris.", "#### Paris", "PARIS"):
        assert text_verdict("Paris", text), text
    for text in ("", "London", "Paris\nNo, London", "\\boxed{", "Paris?"):
        assert not text_verdict("Paris", text), text


def test_final_answer_follows_the_last_marker() -> None:
    assert final_answer("9 * 2 = 18\n#### 18\n") == "18"
    assert final_answer("#### 1\n#### 2") == "2"
    assert final_answer(" 42 ") == "42"


def test_bare_mathematics_is_read_whole() -> None:
    assert as_latex("x^2+1") == "\\boxed{x^2+1}"  # else it would be read as the number 1
    assert as_latex("$x^2+1$") == "$x^2+1$"
    check = make_checker(None)
    assert check({"gold": "x^2+1", "text": "so $1+x^2$"}) == 1.0
    assert check({"gold": "x^2+1", "text": "so 1"}) == 0.0
    assert check({"gold": "\\frac{1}{2}", "text": "\\boxed{0.5}"}) == 1.0
