"""Proves that problems of reasoning-gym are a function of seed and index, that held-out questions stay out of training,
that verifiers which evaluate what the model wrote run none of its code, and that every wrong setting is named.

Run: pytest tests/tasks/test_reasoning_gym_task.py
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dinghai.config.settings import ReasoningGymTaskSettings
from dinghai.errors import InputError, RunFailed
from dinghai.tasks import reasoning_gym as task_module
from dinghai.tasks.check_reasoning import evaluates_text, is_inert, library, make_checker, stated_answer
from dinghai.tasks.reasoning_gym import ReasoningGymTask

VARIED = ["chain_sum", "coin_flip", "countdown", "game_of_life", "graph_color", "letter_jumble", "prime_factorization"]
VARIED += ["simple_equations", "spiral_matrix", "string_insertion", "sudoku", "word_ladder"]


@pytest.fixture
def make() -> Iterator[Callable[..., ReasoningGymTask]]:
    tasks = []

    def build(dataset: str = "chain_sum", seed: int = 0, held_out: int = 4, **parameters: Any) -> ReasoningGymTask:
        settings = ReasoningGymTaskSettings(dataset=dataset, parameters=parameters, held_out=held_out)
        tasks.append(ReasoningGymTask(settings, seed))
        return tasks[-1]

    yield build
    for task in tasks:
        task.close()


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that score nothing: the import of the library in a worker takes seconds."""
    monkeypatch.setattr(task_module.CheckerPool, "start", lambda pool: None)


@pytest.mark.usefixtures("without_workers")
def test_prompts_are_a_function_of_seed_and_index(make: Callable[..., ReasoningGymTask]) -> None:
    indices = [0, 1, 1023, 1024, 5000, 10**6]
    one, other, third = make(seed=1), make(seed=1), make(seed=2)
    prompts = [one.train_prompt(i) for i in indices]
    assert [other.train_prompt(i) for i in reversed(indices)] == prompts[::-1]
    assert one.held_out == other.held_out
    assert len({prompt.text for prompt in prompts}) == len(indices)
    assert prompts[0].text.endswith("\nGive only the final answer.\n")
    # The library draws problem i from seed + i: seeds 1 and 2 of a run must not be the same problems, shifted by one.
    texts = {one.train_prompt(i).text for i in range(50)}
    assert not texts & {third.train_prompt(i).text for i in range(50)}


