"""Proves that rewards of one's own are loaded only when the command line names them, called as promised, and that
whatever is wrong with them is said in one or two lines that name the function and the sample.

Run: pytest tests/tasks/test_rewards.py
"""

from __future__ import annotations

import asyncio
import hashlib
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dinghai.config.settings import RewardSettings
from dinghai.errors import InputError
from dinghai.tasks import rewards as rewards_module
from dinghai.tasks.base import Prompt
from dinghai.tasks.rewards import Rewards, load_rewards, parse_reward

PROMPTS = [Prompt(f"p{i}", f"What is {i}?", str(i) if i else None, {"level": i}) for i in range(3)]
COMPLETIONS = ["a", "bb", "ccc"]


class LengthTask:
    """A task whose verifier says half the length of the completion."""

    name = "length"
    held_out: Sequence[Prompt] = ()

    def train_prompt(self, index: int) -> Prompt:
        return PROMPTS[index % 3]

    def score(self, prompt: Prompt, completion: str) -> float:
        return len(completion) / 2

    def score_batch(self, prompts: list[Prompt], completions: list[str]) -> list[float]:
        return [self.score(p, c) for p, c in zip(prompts, completions, strict=True)]

    def demonstration(self, index: int) -> tuple[Prompt, str] | None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Rewards]:
    """Writes a file of rewards and loads functions from it."""

    def load_from(code: str, *functions: str, weight: float = 1.0) -> Rewards:
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(code))
        sources = [f"{path}:{function}" for function in functions or ["f"]]
        return load_rewards([RewardSettings(source=s, weight=weight) for s in sources], LengthTask(), set(sources))

    return load_from


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 2
    return message


def test_parts_and_weighted_total(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def brevity(completions):\n    return [-len(c) for c in completions]\n")
    source = f"{path}:brevity"
    rewards = load_rewards(
        [RewardSettings(weight=2), RewardSettings(source=source, weight=0.1)], LengthTask(), {"task", source}
    )
    table = rewards.score(PROMPTS, COMPLETIONS)
    assert table.names == ("task", "brevity")
    assert table.parts == {"task": [0.5, 1.0, 1.5], "brevity": [-1.0, -2.0, -3.0]}
    # 2 * 0.5 - 0.1 * 1 = 0.9, 2 * 1 - 0.1 * 2 = 1.8, 2 * 1.5 - 0.1 * 3 = 2.7
    assert table.total == pytest.approx([0.9, 1.8, 2.7], abs=1e-15)
    assert rewards.fingerprints == {source: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert rewards.score([], []).total == []


def test_functions_get_the_keywords_they_declare(load: Callable[..., Rewards]) -> None:
    rewards = load(
        """
        seen = {}
        def all_of_them(**everything):
            seen.update(everything)
            everything["completions"].clear()  # its own list
            return [0] * 3
        def some(answers, extras, unknown=5, *rest):
            assert answers == [None, "1", "2"] and unknown == 5 and not rest
            return [extra["level"] for extra in extras]
        class Callable:
            def __call__(self, completions, prompt_ids):
                assert prompt_ids == ["p0", "p1", "p2"]
                return map_to_list(len, completions)
        def map_to_list(f, xs): return [f(x) for x in xs]
        instance = Callable()
        """,
        "all_of_them",
        "some",
    )
    table = rewards.score(PROMPTS, COMPLETIONS)
    assert table.parts == {"all_of_them": [0, 0, 0], "some": [0, 1, 2]}
    function = rewards._functions[0]
    assert function is not None
    seen = function.call.__globals__["seen"]
    assert set(seen) == {"prompts", "completions", "answers", "prompt_ids", "extras"}
    assert seen["prompts"] == ["What is 0?", "What is 1?", "What is 2?"]


@pytest.mark.parametrize(
    "values",
    [
        *("[True, 2, 0.5]", "(1, 2.0, 0.5)", "[Fraction(1), Decimal(2), .5]", "numpy.array([1, 2, 0.5])"),
        *("list(numpy.float32([1, 2, .5]))", "torch.tensor([1, 2, 0.5])", "list(torch.tensor([[1], [2], [0.5]]))"),
    ],
)
def test_numbers_of_every_kind_are_accepted(load: Callable[..., Rewards], values: str) -> None:
    code = f"import numpy, torch\nfrom fractions import Fraction\nfrom decimal import Decimal\ndef f(): return {values}"
    assert load(code).score(PROMPTS, COMPLETIONS).total == [1.0, 2.0, 0.5]


@pytest.mark.parametrize("bad", ["None", "float('nan')", "float('-inf')", "'1'", "1j", "[1]", "10**400"])
def test_what_is_no_finite_number_is_named_with_its_sample(load: Callable[..., Rewards], bad: str) -> None:
    message = complaint(lambda: load(f"def f(): return [0, {bad}, 0]").score(PROMPTS, COMPLETIONS))
    assert "the reward f" in message
    assert "sample 1 (prompt p1)" in message
    assert repr(eval(bad))[:60] in message


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[0, 0]", "returned 2 values; it must return one number for each of the 3"),
        ("[0] * 4", "returned 4 values"),
        ("None", "returned None; it must return a list"),
        ("0.5", "returned 0.5; it must return a list"),
        ("'abc'", "returned 'abc'"),
        ("{0: 1, 1: 1, 2: 1}", "must return a list"),
    ],
)
def test_wrong_shapes_are_named(load: Callable[..., Rewards], returned: str, message: str) -> None:
    assert message in complaint(lambda: load(f"def f(): return {returned}").score(PROMPTS, COMPLETIONS))


