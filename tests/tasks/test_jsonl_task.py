"""Proves that a JSON-lines file becomes prompts by (seed, index) alone, that every fault of the file is named with
its line, and that hostile answers score 0 in bounded time.

Run: pytest tests/tasks/test_jsonl_task.py
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dinghai.config.settings import JsonlTaskSettings
from dinghai.errors import InputError
from dinghai.tasks.jsonl import JsonlTask

RECORDS = [{"question": f"What is {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}", "level": i} for i in range(20)]


def make(path: Path, seed: int = 0, **settings: Any) -> JsonlTask:
    return JsonlTask(JsonlTaskSettings(path=str(path), **{"held_out": 4, **settings}), seed)


@pytest.fixture
def task(write_jsonl: Callable[..., Path]) -> Iterator[JsonlTask]:
    task = make(write_jsonl(RECORDS))
    yield task
    task.close()


def test_prompt_carries_question_instruction_answer_and_the_rest(task: JsonlTask) -> None:
    prompt = task.train_prompt(0)
    number = prompt.extra["level"]
    assert prompt.id == f"data:{number + 1}"
    assert prompt.text == f"What is {number}+1?\nPut the final answer in \\boxed{{}}.\n"
    assert prompt.answer == str(number + 1)


def test_each_pass_is_a_new_permutation_without_held_out_lines(task: JsonlTask) -> None:
    passes = [[task.train_prompt(p * 16 + i).id for i in range(16)] for p in range(3)]
    held_out = {prompt.id for prompt in task.held_out}
    assert len(held_out) == 4
    for order in passes:
        assert set(order) == {f"data:{i + 1}" for i in range(20)} - held_out
    assert passes[0] != passes[1] != passes[2]


def test_prompts_are_a_function_of_seed_and_index(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(RECORDS)
    one, other, third = make(path, 1), make(path, 1), make(path, 2)
    order = [one.train_prompt(i) for i in range(50)]
    assert [other.train_prompt(i) for i in reversed(range(50))] == order[::-1]
    assert one.held_out == other.held_out
    assert [third.train_prompt(i) for i in range(50)] != order
    assert third.held_out != one.held_out
    # Frozen: a run that is resumed on another machine or version must draw the same prompts.
    assert [p.id for p in order[:6]] == FROZEN_ORDER


FROZEN_ORDER = ["data:8", "data:5", "data:15", "data:6", "data:10", "data:9"]


def test_lines_that_repeat_a_held_out_question_are_not_trained_on(write_jsonl: Callable[..., Path]) -> None:
    task = make(write_jsonl(RECORDS * 2))
    held_out = {prompt.text for prompt in task.held_out}
    assert not held_out & {task.train_prompt(i).text for i in range(40)}
    with pytest.raises(InputError, match="no question left"):
        make(write_jsonl([RECORDS[0]] * 9))


def test_demonstrations_follow_the_instruction_and_score_one(write_jsonl: Callable[..., Path]) -> None:
    task = make(write_jsonl(RECORDS))
    prompts, texts = zip(*(task.demonstration(i) for i in range(16)), strict=True)
    number = prompts[0].extra["level"]
    assert texts[0] == f"{number}+1={number + 1}\n\\boxed{{{number + 1}}}"
    assert task.score_batch(list(prompts), list(texts)) == [1.0] * 16
    assert make(write_jsonl(RECORDS), instruction="\n").demonstration(0)[1].endswith("#### " + prompts[0].answer)
    task.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty"),
        (b"\n\n", r"empty"),
        (b'{"question": "a", "answer": "b"}\n{"question": \n', r"line 2 is not JSON: .* column 13"),
        (b"\n[1, 2]\n", r"line 2 is an array, not an object"),
        (b'"text"\n', r"line 1 is text, not an object"),
        (
            b'{"questions": "a", "answer": "b"}',
            r"""line 1 has no key 'question'; is it 'questions'\? .*question_key = "quest""",
        ),
        (
            b'{"question": "a", "target": "b"}',
            r"line 1 has no key 'answer'; it has 'question', 'target'; set task.answer_",
        ),
        (b'{"question": 5, "answer": "b"}', r"line 1: 'question' is a number, not text"),
        (b'{"question": "a", "answer": ["b"]}', r"line 1: 'answer' is an array, not text or a number"),
        (b'{"question": "a", "answer": true}', r"line 1: 'answer' is true or false"),
        (b'{"question": "a", "answer": null}', r"line 1: 'answer' is null"),
        (b'{"question": "a", "answer": "why ####  "}', r"line 1: the answer .* is empty"),
        (b'{"question": "caf\xe9", "answer": "b"}', r"line 1 is not UTF-8 \(byte 18"),
        (b'{"question": "a", "answer": "b"}', r"has 1 lines, but task.held_out \(4\)"),
        (b"[" * 100_000, r"line 1 is not JSON"),
        (b'{"question": "a", "answer": ' + b"7" * 10_000 + b"}", r"line 1 is not JSON"),
        (b" " * 10_000_001, r"line 1 is longer than 10 MB"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        make(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.jsonl"):
        make(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        make(tmp_path)


def test_missing_package_names_the_extra(write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dinghai\[tasks\]'"):
        make(write_jsonl(RECORDS))


def test_mark_blank_lines_and_numbers_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"question": "q" + str(i), "answer": answer}) for i, answer in enumerate([7, -2.5, "x", "1"])]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())
    task = make(path, held_out=1)
    answers = {prompt.answer for prompt in [*task.held_out, *(task.train_prompt(i) for i in range(3))]}
    assert answers == {"7", "-2.5", "x", "1"}


