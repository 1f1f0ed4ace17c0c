"""`dinghai replay`: what it accepts, what it prints and writes, and how it refuses.

Run: pytest tests/cli/test_replay_command.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lens"))  # the recorded runs of the tests of replays
from recorded_runs import recorded

from dinghai.cli import main
from dinghai.commands.replay import read_steps


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("runs"), "run", steps=2)


@pytest.fixture
def told(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs the command on the run: (exit status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "120")

    def ask(*arguments: str) -> tuple[int, str, str]:
        status = main(["replay", str(run), *arguments])
        return status, *capsys.readouterr()

    return ask


def test_without_candidates_it_shows_papers_bounds_and_other_rules(told) -> None:
    status, out, err = told()
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    for rule in ("importance_sampling", "cispo", "gspo", "sapo", "dppo_tv"):
        assert any(rule in row for row in rows)
    assert "(DAPO)" in out
    assert "the run's own settings reproduce all" in out
    assert "A replay is first-order." in out
    assert "update 3" in out
    assert "stopped → kept" in out


def test_lists_of_values_make_candidates_each_with_each(told) -> None:
    _, out, _ = told("--eps_low", "0.1,0.2", "--eps-high=0.2,0.4", "--json")
    found = json.loads(out)
    labels = [one["label"] for one in found["candidates"]]
    assert labels == [f"grpo eps_low={low} eps_high={high}" for low in (0.1, 0.2) for high in (0.2, 0.4)]
    own, same = found["own"], found["candidates"][2]
    assert same["sums"] == own["sums"]
    assert (same["total"]["cosine"], same["total"]["differ"]) == (pytest.approx(1), 0)
    assert same["first_change"] is None
    other = found["candidates"][0]
    assert other["total"]["stopped_fraction"] > own["total"]["stopped_fraction"]
    assert other["total"]["differ"] == sum(one["differ"] for one in other["by_update"]) > 0
    assert other["examples"][0].keys() >= {"step", "update", "group", "sample", "position", "own", "other"}
    assert found["reproduced"] == found["tokens"]


def test_rules_ratios_and_corrections(told) -> None:
    _, out, _ = told("--rule", "cispo", "--cap", "1.5,3", "--correction", "tis.cap=2", "--json")
    assert [one["label"] for one in json.loads(out)["candidates"]] == ["cispo cap=1.5 floor=0", "cispo cap=3 floor=0"]
    _, out, _ = told("--ratio", "sequence", "--json")
    only = json.loads(out)["candidates"][0]
    assert (only["ratio"], only["reduction"]) == ("sequence", "seq-mean-token-mean")
    assert any("on another scale than the ratio of a sequence" in text for text in only["warnings"])


def test_steps_are_chosen(told) -> None:
    _, out, _ = told("--steps", "2-5", "--json")
    found = json.loads(out)
    assert (found["steps"], found["recorded_steps"]) == ([2], 2)
    assert read_steps("1-3,7, 5") == [1, 2, 3, 5, 7]


def test_a_rule_of_the_users_is_replayed_with_its_file(told, tmp_path: Path, monkeypatch) -> None:
    from dinghai.objective import RULES

    file = tmp_path / "own.py"
    file.write_text(
        "from dinghai.objective import NoParameters, register_rule\n"
        "def weight(x, p):\n    return x.importance_weighted * 0.5\n"
        "@register_rule('halved_[red]', weight=weight, title='t', paper='p', formula='f', zero='never')\n"
        "def surrogate(x, p):\n    return x.importance_weighted * 0.5\n"
    )
    monkeypatch.setattr("dinghai.objective.registry.RULES", RULES)
    try:
        status, out, err = told("--rule", "halved_[red]", "--rule-file", str(file))
    finally:
        RULES.pop("halved_[red]", None)
    assert (status, err) == (0, "")
    assert "halved_[red]" in out  # no markup
    assert "50.0%" in out


def test_a_figure_is_written_and_is_the_same_each_time(told, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        status, out, _ = told("--rule", "sapo,spo", "--figure", str(file))
        assert status == 0
        assert str(file) in out.replace("\n", "")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"cosine with the run" in files[0].read_bytes()


def test_the_page_is_the_report_and_may_lie_elsewhere(told, run: Path, tmp_path: Path, monkeypatch) -> None:
    def write_report(folder: Path) -> Path:
        (folder / "report.html").write_text("page")
        return folder / "report.html"

    report = ModuleType("dinghai.view.report")
    vars(report)["write_report"] = write_report
    monkeypatch.setitem(sys.modules, "dinghai.view.report", report)
    assert f"{run / 'report.html'}#replay" in told("--rule", "sapo", "--page")[1].replace("\n", "")
    target = tmp_path / "replay.html"
    assert f"{target}#replay" in told("--rule", "sapo", "--page", str(target))[1].replace("\n", "")
    assert target.read_text() == "page"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--eps_hihg", "0.3"], "rule 'grpo' has no parameter 'eps_hihg'; did you mean 'eps_high'?"),
        (["--eps_high", "wide"], "--eps_high is 'wide', but must be a number, or several with a comma between"),
        (["--eps_high", "-1"], "eps_high must be a number above 0"),
        (["--rule", "gppo"], "unknown rule 'gppo'; did you mean"),
        (["--rule", "cispo,"], "--rule is 'cispo,', but must be a name"),
        (["--ratio", "word"], "rule 'grpo' has no ratio 'word'"),
        (["--correction", "tiss"], "unknown rollout correction 'tiss'; did you mean 'tis'?"),
        (["--correction", "tis.cap"], "--correction is 'tis.cap', but must be a name with or without a parameter"),
        (["--steps", "5-1"], "--steps is '5-1', but must be steps or ranges of them"),
        (["--steps", "9"], "none of the steps asked for is recorded: the trace holds 2 steps, 1 to 2"),
        (["--figure", "replay.pdf"], "--figure is 'replay.pdf', but must end in .svg or .png"),
        (["--page", "/nowhere/replay.html"], "there is no folder '/nowhere'"),
        (["--eps_low", ",".join(str(k / 100) for k in range(1, 62))], "these values make 61 combinations; 60 at most"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value[-1]) < 30 else "",
)
def test_what_is_wrong_is_said_in_a_line_or_two(told, arguments: list[str], says: str) -> None:
    status, out, err = told(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") <= 2


def test_a_run_without_a_trace_is_told_so(capsys, run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert main(["replay", str(tmp_path)]) == 2
    assert "has no recorded step to replay: was trace.enabled false?" in capsys.readouterr().err