def test_raising_function_is_named_with_line_and_sample(load: Callable[..., Rewards]) -> None:
    code = """
        def f(completions):
            return [helper(c) for c in completions]
        def helper(c):
            if c == "bb":
                raise KeyError("no such\\nthing")
            return 0
        """
    message = complaint(lambda: load(code).score(PROMPTS, COMPLETIONS))
    assert "the reward f" in message
    assert "mine.py, line 6) raised KeyError: " in message
    assert "on sample 1 (prompt p1), whose completion is 'bb'" in message


def test_only_what_is_known_of_the_sample_is_said(
    load: Callable[..., Rewards], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def f(completions):\n    if len(completions) > 1: raise ValueError\n    return [0]"
    assert "on the batch of 3, but on no sample of it alone" in complaint(
        lambda: load(code).score(PROMPTS, COMPLETIONS)
    )
    monkeypatch.setattr("dinghai.tasks.reward_calls._SEARCH_SECONDS", -1)
    assert "not on the first 0 of 3 samples" in complaint(lambda: load(code).score(PROMPTS, COMPLETIONS))


ASYNC = """
    import asyncio
    async def slow(completions):
        await asyncio.sleep(0.3)
        return [len(c) for c in completions]
    async def slower(completions):
        await asyncio.sleep(0.3)
        return [2 * len(c) for c in completions]
    async def fails(completions):
        await asyncio.sleep(0)
        if "ccc" in completions: raise OSError("no judge")
        return [0] * len(completions)
    def plain():
        raise ValueError("plain")
    """


def test_async_rewards_run_concurrently(load: Callable[..., Rewards]) -> None:
    rewards = load(ASYNC, "slow", "slower")
    start = time.monotonic()
    table = rewards.score(PROMPTS, COMPLETIONS)
    assert time.monotonic() - start < 0.55  # one after the other would take 0.6 s
    assert table.total == [3.0, 6.0, 9.0]


def test_async_rewards_run_inside_a_running_loop(load: Callable[..., Rewards]) -> None:
    async def notebook() -> list[float]:
        return load(ASYNC, "slow").score(PROMPTS, COMPLETIONS).total

    assert asyncio.run(notebook()) == [1.0, 2.0, 3.0]


def test_failing_async_reward_is_named_and_others_are_not_left_behind(load: Callable[..., Rewards]) -> None:
    message = complaint(lambda: load(ASYNC, "slow", "fails").score(PROMPTS, COMPLETIONS))
    assert "the reward fails" in message
    assert "raised OSError: no judge" in message
    assert "sample 2 (prompt p2)" in message
    # A coroutine that is never awaited would draw a warning, which is an error here.
    assert "the reward plain" in complaint(lambda: load(ASYNC, "slow", "plain").score(PROMPTS, COMPLETIONS))


def test_code_is_loaded_only_if_the_command_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, witness = tmp_path / "mine.py", tmp_path / "witness"
    path.write_text(f"open({str(witness)!r}, 'w').close()\ndef f(): return [1, 1, 1]\n")
    settings = [RewardSettings(source=f"{path}:f")]
    message = complaint(lambda: load_rewards(settings, LengthTask(), {"task", f"{path}:g"}))
    assert f"--reward {path}:f" in message
    assert not witness.exists()
    monkeypatch.chdir(tmp_path)  # the same file, named another way
    assert load_rewards(settings, LengthTask(), {"./mine.py:f"}).score(PROMPTS, COMPLETIONS).total == [1, 1, 1]
    assert witness.exists()


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        ("def brevity(): pass", "brevty", "has no function 'brevty'; did you mean brevity?"),
        ("def brevity(): pass", "x", "has no function 'x'; it has brevity"),
        ("f = 3", "f", "'f' in .*mine.py is int, not a function"),
        ("x = 1\nf = undefined\n", "f", "mine.py, line 2: NameError: name 'undefined'"),
        ("x = 1\ndef f(:\n", "f", "mine.py, line 2: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('bye')", "f", "mine.py, line 2: SystemExit: bye"),
        ("import nonesuch", "f", "mine.py, line 1: ModuleNotFoundError: No module named 'nonesuch'"),
        ("def f(\0): pass", "f", "mine.py.*Error: source code .*null bytes"),
        ("def f(completions, label): pass", "f", "f in .* needs 'label', which no reward is given; .* extras"),
        ("def f(completions, /): pass", "f", "f in .* needs 'completions'"),
    ],
)
def test_faulty_files_are_named(load: Callable[..., Rewards], code: str, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(code, function)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    source = f"{tmp_path}/nowhere.py:f"
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.py"):
        load_rewards([RewardSettings(source=source)], LengthTask(), {source})


def test_file_may_import_its_neighbours_and_use_dataclasses(tmp_path: Path, load: Callable[..., Rewards]) -> None:
    (tmp_path / "my_neighbour_module.py").write_text("VALUE = 4\n")
    rewards = load(
        """
        from __future__ import annotations
        from dataclasses import dataclass
        @dataclass
        class Point:
            x: int
        def f():
            import my_neighbour_module
            return [my_neighbour_module.VALUE * Point(1).x] * 3
        """
    )
    assert rewards.score(PROMPTS, COMPLETIONS).total == [4.0] * 3


def test_changed_code_has_another_fingerprint_and_is_what_runs(load: Callable[..., Rewards]) -> None:
    first = load("def f(): return [1, 1, 1]")
    second = load("def f(): return [2, 2, 2]")
    assert first.fingerprints.keys() == second.fingerprints.keys()
    assert first.fingerprints != second.fingerprints
    assert second.score(PROMPTS, COMPLETIONS).total == [2.0] * 3


def test_equal_names_are_told_apart(load: Callable[..., Rewards]) -> None:
    rewards = load("def f(): return [1, 1, 1]\ndef f_2(): return [2, 2, 2]", "f", "f_2", "f")
    assert rewards.names == ("f", "f_2", "f_3")
    assert rewards.score(PROMPTS, COMPLETIONS).total == [4.0] * 3


@pytest.mark.parametrize(
    ("text", "source", "weight"),
    [
        ("task", "task", 1.0),
        ("task*0.5", "task", 0.5),
        ("my.py:brevity", "my.py:brevity", 1.0),
        ("my.py:brevity*0.2", "my.py:brevity", 0.2),
        ("my.py:brevity * -1e-3", "my.py:brevity", -0.001),
        (r"C:\rewards\my.py:brevity*2", r"C:\rewards\my.py:brevity", 2.0),
        ("a*b.py:f*3", "a*b.py:f", 3.0),
    ],
)
def test_rewards_of_the_command_line(text: str, source: str, weight: float) -> None:
    assert parse_reward(text) == RewardSettings(source=source, weight=weight)


@pytest.mark.parametrize(
    "text", ["", "my.py", "my.py:", ":f", "my.txt:f", "my.py:f*", "my.py:f*x", "my.py:f*nan", "f*2"]
)
def test_malformed_rewards_of_the_command_line(text: str) -> None:
    complaint(lambda: parse_reward(text))


def test_prompts_and_completions_must_pair() -> None:
    with pytest.raises(ValueError, match="3 prompts but 1 completions"):
        load_rewards([RewardSettings()], LengthTask(), set()).score(PROMPTS, ["a"])
    assert rewards_module.TASK == "task"
