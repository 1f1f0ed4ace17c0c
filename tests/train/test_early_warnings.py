"""While a run trains, what looks wrong is told once, early, in a line; training does not change by a bit for it; and
what kills a run is left in its folder for the doctor.

Run: pytest tests/train/test_early_warnings.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import REWARD, differences, left_behind, resume_tiny, reward_file, run_tiny

from dinghai.errors import RunFailed
from dinghai.lens.doctor import diagnose
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check
from dinghai.lens.doctor.finding import Evidence, Finding, Grade
from dinghai.lens.failure import read_failure
from dinghai.lens.metrics_file import load_metrics
from dinghai.train import run as run_module
from dinghai.train.early_warnings import EarlyWarnings

# The tiny model never ends a completion, which is a fault, and is told.
ENDLESS = "Many completions are cut"
LONG: dict[str, Any] = {"run": {"steps": 9}}


def warnings_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning at step")]


def whole_case(folder: Path) -> Case:
    return Case(folder, json.loads((folder / "config.json").read_text()), load_metrics(folder / "metrics.jsonl"))


def test_a_fault_is_told_once_and_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_tiny(tmp_path, "run", LONG)
    (line,) = warnings_in(capsys.readouterr().out)
    assert line.startswith(f"warning at step 1: {ENDLESS}: ")
    assert line.endswith(f"`dinghai doctor {folder}` tells more.")


def test_a_constant_reward_is_told_at_its_second_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = reward_file(tmp_path, "def spread(completions, **others):\n    return [0.25] * len(completions)\n")
    folder = run_tiny(tmp_path, "run", LONG, {"rewards": [{"source": source}]})
    told = warnings_in(capsys.readouterr().out)
    assert [line for line in told if "reward" in line.split(":")[1]] == [told[1]]
    assert told[1].startswith("warning at step 2: The reward never varies: each completion of 2 steps scored 0.25.")
    first = diagnose.diagnose(whole_case(folder))[0]
    assert (first.check, first.grade) == ("reward-never-varies", Grade.HARMFUL)


def test_rewards_that_cancel_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reward_file(tmp_path, REWARD + "def other(**given):\n    return [-x for x in spread(**given)]\n")
    both = [{"source": path}, {"source": path.replace("spread", "other")}]
    run_tiny(tmp_path, "run", {"rewards": both})
    told = warnings_in(capsys.readouterr().out)
    assert any("Rewards cancel each other" in line for line in told)


def test_warnings_change_nothing_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = left_behind(run_tiny(tmp_path, "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.setattr(EarlyWarnings, "step", lambda *_: None)
    without = left_behind(run_tiny(tmp_path, "run"))
    assert differences(with_them, without) == []


def test_a_check_that_fails_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Case) -> Finding | None:
        raise ZeroDivisionError

    shown = Finding("shown", Grade.HARMFUL, 1.0, "It is \x1b[31m", (Evidence("so"),), "because", "mend it", "curves")
    note = Finding("note", Grade.NOTE, 1.0, "A note", (Evidence("so"),), "because", "mend it", "curves")
    looks = (broken, lambda _: shown, lambda _: note)
    monkeypatch.setattr(diagnose, "CHECKS", tuple(Check(f"{n}", "A fault.", {}, look) for n, look in enumerate(looks)))
    folder = run_tiny(tmp_path, "run", LONG)
    (line,) = warnings_in(capsys.readouterr().out)
    assert line.startswith("warning at step 1: It is \\x1b[31m: so. Mend it.")
    assert len(load_metrics(folder / "metrics.jsonl").training) == 9


def test_it_looks_after_steps_that_are_powers_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    check = Check("x", "A fault.", {}, lambda case: looked.append(case.training[-1]["step"]))
    monkeypatch.setattr(diagnose, "CHECKS", (check,))
    warnings = EarlyWarnings(tmp_path, {}, [], pytest.fail)
    for step in range(40):
        warnings.step({"step": step})
    assert looked == [1, 2, 4, 8, 16, 32]


# --- what kills a run ------------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """From step 3 on a reward is NaN, or the step raises."""
    real = run_module.train_step

    def train_step(parts: Any, step: int, next_prompt: int) -> Any:
        if step == 3:
            if error is not None:
                raise error
            monkeypatch.setattr("dinghai.train.loop.log_probs", nans)
        return real(parts, step, next_prompt)

    def nans(run: Any, policy: Any, batch: Any, minibatches: Any) -> Any:
        return batch.logp_sampler_N * math.nan

    monkeypatch.setattr(run_module, "train_step", train_step)


def test_a_number_that_is_not_finite_is_left_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        poison(patch)
        with pytest.raises(RunFailed) as caught:
            run_tiny(tmp_path)
    folder = tmp_path / "run"
    failure = read_failure(folder)
    assert failure is not None
    assert failure.message == str(caught.value)
    assert (failure.tensor, failure.step, failure.position) == ("logp_old", 3, 0)
    assert f"sample {failure.sample} " in failure.message
    assert f"(id {failure.token})" in failure.message
    assert failure.group == failure.sample // 4  # type: ignore[operator]
    found = diagnose.diagnose(whole_case(folder))
    assert [one.check for one in found][:2] == ["not-finite", "ended-early"]
    assert found[0].evidence[0].place.sample == failure.sample
    resume_tiny(folder)
    assert read_failure(folder) is None
    assert not {"not-finite", "ended-early"} & {one.check for one in diagnose.diagnose(whole_case(folder))}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunFailed("the disk is full\nreally"), "the disk is full"),
        (ValueError("no such thing"), "ValueError: no such thing"),
        (KeyboardInterrupt(), None),
    ],
)
def test_another_failure_is_left_as_it_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str | None
) -> None:
    poison(monkeypatch, error)
    with pytest.raises(type(error)):
        run_tiny(tmp_path)
    failure = read_failure(tmp_path / "run")
    assert (None if failure is None else failure.message) == message
