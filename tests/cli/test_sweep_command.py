"""`dinghai sweep`: refusals, the dry run, and a sweep that is interrupted and goes on to the same table.

Run: pytest tests/cli/test_sweep_command.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dinghai.cli import main

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("sweep", "train")]
from sweep_trials import write_rewards  # noqa: E402

TINY = """
[run]
steps = 3
name = "left-out"
[model]
hidden_size = 16
heads = 2
context = 64
[task]
digits = 2
held_out = 8
[cold_start]
steps = 3
batch_size = 8
[rollout]
prompts = 3
group_size = 4
max_new_tokens = 16
[checkpoint]
every = 1
"""
VARY = ["--vary", "objective.eps_high=0.1,0.2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "update.lrr=1"], "--vary update.lrr: there is no such setting; did you mean update.lr or"),
        (["--vary", "update.lr=1e-4:1e-3"], "update.lr has a range, of which a grid knows no values"),
        (["--update.lrr", "1"], "--update.lrr is not a setting; did you mean"),
        (["--search", "random"], "--search random and --trials N go together"),
        (["--search", "random", "--trials", "3"], "--search random draws the values of what --vary names"),
        (["--seeds", "0"], "--seeds is 0, but must be at least 1"),
        (["--run.name", "x"], "run.name and run.folder follow from the sweep: use --name and --folder"),
        (["--name", "a/b"], "--name must be one folder's name"),
        (["missing.toml"], "missing.toml: no such file"),
        (["."], "is no sweep: it holds no plan.json"),
        (["--reward", "my.py:f", "--vary", "update.epochs=0"], "--update.epochs is 0, but must be"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["tiny.toml"]


def test_without_ray_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.sweep.ray_pool.find_spec", lambda name: None)
    assert main(["sweep", "--on", "ray", *VARY]) == 2
    assert "needs Ray Tune, which is not installed: pip install 'dinghai[ray]'" in capsys.readouterr().err


def test_a_dry_run_lists_the_trials_and_writes_nothing(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    arguments = ["sweep", "tiny.toml", *VARY, "--seeds", "2", "--update.epochs", "1", "--update.minibatches", "1"]
    assert main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sweep sweeps/addition-eps_high: 2 settings x 2 seeds = 4 runs, 2 at a time"
    assert lines[1] == "compared with eps_high 0.2 (the settings without --vary)"
    assert lines[2].startswith("warning: one update on each batch of rollouts: every ratio is 1")
    assert lines[3:] == [f"  eps_high-{eps}_seed-{seed}" for eps in (0.1, 0.2) for seed in (0, 1)]
    assert sorted(path.name for path in here.iterdir()) == ["tiny.toml"]


def test_interrupted_it_goes_on_to_the_same_table(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """Ctrl-C comes in the second step of the first run; an undisturbed sweep of two processes has the same bytes."""
    reward = ["--reward", f"{write_rewards(here / 'rewards')}:interrupts"]
    sweep = ["sweep", "tiny.toml", *VARY, "--seeds", "1", *reward]
    assert main([*sweep, "--name", "one", "--workers", "1"]) == 130
    said = capsys.readouterr()
    assert said.err == "dinghai: interrupted; `dinghai sweep sweeps/one` goes on with what is not done\n"
    assert not (here / "sweeps/one/sweep.md").exists()
    begun = here / "sweeps/one/eps_high-0.1_seed-0"
    assert (begun / "config.json").exists()
    assert not (begun / "model").exists()

    assert main(["sweep", "sweeps/one", "--seeds", "2"]) == 2
    assert "goes on with the settings that it has" in capsys.readouterr().err
    assert main(["sweep", "sweeps/one"]) == 2
    assert "which is code: if you trust it, name it again: --reward" in capsys.readouterr().err
    assert main(["sweep", "sweeps/one", *reward, "--workers", "1"]) == 0
    assert "held_out/accuracy at the end, over 1 seed (n:" in capsys.readouterr().out
    assert "resumed after step 1" in (here / "sweeps/one/eps_high-0.1_seed-0.log").read_text("utf-8")

    assert main([*sweep, "--name", "other", "--workers", "2"]) == 0
    for name in ("sweep.md", "sweep.csv", "sweep.svg", "plan.json", "sweep.json"):
        assert (here / "sweeps/one" / name).read_bytes() == (here / "sweeps/other" / name).read_bytes(), name
    # A metric that does not exist is an error at once, since runs are there.
    capsys.readouterr()
    assert main([*sweep, "--name", "other", "--metric", "held_out/acuracy"]) == 2
    assert "did you mean held_out/accuracy?" in capsys.readouterr().err
