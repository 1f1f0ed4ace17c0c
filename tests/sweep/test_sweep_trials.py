"""Trials survive: a process killed in the middle is resumed to the same bytes, a failed trial leaves the others alone.

Run: pytest tests/sweep/test_sweep_trials.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_trials import sources, trial, write_rewards
from tiny_runs import differences, left_behind

from dinghai.config.load import settings_from_json
from dinghai.errors import InputError, RunFailed
from dinghai.objective import RULES
from dinghai.sweep import lock, pool
from dinghai.sweep.trials import Outcome, Trial, run_trials
from dinghai.train.run import train

RULE = """
from dinghai.objective import register_rule

def weight(x, p):
    return x.importance_weighted

@register_rule("plain_for_sweep", title="r·A", paper="a test", formula="w = r·A", zero="never", weight=weight)
def surrogate(x, p):
    return x.importance_weighted
"""


MORTAL = """
import json, os, signal, sys
sys.stdin.readline()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    name = json.loads(line)["name"]
    if name == "a":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "b":
        os._exit(3)
    print(json.dumps({"name": name, "error": None, "seconds": 0.0}), flush=True)
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A sweep with an error, a process that is killed once, and a rule of one's own."""
    folder = tmp_path_factory.mktemp("sweep")
    rewards = write_rewards(folder / "rewards")
    rule_file = folder / "rule.py"
    rule_file.write_text(RULE, "utf-8")
    trials = [
        trial("errs", rewards, "raises"),
        trial("killed-once", rewards, "killed_once"),
        trial("own-rule", rewards, objective={"rule": "plain_for_sweep"}),
    ]
    told: list[str] = []
    heard: list[Outcome] = []

    def run(chosen: list[Trial], **options: object) -> list[Outcome]:
        code = sources(trials)
        return run_trials(chosen, folder, 1, [rule_file], told.append, allowed_rewards=code, **options)  # type: ignore[arg-type]

    outcomes = run(trials, ended=heard.append)
    yield SimpleNamespace(
        folder=folder, rewards=rewards, trials=trials, outcomes=outcomes, told=told, heard=heard, run=run
    )
    RULES.pop("plain_for_sweep", None)


def test_a_trial_that_fails_leaves_the_others_alone(swept: SimpleNamespace) -> None:
    errors = {outcome.trial.name: outcome.error for outcome in swept.outcomes}
    assert [o.state for o in swept.outcomes] == ["failed", "done", "done"]
    assert "a fault of the reward's" in errors["errs"]
    assert [o.trial.name for o in swept.heard] == [t.name for t in swept.trials]
    assert swept.heard == swept.outcomes
    assert "Traceback" in (swept.folder / "errs.log").read_text("utf-8")
    assert [line.split(",")[0] for line in swept.told[1:]] == ["2/3 killed-once: done", "3/3 own-rule: done"]
    assert swept.told[0].startswith("1/3 errs: FAILED (")


def test_errors_and_settings_are_kept(swept: SimpleNamespace) -> None:
    kept = json.loads((swept.folder / "sweep.json").read_text("utf-8"))["trials"]
    assert {name: entry["error"] for name, entry in kept.items()} == {o.trial.name: o.error for o in swept.outcomes}
    assert {name: entry["settings"] for name, entry in kept.items()} == {t.name: t.settings for t in swept.trials}


def test_a_killed_trial_ends_in_the_bytes_of_one_that_was_not(swept: SimpleNamespace, tmp_path: Path) -> None:
    """In a process that has trained other trials before, too."""
    one = trial("undisturbed", swept.rewards, "killed_once")  # which kills once in all
    placed = one.settings | {"run": one.settings["run"] | {"name": one.name, "folder": str(tmp_path)}}
    train(settings_from_json(json.dumps(placed)), sources([one]))
    expected, left = left_behind(tmp_path / one.name), left_behind(swept.folder / "killed-once")
    # Which files of rules were loaded is kept too, and here there were none.
    for state in (state for found in (expected, left) for name, state in found.items() if name.endswith("/state")):
        state.pop("rule_code")
    assert differences(expected, left) == []
    assert "resumed after step 1" in (swept.folder / "killed-once.log").read_text("utf-8")