def test_verdicts(write_jsonl: Callable[..., Path]) -> None:
    golds = ["18", "\\frac{1}{2}", "x^2+1", "Paris", "1,234"]
    task = make(write_jsonl([{"question": f"q{i}", "answer": gold} for i, gold in enumerate(golds)]), held_out=1)
    prompts = {p.answer: p for p in [*task.held_out, *(task.train_prompt(i) for i in range(4))]}
    right = {
        "18": "$18.00$",
        "\\frac{1}{2}": "\\boxed{0.5}",
        "x^2+1": "$1+x^2$",
        "Paris": "\\boxed{Paris}",
        "1,234": "1234",
    }
    wrong = dict.fromkeys(golds, "I do not know, perhaps 3.")
    for answers, expected in ((right, 1.0), (wrong, 0.0)):
        scores = task.score_batch([prompts[gold] for gold in golds], [answers[gold] for gold in golds])
        assert dict(zip(golds, scores, strict=True)) == dict.fromkeys(golds, expected)
    assert task.score(prompts["18"], "18") == 1.0
    task.close()


HOSTILE = {
    "tower of powers": "\\boxed{9^{9^{9^{9}}}}",
    "factorial": "\\boxed{99999999999!}",
    "nested braces": "\\boxed{" + "{" * 3000 + "1" + "}" * 3000 + "}",
    "nested brackets": "\\boxed{" + "(" * 2000 + ")" * 2000 + "}",
    "a megabyte of letters": "a" * 1_000_000,
    "a megabyte of digits": "7" * 1_000_000,
    "code": "\\boxed{__import__('os').abort()}",
    "unicode and control": "\\boxed{٤٢\u202e\x00\x1b[31m\ud800}",
}


def test_hostile_answers_score_zero_in_bounded_time(
    write_jsonl: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    task = make(write_jsonl(RECORDS), timeout=0.5)
    prompt = task.train_prompt(0)
    task.score(prompt, "$1+1$")  # the workers' start is not the answers' doing
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        scores = task.score_batch([prompt] * len(HOSTILE), list(HOSTILE.values()))
    assert scores == [0.0] * len(HOSTILE)
    assert time.monotonic() - start < 25  # 8 checks of 0.5 s, each with the start of a worker at worst
    assert task.timeouts >= 1
    assert caplog.text.count("task.timeout (0.5 s); it scores 0") == task.timeouts
    assert task.score(prompt, f"$\\frac{{{prompt.answer}}}{{1}}$") == 1.0  # and the next answer is checked as ever
    task.close()
