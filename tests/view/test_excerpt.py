"""A report holds the telling steps of a trace, as much of them as fits, and says what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import payloads
import pytest
from synthetic_run import UPDATES, make_run, read_data

from dinghai.lens.census import census
from dinghai.text import safe
from dinghai.trace import TraceReader
from dinghai.view import report
from dinghai.view.excerpt import EXTENTS, Excerpt, telling_steps, with_token_texts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    return make_run(tmp_path_factory.mktemp("excerpt") / "run", steps=7)


@pytest.mark.parametrize(
    ("recorded", "removed", "chosen"),
    [
        ([], {}, []),
        ([5], {}, [5]),
        ([1, 2, 3], {}, [1, 2, 3]),
        (list(range(1, 101)), {77: 0.3, 12: 0.1}, [1, 51, 77, 100]),
        (list(range(1, 101)), {51: 0.3}, [1, 51, 100]),
        (list(range(10, 101, 10)), {33: 0.9}, [10, 60, 100]),  # step 33 was not recorded
    ],
)
def test_the_telling_steps(recorded: list[int], removed: dict[int, float], chosen: list[int]) -> None:
    assert telling_steps(recorded, removed) == chosen


def test_it_says_how_the_steps_were_chosen(run: Path) -> None:
    excerpt = Excerpt(run, None, {2: 0.4})
    assert excerpt.steps == [1, 2, 4, 7]
    note = excerpt.take(EXTENTS[0])["traced"]["notes"][0]
    assert "4 of the 7 recorded steps" in note
    assert "the last, and step 2, where the rule removed most gradient." in note
    first = Excerpt(run, None, {1: 0.4}).take(EXTENTS[0])["traced"]["notes"][0]
    assert "the last; in step 1 the rule removed most gradient." in first


def test_each_extent_holds_less_than_the_one_before(run: Path) -> None:
    excerpt = Excerpt(run, None, {})
    sizes = [len(json.dumps(excerpt.take(extent))) for extent in EXTENTS]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(EXTENTS)
    assert sizes[-1] > len(json.dumps(excerpt.nothing()))


def test_the_first_extent_has_a_census_of_each_update_and_the_next_has_none(run: Path) -> None:
    excerpt = Excerpt(run, None, {})
    full, less = (excerpt.take(extent)["censuses"] for extent in EXTENTS[:2])
    assert set(full) == {"", *(f"{s}" for s in (1, 4, 7)), *(f"{s}/{u}" for s in (1, 4, 7) for u in range(UPDATES))}
    assert set(less) == {"", "1", "4", "7"}


def test_the_censuses_are_those_of_the_trace(run: Path) -> None:
    """And the steps share the run's bins, so that their pictures can be compared."""
    censuses = Excerpt(run, None, {}).take(EXTENTS[0])["censuses"]
    whole = census(TraceReader(run / "trace"))
    assert censuses[""]["tokens"] == whole["tokens"]
    assert sum(censuses[f"4/{update}"]["tokens"] for update in range(UPDATES)) == censuses["4"]["tokens"]
    edges = {json.dumps(one["map"]["log_ratio_edges"]) for one in censuses.values()}
    assert len(edges) == 1


def test_prompts_are_those_that_lost_most_and_each_is_there(run: Path) -> None:
    taken = Excerpt(run, None, {}).take(EXTENTS[2])
    for step in taken["traced"]["steps"]:
        heads = taken["heads"][str(step["step"])]
        assert len(heads) == EXTENTS[2].groups
        shares = [head["removed"] for head in heads]
        assert shares == sorted(shares, reverse=True)
        assert all(f"{step['step']}/{head['group']}" in taken["groups"] for head in heads)


def test_texts_of_tokens_are_safe() -> None:
    rows = [{"token": token} for token in range(len(payloads.ALL))]
    shown = with_token_texts({"by_token": rows}, payloads.ALL.__getitem__)["by_token"]
    assert [row["text"] for row in shown] == [safe(payload) for payload in payloads.ALL]


def test_without_a_tokenizer_ids_stand_for_tokens() -> None:
    assert with_token_texts({"by_token": [{"token": 3}]}, None)["by_token"][0]["text"] == "⟨3⟩"


def test_a_page_that_fits_no_completion_says_so(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "enormous", steps=1)
    monkeypatch.setattr(report, "BYTES_AT_MOST", 1_000)
    page = report.write_report(folder).read_text("utf-8")
    assert "the completions are too large to show" in page
    data = read_data(page)
    assert data["groups"] == {}
    assert data["censuses"][""]["tokens"] > 0
