"""What the pages hold of a replay: the sums of `lens.replay_page`, and of each prompt that is shown the very tokens
that another bound or another rule decides otherwise; in the report, and from the live page's addresses.

Run: pytest tests/view/test_replay_view.py
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from asgi_client import HOST, Answered, Lifespan, request
from synthetic_run import read_data

from dinghai.lens.completions import Limits, group, group_heads
from dinghai.lens.replay_page import replay_group, replay_page
from dinghai.trace import TraceReader
from dinghai.view.excerpt import EXTENTS, NAMED_GROUPS, NAMED_STEPS, Excerpt
from dinghai.view.replay_data import replay_differences, replay_sums
from dinghai.view.report import write_report
from dinghai.view.server.app import Live
from dinghai.view.server.guard import door
from dinghai.view.server.runs import Runs


@pytest.fixture(scope="module")
def sums(run_folder: Path) -> dict[str, Any]:
    found = replay_sums(run_folder)
    assert found is not None
    return found


def otherwise(recorded: list[int], one: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """n -> (region, effect) of the tokens whose effect is not the recorded one."""
    pairs = zip(one["region"], one["effect"], recorded, strict=True)
    return {n: (region, effect) for n, (region, effect, before) in enumerate(pairs) if effect != before}


def effects_of(shown: dict[str, Any], update: int) -> list[int]:
    found: list[int] = []
    for sample in shown["samples"]:
        if str(update) in sample["updates"]:
            effect = sample["updates"][str(update)]["effect"]
            found += effect if isinstance(effect, list) else [effect] * len(sample["text"])
    return found


def spread(rows: list[list[Any]]) -> dict[int, tuple[int, int]]:
    return {n: (one, other) for one, other, places in rows for n in places}


# --- the report ---


def test_the_report_holds_the_replay_of_its_run(run_folder: Path, page: str) -> None:
    data = read_data(page)
    assert data["replay"] == json.loads(json.dumps(replay_page(run_folder)))
    updates = {f"{key}/{u}" for key, one in data["groups"].items() for s in one["samples"] for u in s["updates"]}
    assert set(data["replay_groups"]) == updates


def test_the_tokens_that_differ_are_those_of_the_replay(run_folder: Path, sums: dict[str, Any]) -> None:
    """Of each rule and of each bound, token for token, as one prompt by itself is replayed."""
    reader, step = TraceReader(run_folder / "trace"), 4
    shown = [group(reader, step, head["group"]) for head in group_heads(reader, step)[:3]]
    found = replay_differences(run_folder, sums, shown)
    moved = differ = 0
    for one in shown:
        for update in reader.updates(step):
            told = found[f"{step}/{one['group']}/{update}"]
            whole = replay_group(run_folder, step, one["group"], update, sums)
            assert set(told["rules"]) == set(whole["rules"])
            for key, rows in told["rules"].items():
                assert spread(rows) == otherwise(effects_of(one, update), whole["rules"][key]), key
                differ += len(spread(rows))
            pairs = enumerate(zip(whole["grid"]["side"], whole["grid"]["kept_from"], strict=True))
            assert spread(told["grid"]) == {n: pair for n, pair in pairs if pair[1] is not None}
            moved += len(spread(told["grid"]))
    assert differ > 50
    assert moved > 50


def test_a_prompt_that_is_cut_keeps_the_fates_of_its_tokens(run_folder: Path, sums: dict[str, Any]) -> None:
    """A rule that judges by whole completions is asked about whole ones, however much of them is shown."""
    reader, update = TraceReader(run_folder / "trace"), 3
    number = group_heads(reader, 4)[0]["group"]
    cut = group(reader, 4, number, limits=Limits(3, 10))
    found = replay_differences(run_folder, sums, [cut])[f"4/{number}/{update}"]
    whole = group(reader, 4, number)
    all_of_it = replay_differences(run_folder, sums, [whole])[f"4/{number}/{update}"]
    kept: dict[int, int] = {}
    at = shown = 0
    for sample in whole["samples"]:
        if str(update) in sample["updates"]:
            if any(one["id"] == sample["id"] for one in cut["samples"]):
                kept |= {at + place: shown + place for place in range(10)}
                shown += 10
            at += len(sample["text"])
    for key, rows in all_of_it["rules"].items():
        expected = {kept[n]: pair for n, pair in spread(rows).items() if n in kept}
        assert spread(found["rules"][key]) == expected, key


def test_the_report_holds_the_prompts_that_the_page_points_to(run_folder: Path) -> None:
    named = [(5, 6), (3, 2), (99, 0), (3, 2), (5, 77)]
    taken = Excerpt(run_folder, None, {}, None, named)
    found = taken.take(EXTENTS[1])
    assert {"5/6", "3/2"} <= set(found["groups"])
    assert [head["group"] for head in found["heads"]["5"]] == [6]
    assert "of 2 more steps the prompts that the page points to" in found["traced"]["notes"][0]
    many = Excerpt(run_folder, None, {}, None, [(step, one) for step in range(1, 7) for one in range(8)])
    assert len(many.steps) <= 3 + NAMED_STEPS
    assert len(many.take(EXTENTS[1])["groups"]) <= 3 * 4 + NAMED_GROUPS


def test_what_cannot_be_replayed_is_said_and_all_else_is_shown(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "unknown"))
    config = json.loads((run / "config.json").read_text())
    config["objective"]["rule"] = "of_my_own"
    (run / "config.json").write_text(json.dumps(config))
    data = read_data(write_report(run).read_text())
    assert data["replay"] is None
    assert data["groups"]
    assert any("the run cannot be replayed" in note and "of_my_own" in note for note in data["overview"]["notes"])
    shutil.rmtree(run / "trace")
    data = read_data(write_report(run).read_text())
    assert data["replay"] is None
    assert not any("replayed" in note for note in data["overview"]["notes"])  # without a trace that is no news


# --- the live page ---


def ask(folder: Path, *targets: str) -> list[Answered]:
    answers: list[Answered] = []

    async def talk() -> None:
        live = Live(Runs([folder]), door("127.0.0.1", None).on_port(8712), look_seconds=0.0)
        async with Lifespan(live.app):
            answers.extend([await request(live.app, target, [HOST]) for target in targets])

    asyncio.run(asyncio.wait_for(talk(), 60))
    return answers


def test_the_live_page_tells_the_same_as_the_report(run_folder: Path, page: str) -> None:
    data, run = read_data(page), "/api/runs/0"
    key = next(iter(data["replay_groups"]))
    step, number, update = key.split("/")
    replay, one = ask(
        run_folder,
        f"{run}/replay",
        f"{run}/replay_group?step={step}&group={number}&update={update}&recorded=6",
    )
    assert replay.json() == data["replay"]
    assert one.json() == data["replay_groups"][key]


def test_it_refuses_what_is_not_there(run_folder: Path) -> None:
    asked = [
        ("replay", 200),
        ("replay?step=1", 400),
        ("replay_group", 400),
        ("replay_group?step=1&group=0&update=0", 400),
        ("replay_group?step=1&group=0&update=0&recorded=-6", 400),
        ("replay_group?step=1&group=0&update=0&recorded=6&x=1", 400),
        ("replay_group?step=99&group=0&update=0&recorded=6", 404),
        ("replay_group?step=1&group=99&update=0&recorded=6", 404),
        ("replay_group?step=1&group=0&update=99&recorded=6", 404),
        ("replay_group?step=1&group=0&update=0&recorded=5", 404),  # places in a grid that is not kept
    ]
    for (target, status), answered in zip(
        asked, ask(run_folder, *(f"/api/runs/0/{one}" for one, _ in asked)), strict=True
    ):
        assert answered.status == status, target
        assert ("error" in answered.json()) == (status != 200)


def test_a_linked_step_is_not_replayed(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "runs" / "linked"))
    shutil.move(run / "trace" / "step-000002", tmp_path / "outside")
    (run / "trace" / "step-000002").symlink_to(tmp_path / "outside")
    answered = ask(run, "/api/runs/0/replay")[0]
    assert answered.status == 409
    assert "not followed" in answered.json()["error"]