def test_what_is_done_is_left_and_what_failed_is_tried_again(swept: SimpleNamespace) -> None:
    done = swept.folder / "own-rule" / "model" / "model.safetensors"
    before = done.stat().st_mtime_ns, (swept.folder / "own-rule.log").stat().st_size
    (swept.rewards.parent / "mended").touch()
    swept.told.clear()
    outcomes = swept.run([*swept.trials])
    assert [(o.state, o.error) for o in outcomes] == [("done", None)] * 3
    assert (done.stat().st_mtime_ns, (swept.folder / "own-rule.log").stat().st_size) == before
    assert swept.told[0] == "2 of 3 trials are done already"
    assert "resumed after step 1" in (swept.folder / "errs.log").read_text("utf-8")
    kept = json.loads((swept.folder / "sweep.json").read_text("utf-8"))["trials"]
    assert [entry["error"] for entry in kept.values()] == [None] * 3


def test_other_settings_than_the_run_has_are_refused(swept: SimpleNamespace) -> None:
    other = trial("own-rule", swept.rewards, objective={"rule": "plain_for_sweep"}, update={"lr": 0.5, "warmup": 0})
    with pytest.raises(InputError, match=r"own-rule was begun with update\.lr = 0\.01, and the trial has 0\.5"):
        swept.run([other])


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([Trial("a", {}), Trial("a", {})], "two trials are named a"),
        ([Trial("a", {"update": {"lrr": 1}})], r"trial a: update\.lrr is not a setting; did you mean update\.lr or"),
        ([Trial("a", {"run": {"name": "b"}})], r"sets run\.name, which follows from the trial"),
        ([Trial("a/b", {})], "without slashes"),
        ([Trial("a.log", {})], "cannot be the name of a trial"),
        ([Trial("a", {"objective": {"rule": "ppoo"}})], "trial a: unknown rule 'ppoo'; did you mean 'ppo'"),
        ([Trial("a", {}), Trial("b", {"objective": {"eps_high": -1}})], r"trial b: objective\.eps_high is -1"),
    ],
)
def test_settings_are_refused_before_anything_is_trained(trials: list[Trial], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_trials(trials, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is no run: move it"):
        run_trials([Trial("a", {})], tmp_path)


def test_two_sweeps_never_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.0)
    with lock.alone_in(tmp_path), pytest.raises(InputError, match="another process trains"), lock.alone_in(tmp_path):
        pass
    with lock.alone_in(tmp_path):
        pass


def test_a_process_ends_with_its_parent() -> None:
    """The end of its standard input is all that it sees of the parent's death."""
    process = subprocess.Popen([sys.executable, "-c", pool._BOOTSTRAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    setup = {"path": [os.path.abspath(entry) for entry in sys.path], "rule_files": [], "allowed_rewards": []}
    process.stdin.write(json.dumps(setup).encode() + b"\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    process.stdout.close()  # type: ignore[union-attr]


def test_a_process_that_always_dies_fails_its_trial_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Here with processes that die of every trial but the last."""
    monkeypatch.setattr(pool, "_BOOTSTRAP", MORTAL)
    outcomes = run_trials([Trial(name, {}) for name in "abc"], tmp_path, 2, tell=lambda line: None)
    assert [outcome.state for outcome in outcomes] == ["failed", "failed", "done"]
    assert outcomes[0].error == "its process died 2 times, SIGKILL (killed from outside; often the memory was full)"
    assert outcomes[1].error == "its process died 2 times, exit status 3"


def test_processes_that_cannot_start_are_an_error_not_a_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool, "_BOOTSTRAP", "raise SystemExit('no such library')")
    with pytest.raises(RunFailed, match=r"end while they start.*no such library"):
        run_trials([Trial("a", {})], tmp_path)
