"""No address leads to a file outside of what is shown: not by its path, not by its numbers, not by a link on the disk.

Run: pytest tests/view/test_server_paths.py
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from asgi_client import HOST, Answered, request
from synthetic_run import make_run
from traversals import NUMBERS_THAT_ARE_NONE, SECRET, absolute, up_to

from dinghai.lens.doctor.case import Case
from dinghai.lens.metrics_file import load_metrics
from dinghai.trace import TraceReader
from dinghai.view.server.app import Live
from dinghai.view.server.guard import door
from dinghai.view.server.runs import Runs

PREFIXES = ["/", "/page/", "/api/runs/0/", "/api/runs/", "/api/"]


def ask_all(folders: Sequence[Path], targets: Sequence[str]) -> list[Answered]:
    async def ask() -> list[Answered]:
        live = Live(Runs(folders), door("127.0.0.1", None).on_port(8712))
        return [await request(live.app, target, [HOST]) for target in targets]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a secret beside it and two levels above."""
    top = tmp_path_factory.mktemp("top")
    run = make_run(top / "runs" / "addition-1", steps=2, prompts=2, hostile=[])
    for folder in (top, run.parent, run):
        (folder / "secret.txt").write_text(SECRET)
    return run


def test_no_spelling_of_a_path_leads_out(run: Path) -> None:
    spelled = [
        *up_to("secret.txt", 1),
        *up_to("secret.txt", 3),
        *up_to("etc/passwd", 9),
        *absolute(f"{run}/secret.txt"),
    ]
    spelled += [
        *absolute("/etc/passwd"),
        "secret.txt",
        "config.json",
        "metrics.jsonl",
        "trace/step-000001/complete.json",
    ]
    assert len(set(spelled)) >= 100
    targets = [prefix + one for prefix in PREFIXES for one in spelled]
    for target, answered in zip(targets, ask_all([run], targets), strict=True):
        assert answered.status in (400, 404, 414), target
        assert SECRET not in answered.body.decode("latin-1")
        assert b"root:" not in answered.body
        assert str(run.parent).encode() not in answered.body


def test_run_step_update_and_prompt_are_numbers_and_nothing_else(run: Path) -> None:
    asked = ["/api/runs/{}/overview", "/api/runs/{}/traced"]
    asked += ["/api/runs/0/census?step={}", "/api/runs/0/census?step=1&update={}", "/api/runs/0/groups?step={}"]
    asked += ["/api/runs/0/group?step={}&group=0", "/api/runs/0/group?step=1&group={}"]
    targets = [one.format(number.replace(" ", "%20")) for one in asked for number in NUMBERS_THAT_ARE_NONE]
    assert len(targets) >= 100
    for target, answered in zip(targets, ask_all([run], targets), strict=True):
        assert answered.status in (400, 404, 414), target


@pytest.mark.parametrize(
    "query", ["", "?step=1&step=2", "?step=1&x=1", "?x=1", "?step", "?step=&", "?step=1&folder=/etc", "?Step=1"]
)
def test_a_query_has_what_its_address_needs_and_nothing_else(run: Path, query: str) -> None:
    assert ask_all([run], [f"/api/runs/0/groups{query}"])[0].status == 400


def test_only_the_named_files_are_served(run: Path) -> None:
    names = ["report.html", "report.js", "__init__.py", "live.html", "", ".", "base.css/", "base.css.map", "BASE.CSS"]
    for answered in ask_all([run], [f"/page/{name}" for name in names]):
        assert answered.status == 404


# --- links ---


def linked(run: Path, name: str) -> Path:
    """A copy of the run in which `name` was replaced by a link to what it was, outside."""
    copy = run.parent / f"linked-{name.replace('/', '-')}"
    shutil.copytree(run, copy)
    outside = run.parent.parent / f"outside-{name.replace('/', '-')}"
    shutil.move(copy / name, outside)
    (copy / name).symlink_to(outside)
    return copy


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "trace"])
def test_a_link_out_of_the_run_is_not_followed(run: Path, name: str) -> None:
    answered = ask_all([linked(run, name)], ["/api/runs/0/overview"])[0]
    assert answered.status == 409
    assert "not followed" in answered.json()["error"]


def test_a_linked_trace_shows_nothing_of_itself(run: Path) -> None:
    copy = linked(run, "trace") if not (run.parent / "linked-trace").exists() else run.parent / "linked-trace"
    targets = ["traced", "census", "census?step=1", "groups?step=1", "group?step=1&group=0"]
    assert {one.status for one in ask_all([copy], [f"/api/runs/0/{target}" for target in targets])} == {409}


def test_a_linked_step_is_left_out_and_said(run: Path) -> None:
    copy = linked(run, "trace/step-000002")
    traced, groups, census = ask_all([copy], [f"/api/runs/0/{x}" for x in ("traced", "groups?step=2", "census?step=2")])
    assert [one["step"] for one in traced.json()["steps"]] == [1]
    assert "step 2 is not shown" in " ".join(traced.json()["notes"])
    assert groups.status == census.status == 409
    # Nor do the doctor's checks read it, which the overview asks.
    assert Case(copy, {}, load_metrics(copy / "metrics.jsonl")).steps == [1]
    (copy.parent.parent / "why.json").write_text('{"message": "outside"}', encoding="utf-8")
    (copy / "failure.json").symlink_to(copy.parent.parent / "why.json")
    assert ask_all([copy], ["/api/runs/0/overview"])[0].status == 409


def test_a_linked_file_of_a_step_is_not_followed(run: Path) -> None:
    name = min(TraceReader(run / "trace").marker(1).files)
    copy = linked(run, f"trace/step-000001/{name}")
    for answered in ask_all([copy], ["/api/runs/0/groups?step=1", "/api/runs/0/group?step=1&group=0"]):
        assert answered.status == 409
        assert "not followed" in answered.json()["error"]


def test_a_linked_tokenizer_is_not_read(run: Path) -> None:
    copy = linked(run, "model")
    group = ask_all([copy], ["/api/runs/0/group?step=1&group=0"])[0]
    assert group.json()["samples"][0]["text"][0].startswith("⟨")


def test_a_link_among_runs_is_listed_only_where_it_stays_among_them(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(run, folder / "here")
    (folder / "again").symlink_to(folder / "here")
    (folder / "elsewhere").symlink_to(run)
    heads = ask_all([folder], ["/api/runs"])[0].json()
    assert [head["name"] for head in heads["runs"]] in (["here"], ["again"])
    assert "elsewhere is a link" in " ".join(heads["notes"])


def test_a_link_that_the_user_named_is_a_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(run)
    heads, overview = ask_all([tmp_path / "mine"], ["/api/runs", "/api/runs/0/overview"])
    assert heads.json()["runs"][0]["name"] == overview.json()["name"] == "mine"
