"""The command line: what each command calls, its exit status, and its one or two lines when something is wrong.

The commands behind it are stand-ins here, so that only the command line is under test.
Run: pytest tests/cli/test_cli.py
"""

import ast
import errno
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import dinghai
from dinghai import __version__
from dinghai.cli import main
from dinghai.config.load import all_settings
from dinghai.config.settings import RewardSettings
from dinghai.errors import InputError, RunFailed


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Runs in an empty folder with stand-ins for the rooms behind; `fail` makes training raise."""
    monkeypatch.chdir(tmp_path)
    seen = SimpleNamespace(train=None, resume=None, report=None, fail=None)

    def parse_reward(text):
        source, _, weight = text.partition("*")
        return RewardSettings(source=source, weight=float(weight or 1))

    def train(settings, allowed_rewards, rule_code):
        seen.train = (settings, allowed_rewards)
        if seen.fail is not None:
            raise seen.fail

    def resume(run_folder, allowed_rewards, rewards, rule_code):
        seen.resume = (run_folder, allowed_rewards, rewards)

    def write_report(run_folder):
        seen.report = run_folder
        return run_folder / "report.html"

    stand_ins = {
        "dinghai.train.run": {"train": train, "resume": resume},
        "dinghai.tasks.rewards": {"parse_reward": parse_reward},
        "dinghai.view.report": {"write_report": write_report},
    }
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.parametrize(
    "file, function, parameters",
    [
        ("train/run.py", "train", ["settings", "allowed_rewards"]),
        ("train/run.py", "resume", ["run_folder", "allowed_rewards", "rewards"]),
        ("tasks/rewards.py", "parse_reward", ["text"]),
        ("view/report.py", "write_report", ["run_folder"]),
    ],
)
def test_the_stand_ins_are_called_like_the_real_ones(file, function, parameters):
    """Read from the source, since importing it would bring in torch."""
    tree = ast.parse((Path(dinghai.__file__).parent / file).read_text(encoding="utf-8"))
    found = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    names = [a.arg for a in found.args.args]
    required = names[: len(names) - len(found.args.defaults)]
    assert required == parameters


def make_run(name: str) -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def failing(capsys, *arguments: str) -> tuple[int, list[str]]:
    """(exit status, the lines on stderr), nothing being on stdout."""
    status = main(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("dinghai: ") for line in lines)
    return status, lines


# --- what is called --------------------------------------------------------------------------------------------------


def test_train_without_arguments(calls):
    assert main(["train"]) == 0
    settings, allowed = calls.train
    assert [r.source for r in settings.rewards] == ["task"]
    assert allowed == set()


def test_train_with_a_file_overrides_and_rewards_in_any_order(calls):
    Path("my.toml").write_text("[update]\nlr = 0.5\nepochs = 3\n")
    arguments = ["--update.lr", "0.25", "--reward", "task*2", "my.toml", "--rollout.dynamic-sampling"]
    assert main(["train", *arguments, "--reward=my.py:brevity*0.2"]) == 0
    settings, allowed = calls.train
    assert (settings.update.lr, settings.update.epochs, settings.rollout.dynamic_sampling) == (0.25, 3, True)
    assert [(r.source, r.weight) for r in settings.rewards] == [("task", 2), ("my.py:brevity", 0.2)]
    assert allowed == {"my.py:brevity"}


def test_a_negative_value_is_a_value(calls, capsys):
    status, lines = failing(capsys, "train", "--update.lr", "-1")
    assert (status, lines) == (2, ["dinghai: --update.lr is -1, but must be a number > 0"])


def test_resume_by_name_and_by_path(calls):
    folder = make_run("addition-1")
    assert main(["resume", "addition-1"]) == 0
    assert calls.resume == (folder, set(), None)
    assert main(["resume", str(folder), "--reward", "my.py:f"]) == 0
    assert calls.resume == (folder, {"my.py:f"}, [RewardSettings(source="my.py:f")])


def test_report_prints_where_it_is(calls, capsys):
    folder = make_run("addition-1")
    assert main(["report", "addition-1"]) == 0
    assert calls.report == folder
    assert capsys.readouterr().out == "runs/addition-1/report.html\n"


def test_a_folder_of_the_same_name_that_is_no_run_does_not_hide_the_run(calls):
    folder = make_run("addition")
    Path("addition").mkdir()
    assert main(["report", "addition"]) == 0
    assert calls.report == folder


# --- the user's input is wrong: 2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["trian"], "there is no command trian; did you mean train?"),
        (["zzz"], "there is no command zzz; there are train, resume, report"),
        (["resume"], "the following arguments are required: RUN; see `dinghai resume --help`"),
        (["train", "a.toml", "b.toml"], "b.toml is not an argument of `dinghai train`; see `dinghai train --help`"),
        (["train", "missing.toml"], "missing.toml: no such file"),
        (["train", "--reward"], "argument --reward: expected one argument; see `dinghai train --help`"),
        (["train", "--updat.lr", "3"], "--updat.lr is not a setting; did you mean update.lr or cold_start.lr?"),
        (["train", "--helpp"], "--helpp is not a setting; see `dinghai train --help`"),
        (["resume", "addition-2"], "there is no run addition-2 here or in runs/; did you mean addition-1?"),
        (["resume", "zzz"], "there is no run zzz here or in runs/; the newest is addition-1"),
        (["resume", "runs/addition-2"], "there is no run runs/addition-2 here or in runs/; did you mean addition-1?"),
        (["report", "runs"], "runs is a folder but not a run: it holds no config.json"),
        (["resume", "addition-1", "--update.lr", "3"], "--update.lr: a resumed run keeps its settings; to change them"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(calls, capsys, arguments, expected):
    make_run("addition-1")
    status, lines = failing(capsys, *arguments)
    assert status == 2
    assert len(lines) == 1
    assert expected in lines[0]
    assert calls.train is calls.resume is None


def test_a_message_of_two_lines_has_two(calls, capsys):
    assert failing(capsys, "train", "--update.lr", "x", "--update.epochs", "0", "--run.steps", "0") == (
        2,
        [
            "dinghai: --run.steps is 0, but must be a whole number >= 1",
            "dinghai: --update.epochs is 0, but must be a whole number >= 1 (and 1 more)",
        ],
    )


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "a\x07b", "a\x9bb", "a\u202eb", "a\rb", "x\x1b]0;title\x07"])
@pytest.mark.parametrize("place", ["command", "key", "value", "name", "toml", "run", "argument"])
def test_control_characters_are_never_echoed(calls, capsys, hostile, place):
    make_run("a" + hostile)
    arguments = {
        "command": [hostile],
        "key": ["train", f"--{hostile}", "1"],
        "value": ["train", "--update.lr", hostile],
        "name": ["train", "--run.name", f"{hostile}/"],
        "toml": ["train", hostile + ".toml"],
        "run": ["resume", "a" + hostile + "x"],
        "argument": ["train", "a", hostile],
    }[place]
    status = main(arguments)
    _, err = capsys.readouterr()
    assert status == 2
    assert "\\x" in err or "\\u" in err or "\\r" in err
    assert not set(err) & set("\x1b\x07\x9b\u202e\r")


# --- the run failed: 1 -----------------------------------------------------------------------------------------------


def noted(error: BaseException) -> BaseException:
    error.add_note("run: runs/addition-1")
    return error


def caused_by_full_disk() -> Exception:
    error = RuntimeError("PytorchStreamWriter failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    "error, status, expected",
    [
        (RunFailed("step 3: the loss is NaN\nlower update.lr"), 1, ["step 3: the loss is NaN", "lower update.lr"]),
        (InputError("my.py has no function f"), 2, ["my.py has no function f"]),
        (
            noted(KeyboardInterrupt()),
            130,
            ["interrupted; `dinghai resume runs/addition-1` goes on from the last checkpoint"],
        ),
        (KeyboardInterrupt(), 130, ["interrupted; `dinghai resume RUN` goes on from the last checkpoint"]),
        (
            noted(OSError(errno.ENOSPC, "No space left on device", "x")),
            1,
            ["the disk is full; free space, then `dinghai resume runs/addition-1` goes on from the last checkpoint"],
        ),
        (
            caused_by_full_disk(),
            1,
            ["the disk is full; free space, then `dinghai resume RUN` goes on from the last checkpoint"],
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs"),
            1,
            ["runs: Permission denied; `--debug` shows where this came up"],
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
            1,
            ["the GPU is out of memory; lower update.micro_batch_tokens or rollout.batch_size"],
        ),
    ],
)
def test_a_failed_run_says_what_to_do(calls, capsys, error, status, expected):
    calls.fail = error
    assert failing(capsys, "train") == (status, [f"dinghai: {line}" for line in expected])


def test_an_unexpected_error_is_two_lines_without_a_traceback(calls, capsys):
    calls.fail = ZeroDivisionError("division by zero\nsecond line \x1b[31m")
    status, lines = failing(capsys, "train")
    assert status == 1
    assert lines[0].startswith("dinghai: ZeroDivisionError: division by zero (test_cli.py, line ")
    assert lines[1:] == ["dinghai: this is a bug in Dinghai, please report it; `--debug` shows the traceback"]


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback(calls, capsys, arguments):
    calls.fail = ZeroDivisionError("division by zero")
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "dinghai: this is a bug in Dinghai, please report it"


# --- help ------------------------------------------------------------------------------------------------------------


def test_no_argument_prints_the_short_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: dinghai")
    assert len(out.splitlines()) <= 25


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dinghai {__version__}\n"


@pytest.mark.parametrize("columns", ["40", "80", "100", "300"])
def test_the_help_of_train_lists_every_setting_and_fits_the_screen(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    settings = out[out.index("[run]") :]
    assert max(len(line) for line in settings.splitlines()) <= min(100, max(80, int(columns)))
    words = " ".join(settings.split())
    for setting in all_settings():
        if setting.key != "rewards":
            assert f"--{setting.key} {setting.default}" in settings
            assert " ".join(setting.description.split()) in words
    assert '[advantage, kind = "gae"]  PPO: generalised advantage estimation' in settings


def test_the_commands_and_options_are_these_and_no_others(capsys):
    """A frozen surface: whoever adds or removes one changes this list on purpose."""
    shown = {}
    for command in ("", "train", "resume", "report", "watch", "explain", "rules"):
        main([command, "--help"] if command else ["--help"])
        head = capsys.readouterr().out.split("\n[run]")[0].split("examples:")[0]
        shown[command] = sorted(set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", head, re.MULTILINE)))
    assert shown == {
        "": ["--debug", "--help", "--version"],
        "train": ["--help", "--recipe", "--reward", "--rule-file"],
        "resume": ["--help", "--reward", "--rule-file"],
        "report": ["--figures", "--help"],
        "watch": ["--help", "--host", "--open", "--port", "--token"],
        "explain": [
            *("--advantage", "--help", "--lang", "--open", "--page", "--probability", "--ratio", "--rule"),
            "--rule-file",
        ],
        "rules": ["--help", "--markdown", "--rule-file"],
    }
