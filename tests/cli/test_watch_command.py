"""`dinghai watch`: which folders it takes, what it hands to the server, and what it says when that cannot be.

The server is a stand-in here; tests/view/test_server_socket.py runs the command with the real one.
Run: pytest tests/cli/test_watch_command.py
"""

from __future__ import annotations

import ast
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import dinghai
from dinghai.cli import main


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Runs in an empty folder; notes what the server is given."""
    monkeypatch.chdir(tmp_path)
    seen = SimpleNamespace(folders=None, options=None)

    def serve(folders: list[Path], **options: Any) -> None:
        seen.folders, seen.options = folders, options

    module = ModuleType("dinghai.view.server")
    vars(module)["serve"] = serve
    monkeypatch.setitem(sys.modules, "dinghai.view.server", module)
    return seen


def make_run(name: str) -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_stand_in_is_called_like_the_real_one() -> None:
    """Read from the source, since importing it would bring in the server."""
    tree = ast.parse((Path(dinghai.__file__).parent / "view/server/watch.py").read_text(encoding="utf-8"))
    found = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "serve")
    assert [a.arg for a in found.args.args] == ["folders", "host", "port", "token", "open_browser"]


def test_runs_are_named_by_path_or_by_name_under_runs(served: SimpleNamespace) -> None:
    one, other = make_run("addition-1"), make_run("addition-2")
    assert main(["watch", str(one), "addition-2"]) == 0
    assert served.folders == [one, other]
    assert served.options == {"host": "127.0.0.1", "port": None, "token": None, "open_browser": False}


def test_a_folder_that_holds_runs_or_will(served: SimpleNamespace) -> None:
    make_run("addition-1")
    Path("empty").mkdir()
    assert main(["watch", "runs", "empty"]) == 0
    assert served.folders == [Path("runs"), Path("empty")]


def test_the_options_go_to_the_server(served: SimpleNamespace) -> None:
    run = make_run("addition-1")
    words = ["--port", "9000", "--host", "0.0.0.0", "--token", "a long enough token", "--open"]
    assert main(["watch", str(run), *words]) == 0
    assert served.options == {"host": "0.0.0.0", "port": 9000, "token": "a long enough token", "open_browser": True}


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "RUN"),
        (["adition-1"], "did you mean addition-1?"),
        (["runs/addition-1", "--port", "many"], "--port"),
        (["runs/addition-1", "--prot", "9000"], "--prot"),
    ],
)
def test_wrong_input_is_two_lines_and_status_2(
    served: SimpleNamespace, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    make_run("addition-1")
    assert main(["watch", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 2
    assert served.folders is None


@pytest.mark.parametrize("words, said", [(["--host", "0.0.0.0"], "token"), (["--token", "short"], "guessed")])
def test_what_the_server_refuses_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["watch", str(make_run("addition-1")), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_port_that_is_taken_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["watch", str(make_run("addition-1")), "--port", port]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err
