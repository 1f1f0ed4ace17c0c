"""Proves the built-in task: its arithmetic by hand, a verifier that does not err, a teacher that errs as often as it is
told to, and held-out problems that training never meets.

Run: pytest tests/tasks/test_addition.py
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinghai.config.settings import AdditionTaskSettings
from dinghai.errors import InputError
from dinghai.tasks.addition import AdditionTask, column_addition


def make(seed: int = 0, **settings: float) -> AdditionTask:
    return AdditionTask(AdditionTaskSettings(**settings), seed)


@pytest.mark.parametrize(
    ("a", "b", "digits", "forgets", "written"),
    [
        (476, 385, 3, False, "11,16,08=861"),
        (476, 385, 3, True, "11,15,07=751"),
        (999, 1, 3, False, "10,10,10=1000"),
        (999, 999, 3, False, "18,19,19=1998"),
        (100, 200, 3, True, "00,00,03=300"),
        (3, 4, 1, False, "07=7"),
        (7, 8, 1, True, "15=15"),  # the last carry is part of the answer and never forgotten
        (0, 0, 1, False, "00=0"),
    ],
)
def test_written_out_by_hand(a: int, b: int, digits: int, forgets: bool, written: str) -> None:
    assert column_addition(a, b, digits, lambda: forgets) == written


@given(digits=st.integers(1, 9), data=st.data())
def test_who_never_forgets_is_right(digits: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, 10**digits - 1)) for _ in range(2))
    columns, answer = column_addition(a, b, digits, lambda: False).split("=")
    assert int(answer) == a + b
    assert str(int(answer)) == answer, "written as people write numbers"
    assert len(columns.split(",")) == digits


def test_prompts_and_answers() -> None:
    task = make()
    for index in range(200):
        prompt = task.train_prompt(index)
        a, b = map(int, prompt.text.removesuffix("=").split("+"))
        assert 100 <= a <= 999
        assert 100 <= b <= 999
        assert prompt.answer == str(a + b)
        assert prompt.id == f"{a}+{b}"
        assert task.score(prompt, column_addition(a, b, 3, lambda: False)) == 1.0


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("11,16,08=861", 1.0),
        ("=861", 1.0),
        ("anything at all = 861 \n", 1.0),
        ("=751=861", 1.0),
        ("=861=751", 0.0),
        ("861", 0.0),
        ("=8610", 0.0),
        ("=0861", 0.0),
        ("=861.", 0.0),
        ("=861 or so", 0.0),
        ("=-861", 0.0),
        ("=８６１", 0.0),  # full-width digits are not what the task asks for
        ("=", 0.0),
        ("", 0.0),
        ("=" * 10_000, 0.0),
        ("=" + "1" * 10_000, 0.0),
        ("x" * 10_000 + "=861", 1.0),
    ],
)
def test_the_verifier_reads_the_number_after_the_last_sign(completion: str, score: float) -> None:
    task = make()
    prompt = task._prompt(476, 385)
    assert task.score(prompt, completion) == score
    assert task.score_batch([prompt, prompt], [completion, "=861"]) == [score, 1.0]


@pytest.mark.parametrize(("forget_carry", "low", "high"), [(0.0, 1.0, 1.0), (1.0, 0.25, 0.37), (0.7, 0.4, 0.55)])
def test_the_teacher_errs_as_often_as_it_is_told(forget_carry: float, low: float, high: float) -> None:
    """With three digits a carry falls on one of the two columns that may drop it in about seven problems of ten."""
    task = make(forget_carry=forget_carry)
    examples = [task.demonstration(i) for i in range(1000)]
    scores = [task.score(*example) for example in examples if example is not None]
    assert len(scores) == 1000
    assert low <= sum(scores) / 1000 <= high


def test_everything_is_a_function_of_seed_and_index() -> None:
    one, same, other = make(1), make(1), make(2)
    order = list(range(50))
    random.Random(0).shuffle(order)
    again = {i: (same.train_prompt(i), same.demonstration(i)) for i in order}
    assert [(one.train_prompt(i), one.demonstration(i)) for i in range(50)] == [again[i] for i in range(50)]
    assert [other.train_prompt(i) for i in range(50)] != [one.train_prompt(i) for i in range(50)]


@pytest.mark.parametrize("digits", [1, 2, 3, 9])
def test_held_out_problems_are_never_trained_on(digits: int) -> None:
    task = make(digits=digits, held_out=3 if digits == 1 else 128)
    held_out = {prompt.id for prompt in task.held_out}
    assert len(held_out) == len(task.held_out)
    seen = {task.train_prompt(i).id for i in range(2000)}
    seen |= {example[0].id for i in range(500) if (example := task.demonstration(i)) is not None}
    assert not held_out & seen


def test_held_out_problems_are_the_same_for_every_seed() -> None:
    assert list(make(1).held_out) == list(make(2).held_out)


def test_too_many_held_out_problems_are_refused() -> None:
    with pytest.raises(InputError, match=r"task.held_out is 256, but with task.digits = 1 .* lower task.held_out"):
        make(digits=1)
