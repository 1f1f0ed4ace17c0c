"""What the live page's server tells: the same as the report's makers say, of runs that grow, die, are damaged or go.

Run: pytest tests/view/test_server_data.py
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi_client import HOST, Answered, Lifespan, request, scope_of
from synthetic_run import EFFECTS, REGIONS, make_step, write_step

from dinghai.files import json_line
from dinghai.lens.completions import group_heads
from dinghai.trace import TraceReader, TraceWriter
from dinghai.view.overview import overview
from dinghai.view.server.answers import Answers, Busy, as_answer
from dinghai.view.server.app import Live
from dinghai.view.server.guard import HEADERS, door
from dinghai.view.server.runs import Runs

Ask = Callable[..., Awaitable[Answered]]


def with_server(folders: list[Path], talk: Callable[[Ask, Live], Awaitable[None]]) -> None:
    """Runs `talk(ask, live)` against a server of these folders that looks at the disk for every request."""

    async def run() -> None:
        live = Live(Runs(folders), door("127.0.0.1", None).on_port(8712), look_seconds=0.0)

        async def ask(target: str, *headers: tuple[str, str], method: str = "GET") -> Answered:
            return await request(live.app, target, [HOST, *headers], method)

        async with Lifespan(live.app):
            await talk(ask, live)

    asyncio.run(asyncio.wait_for(run(), 60))


def ask_once(folder: Path, *targets: str) -> list[Answered]:
    answers: list[Answered] = []

    async def talk(ask: Ask, live: Live) -> None:
        answers.extend([await ask(target) for target in targets])

    with_server([folder], talk)
    return answers


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "addition-3"))


def append_metrics(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)


def grow(run: Path, step: int) -> None:
    """One more step, as the training loop leaves it: the trace first, then the line of metrics."""
    random = np.random.default_rng(step)
    trace = TraceWriter(run / "trace", 100_000, 0, regions=REGIONS, effects=EFFECTS)
    row = write_step(trace, step, 100, make_step(random, 2, 0.5, []), random, 0.5)
    append_metrics(run, json_line(row))


def rest(run: Path, seconds: float) -> None:
    """As if nothing had been written for so long."""
    then = time.time() - seconds
    for path in [run, *run.rglob("*")]:
        os.utime(path, (then, then))


# --- what is told ---


def test_the_overview_is_that_of_the_report(run: Path) -> None:
    answered = ask_once(run, "/api/runs/0/overview")[0]
    expected = json.loads(as_answer(overview(run)).body)
    assert answered.json() == expected
    assert answered.headers["cache-control"] == "no-store"
    for name, value in HEADERS:
        assert answered.headers[name] == value


def test_steps_prompts_and_tokens_are_those_of_the_trace(run: Path) -> None:
    reader = TraceReader(run / "trace")
    heads = group_heads(reader, 3)
    worst = heads[0]["group"]
    traced, groups, group = ask_once(
        run, "/api/runs/0/traced", "/api/runs/0/groups?step=3", f"/api/runs/0/group?step=3&group={worst}"
    )
    assert [one["step"] for one in traced.json()["steps"]] == reader.steps()
    assert traced.json()["steps"][0]["updates"] == [0, 1, 2, 3]
    assert groups.json() == json.loads(as_answer(heads).body)
    shown = group.json()
    assert (shown["step"], shown["group"], shown["size"]) == (3, worst, 8)
    assert all(sample["updates"] for sample in shown["samples"])


def test_a_census_counts_the_run_a_step_or_an_update(run: Path) -> None:
    reader = TraceReader(run / "trace")
    whole, step, update, over_all = ask_once(
        run,
        *("/api/runs/0/census", "/api/runs/0/census?step=2", "/api/runs/0/census?step=2&update=1"),
        "/api/runs/0/census?update=1",
    )
    assert whole.json()["tokens"] == sum(reader.tokens(one).num_rows for one in reader.steps())
    assert step.json()["tokens"] == reader.tokens(2).num_rows
    assert update.json()["tokens"] == reader.tokens(2, 1).num_rows
    assert over_all.json()["tokens"] == sum(reader.tokens(one, 1).num_rows for one in reader.steps())
    assert {row["text"] for row in whole.json()["by_token"]}
    assert step.json()["map"]["log_ratio_edges"] == whole.json()["map"]["log_ratio_edges"]


@pytest.mark.parametrize(
    "target",
    ["7/overview", "0/census?step=99", "0/census?step=2&update=9", "0/groups?step=99", "0/group?step=2&group=9"],
)
def test_what_is_not_there_is_not_found(run: Path, target: str) -> None:
    answered = ask_once(run, f"/api/runs/{target}")[0]
    assert answered.status == 404
    assert str(run.parent) not in answered.json()["error"]


def test_what_is_not_finite_is_told_by_its_name(run: Path) -> None:
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    append_metrics(run, json_line(row | {"step": 7, "grad_norm_mean": float("nan"), "entropy": float("inf")}))
    curves = {
        one["title"]: one["series"][0]["points"] for one in ask_once(run, "/api/runs/0/overview")[0].json()["curves"]
    }
    assert curves["Entropy"][-1] == [7, "Infinity"]
    assert curves["Gradient norm"][-1] == [7, "NaN"]


# --- how it is sent ---


def test_answers_are_compressed_where_that_is_worth_it_and_wanted(run: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        for target in ("/", "/page/live.js", "/api/runs/0/overview"):
            plain = await ask(target)
            small = await ask(target, ("accept-encoding", "br, gzip;q=0.8"))
            assert "content-encoding" not in plain.headers
            assert small.headers["content-encoding"] == "gzip"
            assert small.body == plain.body
            assert len(small.sent) < 0.6 * len(plain.sent)
            assert plain.headers["vary"] == small.headers["vary"] == "accept-encoding"
            refused = await ask(target, ("accept-encoding", "gzip;q=0, identity"))
            assert "content-encoding" not in refused.headers
            only_head = await ask(target, method="HEAD")
            assert only_head.headers["content-length"] == plain.headers["content-length"]

    with_server([run], talk)


def test_files_of_the_page_are_sent_once(run: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        first = await ask("/page/live.js")
        assert first.headers["cache-control"] == "no-cache"
        again = await ask("/page/live.js", ("if-none-match", first.headers["etag"]))
        assert (again.status, again.sent) == (304, b"")
        other = await ask("/page/live.js", ("if-none-match", '"another"'))
        assert other.status == 200

    with_server([run], talk)


def test_the_first_sight_of_the_page_is_small(run: Path) -> None:
    """All that is sent until the overview is on the screen: at most 200 KB."""

    async def talk(ask: Ask, live: Live) -> None:
        gzip = ("accept-encoding", "gzip")
        page = (await ask("/", gzip)).body.decode()
        linked = {part.split('"')[0] for part in page.split('"/page/')[1:]}
        assert {"live.js", "base.css", "palette.css", "icon.svg", "theme.js", "overview.js"} <= linked
        targets = ["/", *(f"/page/{name}" for name in sorted(linked)), "/api/runs", "/api/runs/0/overview"]
        sizes = {target: len((await ask(target, gzip)).sent) + 600 for target in targets}  # 600: the headers
        assert sum(sizes.values()) <= 200_000, sizes

    with_server([run], talk)


def test_every_module_is_named_in_advance_and_there(run: Path) -> None:
    """A module that the page only finds out about when another has come costs a round trip each."""

    async def talk(ask: Ask, live: Live) -> None:
        page = (await ask("/")).body.decode()
        for name in page.split('"/page/')[1:]:
            answered = await ask("/page/" + name.split('"')[0])
            assert answered.status == 200
            for line in answered.body.decode().splitlines():
                if line.startswith("import "):
                    assert f'modulepreload" href="/page/{line.split("./")[1].rstrip(chr(34) + ";")}"' in page

    with_server([run], talk)


# --- how far a run is ---


def test_a_run_that_grows_is_seen_to_grow(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["run"]["steps"] = 100
    (run / "config.json").write_text(json.dumps(config))

    async def talk(ask: Ask, live: Live) -> None:
        before = (await ask("/api/runs")).json()["runs"][0]
        assert (before["state"], before["steps"], before["steps_planned"]) == ("running", 6, 100)
        await ask("/api/runs/0/overview")
        await ask("/api/runs/0/census")
        grow(run, 7)
        after = (await ask("/api/runs")).json()["runs"][0]
        assert after["steps"] == 7
        assert after["version"] > before["version"]
        assert after["trace"] > before["trace"]
        assert (await ask("/api/runs/0/overview")).json()["steps"] == 7
        assert (await ask("/api/runs/0/traced")).json()["steps"][-1]["step"] == 7
        assert (await ask("/api/runs/0/census")).json()["steps"] == [1, 7]
        assert (await ask("/api/runs")).json()["runs"][0]["version"] == after["version"]

    with_server([run], talk)


@pytest.mark.parametrize("updates", [1, 200, 3_000])
def test_how_far_a_run_is_stands_in_its_last_line_however_long_that_is(run: Path, updates: int) -> None:
    by_update = [{"update": index, "some/metric": 0.123456789} for index in range(updates)]
    append_metrics(run, json_line({"step": 7, "by_update": by_update}) + '{"step": 8, "half of')
    assert ask_once(run, "/api/runs")[0].json()["runs"][0]["steps"] == 7


def test_a_run_that_made_its_steps_is_finished_however_long_ago(run: Path) -> None:
    rest(run, 1e6)
    head, seen = ask_once(run, "/api/runs", "/api/runs/0/overview")
    assert head.json()["runs"][0]["state"] == seen.json()["state"] == "finished"


@pytest.mark.parametrize(
    "quiet, took, state",
    [(10, 1, "running"), (170, 1, "running"), (300, 1, "stopped"), (300, 60, "running"), (900, 60, "stopped")],
)
def test_of_a_run_that_does_not_write_its_rest_is_told(run: Path, quiet: float, took: float, state: str) -> None:
    """Ten of its own steps are waited for before it is no longer called running; it is never called dead."""
    config = json.loads((run / "config.json").read_text())
    config["run"]["steps"] = 100
    (run / "config.json").write_text(json.dumps(config))
    append_metrics(run, json_line({"step": 7, "seconds/step": took}))
    rest(run, quiet)
    head, seen = ask_once(run, "/api/runs", "/api/runs/0/overview")
    told = head.json()["runs"][0]
    assert told["state"] == seen.json()["state"] == state
    assert told["quiet"] == pytest.approx(quiet, abs=5)


def test_a_run_before_its_first_step(tmp_path: Path, run: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(run / "config.json", young)
    heads, seen, traced, census = ask_once(
        young, "/api/runs", "/api/runs/0/overview", "/api/runs/0/traced", "/api/runs/0/census"
    )
    assert heads.json()["runs"][0]["state"] == "running"
    assert heads.json()["runs"][0]["steps"] == 0
    assert seen.status == 200
    assert traced.json()["steps"] == []
    assert census.json()["tokens"] == 0


def test_runs_of_a_folder_appear_when_they_begin(tmp_path: Path, run: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()

    async def talk(ask: Ask, live: Live) -> None:
        nothing = (await ask("/api/runs")).json()
        assert nothing["runs"] == []
        assert "no run in runs yet" in nothing["notes"][0]
        (folder / ".addition-1.tmp-ab12").mkdir()  # how a run's folder is made: aside, then renamed
        shutil.copy(run / "config.json", folder / ".addition-1.tmp-ab12")
        assert (await ask("/api/runs")).json()["runs"] == []
        (folder / ".addition-1.tmp-ab12").rename(folder / "addition-1")
        one = (await ask("/api/runs")).json()
        assert [head["name"] for head in one["runs"]] == ["addition-1"]
        assert one["notes"] == []
        shutil.copytree(run, folder / "addition-2")
        later = time.time() + 10
        os.utime(folder / "addition-2" / "config.json", (later, later))
        two = (await ask("/api/runs")).json()["runs"]
        assert [(head["name"], head["id"]) for head in two] == [("addition-2", "1"), ("addition-1", "0")]

    with_server([folder], talk)


def test_runs_of_one_name_are_told_apart(tmp_path: Path, run: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(run, tmp_path / parent / "addition-1")

    async def talk(ask: Ask, live: Live) -> None:
        heads = (await ask("/api/runs")).json()["runs"]
        assert {head["name"] for head in heads} == {"a/addition-1", "b/addition-1"}
        assert (await ask("/api/runs/1/overview")).json()["name"] == "b/addition-1"

    with_server([tmp_path / "a" / "addition-1", tmp_path / "b" / "addition-1", tmp_path / "a"], talk)


def test_a_run_that_left_word_of_its_failure_is_stopped_and_the_page_hears_of_it(run: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        before = (await ask("/api/runs")).json()["runs"][0]
        (run / "failure.json").write_text('{"message": "step 3: logp_new is nan"}', encoding="utf-8")
        after = (await ask("/api/runs")).json()["runs"][0]
        assert after["state"] == "stopped"
        assert after["version"] > before["version"]
        assert (await ask("/api/runs/0/overview")).json()["state"] == "stopped"

    with_server([run], talk)


def test_a_run_that_is_removed_says_so_and_may_come_back(run: Path, tmp_path: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        await ask("/api/runs/0/overview")
        run.rename(tmp_path / "away")
        head = (await ask("/api/runs")).json()["runs"][0]
        assert (head["state"], head["note"]) == ("stopped", "its folder is gone")
        for target in ("overview", "groups?step=1", "group?step=1&group=0", "census?step=1"):
            assert (await ask(f"/api/runs/0/{target}")).status in (404, 409)
        (tmp_path / "away").rename(run)
        assert (await ask("/api/runs")).json()["runs"][0]["note"] is None
        assert (await ask("/api/runs/0/overview")).status == 200

    with_server([run], talk)


def test_a_resumed_run_that_makes_steps_anew_is_read_anew(run: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        before = (await ask("/api/runs/0/groups?step=6")).json()
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:5]))
        for step in (5, 6):
            shutil.rmtree(run / "trace" / f"step-00000{step}")
        assert (await ask("/api/runs")).json()["runs"][0]["steps"] == 4
        assert (await ask("/api/runs/0/groups?step=6")).status == 404
        for step in (5, 6):
            grow(run, step)
        assert (await ask("/api/runs/0/groups?step=6")).json() != before
        assert (await ask("/api/runs/0/overview")).json()["steps"] == 6

    with_server([run], talk)


# --- what is damaged ---


def test_a_torn_last_line_is_said(run: Path) -> None:
    append_metrics(run, '{"step": 7, "rew')
    rest(run, 60)
    seen = ask_once(run, "/api/runs/0/overview")[0].json()
    assert "not written to its end" in " ".join(seen["notes"])
    assert seen["steps"] == 6


def test_a_damaged_rule_is_said_and_all_else_shown(run: Path) -> None:
    (run / "rule.json").write_text('{"version": 1}')
    overview, census = ask_once(run, "/api/runs/0/overview", "/api/runs/0/census")
    assert "rule.json is damaged" in " ".join(overview.json()["notes"])
    assert overview.json()["rule"] is None
    assert census.json()["tokens"] > 0


def test_a_damaged_line_is_said_without_the_path(run: Path) -> None:
    append_metrics(run, "nonsense\n" + json_line({"step": 8}))
    answered = ask_once(run, "/api/runs/0/overview")[0]
    assert answered.status == 409
    assert "addition-3/metrics.jsonl, line 8 is not JSON" in answered.json()["error"]
    assert str(run.parent) not in answered.body.decode()


def test_a_half_written_step_is_said_and_not_shown_unless_it_is_being_written(run: Path) -> None:
    for step in (3, 6):
        (run / "trace" / f"step-00000{step}" / "complete.json").unlink()
    traced = ask_once(run, "/api/runs/0/traced")[0].json()
    assert [one["step"] for one in traced["steps"]] == [1, 2, 4, 5]
    assert [note.split(":")[0] for note in traced["notes"]] == [f"trace of step {n} is not shown" for n in (3, 6)]
    config = json.loads((run / "config.json").read_text())
    config["run"]["steps"] = 100
    (run / "config.json").write_text(json.dumps(config))
    traced = ask_once(run, "/api/runs/0/traced")[0].json()
    assert [note.split(":")[0] for note in traced["notes"]] == ["trace of step 3 is not shown"]


def test_a_damaged_file_is_said_and_the_others_are_counted(run: Path) -> None:
    file = next((run / "trace" / "step-000002").glob("update-000*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    groups, census = ask_once(run, "/api/runs/0/groups?step=2", "/api/runs/0/census")
    assert groups.status == 500
    assert "addition-3/trace/step-000002" in groups.json()["error"]
    assert "damaged" in groups.json()["error"]
    assert str(run.parent) not in groups.body.decode() + census.body.decode()
    assert census.json()["tokens"] > 0
    assert "damaged" in " ".join(census.json()["notes"])


def test_a_mistake_in_the_program_is_not_told_to_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.view.server.runs.overview", lambda *_: 1 / 0)

    async def talk(ask: Ask, live: Live) -> None:
        with pytest.raises(ZeroDivisionError):  # goes on to uvicorn, which writes it to the terminal
            await ask("/api/runs/0/overview")

    with_server([run], talk)


# --- news ---


async def next_event(stream: Any) -> dict[str, Any]:
    text = await asyncio.wait_for(anext(stream), 10)
    assert text.startswith("event: runs\ndata: ")
    assert text.endswith("\n\n")
    return dict(json.loads(text.split("data: ")[1]))


def test_every_page_hears_of_a_new_step_within_seconds(run: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        streams = [live.events.stream() for _ in range(20)]
        assert {(await next_event(stream))["runs"][0]["steps"] for stream in streams} == {6}
        grow(run, 7)
        heard = [next_event(stream) for stream in streams]
        assert {event["runs"][0]["steps"] for event in await asyncio.gather(*heard)} == {7}
        for stream in streams:
            await stream.aclose()

    with_server([run], talk)


def test_a_page_that_reads_slowly_is_told_what_is_and_not_what_was(run: Path) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        stream = live.events.stream()
        await next_event(stream)
        for step in (7, 8, 9):
            grow(run, step)
            await ask("/api/runs")
        assert (await next_event(stream))["runs"][0]["steps"] == 9
        await stream.aclose()

    with_server([run], talk)


def test_silence_is_broken_now_and_then(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.view.server.events.HEARTBEAT_SECONDS", 0.05)

    async def talk(ask: Ask, live: Live) -> None:
        stream = live.events.stream()
        first, second = [await next_event(stream) for _ in range(2)]
        for event in (first, second):
            event["runs"][0].pop("quiet")  # seconds, which pass
        assert first == second
        await stream.aclose()

    with_server([run], talk)


def test_nobody_looks_at_the_disk_while_nobody_listens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(ask: Ask, live: Live) -> None:
        looks: list[int] = []
        real = Runs.look
        monkeypatch.setattr(Runs, "look", lambda self: looks.append(1) or real(self))
        await asyncio.sleep(0.3)
        assert looks == []

    with_server([run], talk)


def test_there_is_an_end_to_the_listeners(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.view.server.events.LISTENERS_AT_MOST", 2)

    async def talk(ask: Ask, live: Live) -> None:
        streams = [live.events.stream() for _ in range(2)]
        for stream in streams:
            await next_event(stream)
        assert (await ask("/api/events")).status == 503
        await streams[0].aclose()
        assert (await ask("/api/events", method="HEAD")).headers["content-type"].startswith("text/event-stream")
        await streams[1].aclose()

    with_server([run], talk)


# --- the making of answers ---


def in_loop(talk: Callable[[Answers], Awaitable[None]], **limits: int) -> None:
    async def run() -> None:
        answers = Answers(**limits)
        try:
            await talk(answers)
        finally:
            answers.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_what_several_ask_for_at_once_is_made_once() -> None:
    async def talk(answers: Answers) -> None:
        made: list[int] = []

        def work() -> list[int]:
            made.append(1)
            time.sleep(0.05)
            return made

        await asyncio.gather(*(answers.get("key", work) for _ in range(10)))
        await answers.get("key", work)
        assert len(made) == 1
        await answers.get("other key", work)
        assert len(made) == 2

    in_loop(talk)


def test_no_more_is_made_at_once_than_there_are_threads() -> None:
    async def talk(answers: Answers) -> None:
        at_work, most = 0, 0
        lock = threading.Lock()

        def work() -> int:
            nonlocal at_work, most
            with lock:
                at_work += 1
                most = max(most, at_work)
            time.sleep(0.02)
            with lock:
                at_work -= 1
            return 0

        await asyncio.gather(*(answers.get(key, work) for key in range(12)))
        assert most == 2

    in_loop(talk, threads=2)


def test_the_loop_is_free_while_an_answer_is_made() -> None:
    async def talk(answers: Answers) -> None:
        slow = asyncio.ensure_future(answers.get("slow", lambda: time.sleep(0.5)))
        begun = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - begun < 0.3
        await slow

    in_loop(talk)


def test_the_answers_kept_are_the_last_ones_and_no_larger_than_allowed() -> None:
    async def talk(answers: Answers) -> None:
        made: list[int] = []

        def work(key: int) -> str:
            made.append(key)
            return "x" * 400

        for key in (1, 2, 1, 3, 1, 2):
            await answers.get(key, lambda key=key: work(key))
        assert made == [1, 2, 3, 2]  # 2 had to leave for 3, since 1 was asked for later

    in_loop(talk, bytes_kept=1_000)


def test_a_failure_is_told_to_all_and_not_kept() -> None:
    async def talk(answers: Answers) -> None:
        fails = [True]

        def work() -> str:
            time.sleep(0.02)
            if fails.pop():
                raise ValueError("broken")
            return "whole"

        results = await asyncio.gather(*(answers.get("key", work) for _ in range(3)), return_exceptions=True)
        assert [str(one) for one in results] == ["broken"] * 3
        fails.append(False)
        assert (await answers.get("key", work)).body == b'"whole"'

    in_loop(talk)


def test_too_much_work_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.view.server.answers.WAITING_AT_MOST", 3)

    async def talk(answers: Answers) -> None:
        waits = threading.Event()
        asked = [asyncio.ensure_future(answers.get(key, lambda: waits.wait(10))) for key in range(10)]
        await asyncio.sleep(0.1)
        waits.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, Busy) for one in results) in (6, 7)

    in_loop(talk, threads=1)


def test_who_waits_when_the_server_ends_is_turned_away_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr("dinghai.view.server.runs.overview", lambda *_: ended.wait(20))

    async def talk(ask: Ask, live: Live) -> None:
        waits = asyncio.ensure_future(ask("/api/runs/0/overview"))
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        live.close_soon()
        assert (await waits).status == 503
        assert time.monotonic() - begun < 1

    with_server([run], talk)
    ended.set()


def test_a_reader_who_leaves_does_not_take_the_answer_from_the_others() -> None:
    async def talk(answers: Answers) -> None:
        def work() -> str:
            time.sleep(0.1)
            return "whole"

        leaves, stays = (asyncio.ensure_future(answers.get("key", work)) for _ in range(2))
        await asyncio.sleep(0.01)
        leaves.cancel()
        assert (await stays).body == b'"whole"'

    in_loop(talk)


def test_an_answer_is_json_whatever_is_in_it() -> None:
    data = {"nan": float("nan"), "inf": [float("-inf")], "lone": "\ud800", "line": "\u2028", "text": "海"}
    assert json.loads(as_answer(data).body) == data | {"nan": "NaN", "inf": ["-Infinity"]}


def test_the_scope_of_a_request_is_as_uvicorn_makes_it() -> None:
    """So that these tests test what is served: the real server stands in test_server_socket.py."""
    scope = scope_of("/api/runs?step=1")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/api/runs", b"/api/runs", b"step=1")
