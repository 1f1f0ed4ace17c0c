"""`dinghai doctor`: what it prints of a run that is alive, finished or dead, as JSON too, and what it refuses.

Run: pytest tests/cli/test_doctor_command.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dinghai.cli import main
from dinghai.files import json_line
from dinghai.lens.doctor.diagnose import CHECKS
from dinghai.trace import Samples, TraceWriter

ROW: dict[str, Any] = {
    "reward/mean": 0.5,
    "reward/std": 0.5,
    "tokens/signal": 10,
    "clip/band_fraction": 0.02,
    "clip/log_ratio_abs_max": 0.5,
}
CUT = {"completion/truncated_fraction": 0.4}
TEXT = "7+5=12"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two steps of a sound run, in an empty folder; every line fits the width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    return make_run(tmp_path / "runs" / "sound")


def make_run(folder: Path, changed: dict[str, Any] | None = None, planned: int = 2) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run": {"steps": planned}, "rollout": {"max_new_tokens": 9}}))
    rows = [{"step": step} | ROW | (changed or {}) for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(map(json_line, rows)))
    return folder


def write_trace(folder: Path) -> None:
    """One completion in step 2, "7+5=12", in the tokens of the built-in model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "view"))
    from synthetic_run import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(TEXT).ids
    trace = TraceWriter(folder / "trace", 1000, 0, regions={2: "inside"}, effects={1: "kept"})
    trace.begin_step(2, Samples([0], [0], ["p"], ["?"], [TEXT], [len(ids)], [True], [1.0], {"task": [1.0]}))
    columns: dict[str, Any] = {name: [-0.5] * len(ids) for name in ("logp_sampler", "logp_old", "logp_new")}
    columns |= {"position": list(range(len(ids))), "token": ids, "advantage": [1.0] * len(ids)}
    columns |= {"weight": [1.0] * len(ids), "entropy": [0.5] * len(ids)}
    columns |= {"region": [2] * len(ids), "effect": [1] * len(ids)}
    trace.add_update(0, columns, [0] * len(ids))
    trace.finish_step()


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["doctor", *arguments]) == 0
    return capsys.readouterr().out


def test_a_sound_run_is_told_so_with_what_was_looked_at(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(run)
    out = told(capsys, "sound")
    assert (
        f"runs/sound: finished, 2 of 2 steps; {len(CHECKS)} checks looked at its metrics and the tokens of 1 step"
        in out
    )
    assert f"Nothing looks wrong to {len(CHECKS)} checks." in out
    assert "note" not in out


def test_each_finding_has_its_evidence_cause_fix_and_view(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(run.parent / "cut", CUT)
    lines = [line.strip() for line in told(capsys, "cut").splitlines()]
    at = lines.index("1. Many completions are cut  wasteful  truncated-completions")
    assert lines[at + 1].startswith("seen  40.0% were cut at rollout.max_new_tokens (9) and scored without their end")
    assert lines[at + 2] == "Most at step 1: 40.0%"
    assert [line.split()[0] for line in lines[at + 3 : at + 6]] == ["cause", "fix", "shown"]
    assert lines[at + 5].endswith("`dinghai watch runs/cut`, section tokens")
    (run.parent / "cut" / "report.html").write_text("")
    assert "runs/cut/report.html#tokens, or `dinghai watch runs/cut`" in told(capsys, "cut")


def test_a_run_without_a_trace_says_which_checks_saw_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = sum(check.of_tokens for check in CHECKS)
    assert f"there is no trace (no step of it is complete): {blind} checks of tokens saw nothing" in told(
        capsys, "sound"
    )


def test_damage_in_the_trace_is_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(run)
    shutil.copytree(run / "trace" / "step-000002", run / "trace" / "step-000001")
    (run / "trace" / "step-000001" / "complete.json").unlink()
    out = told(capsys, "sound")
    assert "step 1 of the trace is left out: it was not finished" in out


def test_a_dead_run_says_what_killed_it_with_the_token(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = make_run(run.parent / "dead", planned=9)
    write_trace(dead)
    failure = {"message": "step 2: logp_new is nan at sample 0", "tensor": "logp_new", "step": 2, "sample": 0}
    (dead / "failure.json").write_text(json.dumps(failure | {"position": 4, "token": 21}))
    out = told(capsys, "dead")
    assert "runs/dead: stopped, 2 of 9 steps" in out
    assert "1. A number is not finite  invalid  not-finite" in out
    assert "The run stopped because step 2: logp_new is nan at sample 0" in out
    assert "step 2, completion 0, token 5, which ends …7+5=1\n" in out.replace(" \n", "\n").replace("  ", "")
    assert "2. The run ended early  harmful  ended-early" in out
    assert "`dinghai resume runs/dead` continues it" in out


def test_hostile_texts_act_nowhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = make_run(run.parent / "dead", planned=9)
    (dead / "failure.json").write_text(json.dumps({"message": "\x1b]0;x\x07 [red]no[/red] \u202e"}))
    out = told(capsys, "dead")
    assert "\x1b]" not in out
    assert "\u202e" not in out
    assert "[red]no[/red]" in out


def test_json_has_the_same_for_other_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = make_run(run.parent / "dead", CUT, planned=9)
    write_trace(dead)
    failure = {"message": "nan", "tensor": "logp_new", "step": 2, "sample": 0, "position": 4}
    (dead / "failure.json").write_text(json.dumps(failure))
    data = json.loads(told(capsys, "dead", "--json"))
    assert [one["check"] for one in data["findings"]] == ["not-finite", "ended-early", "truncated-completions"]
    assert data["findings"][0]["grade"] == "invalid"
    assert data["findings"][0]["evidence"][0]["place"] == {"step": 2, "sample": 0, "position": 4}
    assert data["findings"][0]["evidence"][0]["up_to_token"] == "7+5=1"
    assert (data["state"], data["steps"], data["steps_planned"], data["steps_read"]) == ("stopped", 2, 9, [2])
    assert data["checks"] == [check.name for check in CHECKS]


def test_the_checks_are_listed_and_documented(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(check.name in told(capsys, "--checks") for check in CHECKS[:1])
    assert told(capsys, "--markdown").startswith("# What the doctor looks for")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which run? `dinghai doctor RUN`"),
        (("soud",), "there is no run soud here or in runs/; did you mean sound?"),
        ((".",), ". is a folder but not a run"),
        (("sound", "--checks"), "--checks and --markdown are about no run"),
        (("sound", "--update.lr", "3"), "--update.lr is not an argument of `dinghai doctor`"),
    ],
)
def test_wrong_input(run: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert main(["doctor", *arguments]) == 2
    assert message.replace("; did", "")[:30] in capsys.readouterr().err


def test_it_does_not_wait_for_torch(run: Path) -> None:
    code = (
        "import sys; from dinghai.cli import main; main(['doctor', 'sound']); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