@pytest.mark.usefixtures("without_workers")
def test_held_out_questions_are_distinct_and_never_trained_on(make: Callable[..., ReasoningGymTask]) -> None:
    # Sums of two one-digit numbers, plus or minus: 200 questions, of which half are held out.
    task = make(held_out=100, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    held_out = {prompt.text for prompt in task.held_out}
    assert len(held_out) == 100
    trained = {task.train_prompt(i).text for i in range(300)}
    assert not held_out & trained
    assert task.train_prompt(7) == task.train_prompt(7)


@pytest.mark.usefixtures("without_workers")
def test_too_few_questions_are_refused(make: Callable[..., ReasoningGymTask]) -> None:
    with pytest.raises(InputError, match=r"different questions in .* draws, fewer than task.held_out \(300\)"):
        make(held_out=300, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    task = make(held_out=10, min_terms=1, max_terms=1, min_digits=1, max_digits=1)
    with pytest.raises(InputError, match="nearly all questions of chain_sum are held out"):
        task.train_prompt(0)


@pytest.mark.usefixtures("without_workers")
@pytest.mark.parametrize(
    ("dataset", "parameters", "message"),
    [
        ("chain_sun", {}, r"no data set 'chain_sun'; did you mean chain_sum"),
        ("zzz", {}, r"no data set 'zzz'; it has ab, acre"),
        ("chain_sum", {"min_term": 2}, r"chain_sum has no parameter 'min_term'; did you mean min_terms"),
        ("chain_sum", {"colour": 2}, r"no parameter 'colour'; it has min_terms, max_terms, min_digits"),
        ("chain_sum", {"min_terms": 9}, r"chain_sum refuses task.parameters .*: max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "two"}, r"chain_sum refuses task.parameters .*'two'"),
        ("chain_sum", {"allow_negation": 0, "max_digits": 2.5}, r"chain_sum cannot make a problem .*Error"),
        ("chain_sum", {"seed": 3}, r"task.parameters.seed is not yours to set: run.seed decides"),
        ("composite", {}, r"composite refuses task.parameters"),
    ],
)
def test_wrong_settings_are_named(
    make: Callable[..., ReasoningGymTask], dataset: str, parameters: dict[str, Any], message: str
) -> None:
    settings = ReasoningGymTaskSettings(dataset=dataset, parameters=parameters)
    with pytest.raises(InputError, match=message) as caught:
        ReasoningGymTask(settings, 0)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_package_names_the_extra(
    make: Callable[..., ReasoningGymTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dinghai\[tasks\]'"):
        make()


@pytest.mark.usefixtures("without_workers")
def test_composites_take_tables_and_demonstrations_need_an_answer(make: Callable[..., ReasoningGymTask]) -> None:
    task = make("composite", datasets=[{"name": name, "weight": 1, "config": {}} for name in ("gcd", "lcm")])
    prompt, answer = task.demonstration(3) or (None, None)
    assert prompt == task.train_prompt(3)
    assert prompt is not None
    assert answer == prompt.answer
    assert make("graph_color").demonstration(0) is None  # any proper colouring is right


HOSTILE = [
    "",
    "   ",
    "42",
    "-1",
    "[1, 2, 3]",
    "[[1], [2]]",
    '{"a": 1}',
    "(" * 300 + ")" * 300,
    "[" * 3000,
    "nan",
    "inf",
]
HOSTILE += [
    "hello world",
    "😀\u202e٤٢ \x00\x1b[31m\ud800",
    "7" * 99_000,
    "\\frac{1}{2}",
    "x" * 1_000_000,
    "\n\n",
    "a = 1",
]


@pytest.mark.parametrize("dataset", VARIED)
def test_hostile_answers_get_a_score_and_own_answers_the_best(dataset: str) -> None:
    check = make_checker({"dataset": dataset, "parameters": {}, "first_seeds": {"train": 5}})
    job = {"stream": "train", "index": 1, "entry": None}
    for text in HOSTILE:
        verdict = check({**job, "text": text})
        assert 0 <= verdict["score"] <= 1, (text[:80], verdict)
        assert "broken" not in verdict
    dataset_class, configuration = library().factory.DATASETS[dataset]
    answer = dataset_class(configuration(seed=5, size=4))[1]["answer"]
    if isinstance(answer, str):
        assert check({**job, "text": answer})["score"] == 1.0
        assert check({**job, "text": f"I think <answer>no</answer>, or <answer>{answer}</answer>"})["score"] == 1.0


def test_code_in_an_answer_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    touch = f"__import__('pathlib').Path({str(witness)!r}).touch()"
    attempts = [f"open({str(witness)!r}, 'w')", f"[open({str(witness)!r}, 'w').write('x')]"]
    attempts += [
        touch,
        f"Symbol('x').func(open({str(witness)!r}, 'w'))",
    ]
    for dataset in (
        "string_insertion",
        "spiral_matrix",
        "n_queens",
        "binary_matrix",
        "countdown",
        "simple_integration",
    ):
        assert evaluates_text(dataset)
        check = make_checker({"dataset": dataset, "parameters": {}, "first_seeds": {"train": 5}})
        for text in attempts:
            check({"stream": "train", "index": 0, "text": text, "entry": None})
            assert not witness.exists(), (dataset, text)
    # One does run where nothing stands in its way, so the assertion above can fail.
    entry = library().create_dataset("string_insertion", seed=5)[0]
    library().create_dataset("string_insertion", seed=5).score_answer(touch, entry)
    assert witness.exists()


def test_only_verifiers_that_evaluate_are_guarded_and_accept_the_right_answer() -> None:
    evaluating = {name for name in library().factory.DATASETS if evaluates_text(name)}
    assert {"string_insertion", "spiral_matrix", "n_queens", "binary_matrix", "countdown", "puzzle24"} <= evaluating
    # These evaluate text of their own while making problems; their right answers hold what the guard refuses.
    assert not {"codeio", "basic_arithmetic", "propositional_logic", "chain_sum"} & evaluating
    for name in evaluating:
        dataset = library().create_dataset(name, seed=5, size=4)
        assert all(is_inert(dataset[i]["answer"]) for i in range(4)), name


def test_inert_text() -> None:
    for text in (
        "22*(14 - 8) - 29",
        "x**2/2 + sin(3*x) + C",
        "['A', 'B']",
        "ABCD",
        "-1.5*(2.0 + 3)",
        "[[1, 2], [3, 4]]",
        "",
    ):
        assert is_inert(text), text
    for text in (
        *("eval('1')", "S('1')", "(open)('x')", "x.y", "1 .real", "(lambda: 1)()", "().__class__", "__debug__"),
        *(
            "[a for a in (1,)]",
            "f'{exit()}'",
            "f'{1:999999999}'",
            "chr(95)",
            "N(2)",
            "sin\n.x",
            "factorial(9)",
            "(x:=1)",
        ),
    ):
        assert not is_inert(text), text


def test_stated_answer() -> None:
    assert stated_answer("so <answer> 4 </answer> or <answer>5\n6</answer>.") == "5\n6"
    assert stated_answer(" 4\n") == "4"
    assert stated_answer("<answer><answer>4</answer>") == "4"
    assert stated_answer("<answer>" * 20_000) == "<answer>" * 20_000  # in no time


def test_scores_come_from_workers_that_can_be_killed(
    make: Callable[..., ReasoningGymTask], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(task_module, "_CHECK_SECONDS", 1.0)
    monkeypatch.setattr(task_module, "_WORKERS", 1)
    task = make("prime_factorization")
    prompts = [task.train_prompt(i) for i in range(4)]
    right = [prompt.answer or "" for prompt in prompts]
    with caplog.at_level(logging.WARNING):
        assert task.score_batch(prompts, right) == [1.0] * 4
        assert task.score_batch(prompts, ["hello", "word", right[2], "<answer>" + right[3] + "</answer>"])[2:] == [1, 1]
        assert task.malformed == 2
        assert caplog.text.count("such answers score 0") == 1  # said once, counted always
    countdown = make("countdown")
    prompt = countdown.train_prompt(0)
    assert countdown.score_batch([prompt] * 2, ["9**9**9**9", prompt.answer or ""]) == [0.0, 1.0]
    assert (countdown.timeouts, countdown.crashes) == (1, 0)


class BrokenDataset:
    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def score(self, index: int, entry: dict[str, Any], text: str) -> Any:
        if self.returned is None:
            raise ZeroDivisionError("always")
        return self.returned


@pytest.mark.usefixtures("without_workers")
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "raised ZeroDivisionError: always, and raises on the data set's own answer"),
        (2.0, "returned 2.0"),
        ("x", "'x'"),
    ],
)
def test_broken_verifier_fails_the_run(make: Callable[..., ReasoningGymTask], returned: Any, message: str) -> None:
    from dinghai.tasks.check_reasoning import _judge
    from dinghai.tasks.checker import Outcome

    verdict = _judge(BrokenDataset(returned), 0, {"answer": "1"}, "1")  # type: ignore[arg-type]
    task = make()
    with pytest.raises(RunFailed, match=r"reasoning-gym's chain_sum is broken: on chain_sum:train:0 it r") as caught:
        task._score_of(Outcome(value=verdict), task.train_prompt(0))
    assert message in str(caught.value)
