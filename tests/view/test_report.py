"""The report is one inert file: hostile text cannot become markup, nothing is loaded, and what it shows is the record.

tests/browser looks at the same page in a real browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import pytest
from synthetic_run import UPDATES, make_run, read_data

from dinghai.errors import InputError, RunFailed
from dinghai.text import safe
from dinghai.trace import Names, TraceReader
from dinghai.view.report import BYTES_AT_MOST, embedded_json, write_report
from dinghai.view.token_text import load_token_text, speller


class Outline(HTMLParser):
    """The elements of a page, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": [], "json": []}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = "json" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inline:
            self.inline[self._open].append(data)


def make_page(folder: Path) -> str:
    return write_report(folder).read_text("utf-8")


def steps_shown(data: dict[str, Any]) -> list[int]:
    return [one["step"] for one in data["traced"]["steps"]]


def first_sample(data: dict[str, Any]) -> dict[str, Any]:
    sample: dict[str, Any] = next(iter(data["groups"].values()))["samples"][0]
    return sample


def test_the_page_has_the_elements_it_should_and_no_others(page: str) -> None:
    tags = [tag for tag, _ in Outline(page).tags]
    assert tags.count("script") == 2
    assert tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "link", "form", "input", "base", "svg", "a"} & set(tags)
    for _, attributes in Outline(page).tags:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "href", "style", "srcdoc"}]


def test_the_policy_allows_this_script_and_style_alone(page: str) -> None:
    outline = Outline(page)
    policy = next(a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    for name in ("script", "style"):
        text = "".join(outline.inline[name])
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[f"{name}-src"] == f"'sha256-{digest}'"
    assert directives["base-uri"] == directives["form-action"] == "'none'"
    assert "unsafe" not in policy


def test_nothing_is_asked_of_the_network(page: str) -> None:
    outline = Outline(page)
    own = "".join(outline.inline["script"] + outline.inline["style"]).replace("http://www.w3.org/2000/svg", "")
    for word in (
        "http:",
        "https:",
        "//cdn",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "@import",
        "WebSocket",
        "EventSource",
    ):
        assert word not in own
    # A style may name a pattern of the page itself, as url(#hatch), and nothing else.
    assert not re.search(r"url\((?!#)", "".join(outline.inline["style"]))


def test_the_page_is_built_of_text_only() -> None:
    folder = files("dinghai.view") / "page"
    for path in folder.iterdir():
        text = path.read_text("utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "DOMParser",
        ):
            assert word not in text, f"{word} in {path.name}"
        assert not re.search(r"setAttribute\(\s*[\"'`](on|style|href|src)", text)


@pytest.mark.parametrize("payload", payloads.ALL, ids=ascii)
def test_embedded_json_cannot_end_its_element_and_reads_back(payload: str) -> None:
    value = {"text": payload, payload: [payload]}
    embedded = embedded_json(value)
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == value


def test_non_finite_numbers_are_told_apart_in_the_page() -> None:
    embedded = embedded_json({"x": [float("nan"), float("inf"), -float("inf"), 1.5]})
    assert json.loads(embedded)["x"] == ["NaN", "Infinity", "-Infinity", 1.5]


def test_every_payload_is_shown_and_none_acts(tmp_path: Path) -> None:
    """As completion, prompt, run name, setting and metric name."""
    folder = make_run(tmp_path / "<script>alert(1)<", steps=1, prompts=4, hostile=payloads.PAGE)
    config = json.loads((folder / "config.json").read_text())
    config["</script><script>window.hit=1</script>"] = "<img src=x onerror=window.hit=1>"
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "reward/<b>/mean": 1.0, "reward/</script>/mean": 1.0}) + "\n")
    page = make_page(folder)
    outline = Outline(page)
    assert [tag for tag, _ in outline.tags].count("script") == 2
    assert not {"img", "b"} & {tag for tag, _ in outline.tags}
    data = read_data(page)
    assert ["</script><script>window.hit=1</script>", '"<img src=x onerror=window.hit=1>"'] in data["overview"][
        "settings"
    ]
    assert any(one["name"] == "</script>" for chart in data["overview"]["curves"] for one in chart["series"])


def rows_of(reader: TraceReader, step: int, update: int, sample: int) -> dict[str, np.ndarray]:
    """The columns of one completion in one update, in the order of its tokens."""
    table = reader.tokens(step, update)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    rows = np.flatnonzero(columns["sample"] == sample)
    rows = rows[np.argsort(columns["position"][rows])]
    return {name: values[rows] for name, values in columns.items()}


def assert_as_recorded(data: dict[str, Any], names: Names, fate: dict[str, Any], rows: dict[str, np.ndarray]) -> None:
    count = len(rows["token"])
    for column, known, stored in (("region", "regions", names.regions), ("effect", "effects", names.effects)):
        shown = [data["overview"][known][i]["name"] for i in np.broadcast_to(fate[column], count)]
        assert shown == [stored[i] for i in rows[column].tolist()]
    if fate.get("scored") is False:
        assert fate["ratio"] is None
        assert np.isnan(rows["logp_new"]).all()
        return
    ratio = np.exp(rows["logp_new"].astype(float) - rows["logp_old"].astype(float))
    assert np.allclose(np.broadcast_to(fate["ratio"], count), ratio, rtol=1e-4)
    for name in ("weight", "advantage", "logp_sampler", "logp_old", "logp_new", "entropy"):
        assert np.allclose(np.broadcast_to(fate[name], count), rows[name], rtol=1e-4), name


def test_the_data_are_the_record(run_folder: Path, page: str) -> None:
    """Each shown token has the text, region, effect and numbers that the trace holds for it."""
    data, reader = read_data(page), TraceReader(run_folder / "trace")
    load = load_token_text(run_folder / "model/tokenizer.json")
    assert load is not None
    spell = speller(load)
    # The first, the middle and the last; and the second, in which the rule removed most gradient.
    assert {1, 2, 4, 6} <= set(steps_shown(data))
    compared = 0
    for group in data["groups"].values():
        step = group["step"]
        names = reader.names(step)
        stored = {row["sample"]: row for row in reader.samples(step).to_pylist()}
        for shown in group["samples"]:
            completion = stored[shown["id"]]["completion"]
            assert not completion.isascii() or "".join(shown["text"]) == safe(completion) + "<|end|>"
            assert shown["reward"] == stored[shown["id"]]["reward"]
            for update, fate in shown["updates"].items():
                rows = rows_of(reader, step, int(update), shown["id"])
                assert shown["text"] == spell(rows["token"].tolist()).text
                assert_as_recorded(data, names, fate, rows)
                compared += len(rows["token"])
    assert compared > 1_000


def test_hostile_completions_are_among_those_shown(page: str) -> None:
    shown = {
        "".join(sample["text"]).removesuffix("<|end|>")
        for group in read_data(page)["groups"].values()
        for sample in group["samples"]
    }
    assert len(shown & {safe(payload) for payload in payloads.ALL}) >= 5


def test_curves_and_tiles_name_what_they_are(page: str) -> None:
    data = read_data(page)
    titles = [chart["title"] for chart in data["overview"]["curves"]]
    for title in ("Held-out accuracy", "Reward", "Stopped, and outside the band", "KL(old‖new)", "Entropy"):
        assert title in titles
    held_out = next(chart for chart in data["overview"]["curves"] if chart["title"] == "Held-out accuracy")
    assert held_out["series"][0]["points"][0] == [0, 0.41]
    assert [fact[0] for fact in data["overview"]["facts"]][:4] == [
        "Held-out accuracy",
        "Reward",
        "Tokens stopped",
        "Gradient removed",
    ]
    assert len(data["overview"]["update_names"]) == UPDATES
    assert "Held-out accuracy rose from 41.0% to 91.0% over 6 steps" in page


def test_the_page_is_small(page: str) -> None:
    assert len(page.encode()) < 1_400_000


def test_a_large_run_is_cut_to_the_bound(tmp_path: Path) -> None:
    long = ["\x1b" * 3_000 + "\u202e" * 2_000]
    folder = make_run(tmp_path / "long", steps=3, hostile=long)
    page = make_page(folder)
    assert len(page.encode()) <= BYTES_AT_MOST
    assert read_data(page)["groups"]


def test_long_curves_are_thinned_and_lose_no_spike(tmp_path: Path) -> None:
    """A point then stands for several steps, with their lowest and highest; what is not finite stands by itself."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = [{"step": step, "entropy": 0.5, "reward/mean": step / 1e4} for step in range(1, 10_001)]
    rows[4_321]["entropy"] = "NaN"  # type: ignore[assignment]
    rows[7_000]["entropy"] = 9.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_data(make_page(folder))
    entropy = next(chart for chart in data["overview"]["curves"] if chart["title"] == "Entropy")["series"][0]
    points = entropy["points"]
    assert (entropy["every"], entropy["last"]) == (25, 0.5)
    assert len(points) == 401
    assert points[0] == [1, 0.5, 0.5, 0.5]
    assert points[-1] == [9_976, 0.5, 0.5, 0.5]
    assert [4_322, "NaN"] in points
    assert [7_001, 0.5 + 9 / 25, 0.5, 9.5] in points
    reward = next(chart for chart in data["overview"]["curves"] if chart["title"] == "Reward")["series"][0]
    assert reward["last"] == 1.0
    assert reward["points"][0] == [1, 0.0013, 0.0001, 0.0025]


def test_a_run_without_trace_or_model_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "bare", steps=2)
    shutil.rmtree(folder / "trace")
    shutil.rmtree(folder / "model")
    page = make_page(folder)
    assert "there is no trace" in page
    assert read_data(page)["groups"] == {}
    assert read_data(page)["overview"]["curves"]


def test_without_a_tokenizer_ids_and_the_written_text_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "ids", steps=1, hostile=["\x1b[31m"])
    shutil.rmtree(folder / "model")
    page = make_page(folder)
    sample = first_sample(read_data(page))
    assert re.fullmatch(r"⟨\d+⟩", sample["text"][0])
    assert sample["written"]
    assert "tokens are shown by their ids" in page


def test_a_given_decoder_is_used_and_made_safe(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "own", steps=1)
    page = write_report(folder, token_text=lambda token: "\x1b<b>").read_text()
    assert first_sample(read_data(page))["text"][0] == "\\x1b<b>"


def test_a_run_that_died_before_its_first_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "dead", steps=1)
    shutil.rmtree(folder / "trace")
    (folder / "metrics.jsonl").unlink()
    page = make_page(folder)
    assert "the run ended before its first step" in page
    assert "No training step was recorded." in page
    assert read_data(page)["overview"]["settings"]


def test_a_run_killed_in_the_middle_of_a_line_and_a_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "killed", steps=5)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-200])
    (folder / "trace/step-000005/complete.json").unlink()
    page = make_page(folder)
    assert "the last line of metrics.jsonl was not written to its end" in page
    assert "trace of step 5 is not shown: it was not finished" in page
    assert "over 4 of 5 planned steps" in page
    shown = steps_shown(read_data(page))  # the first, the middle, the last and the telling one of those that are whole
    assert {1, 4} <= set(shown) <= {1, 2, 3, 4}


def test_damage_in_the_trace_is_told_and_the_rest_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "flipped", steps=3)
    path = folder / "trace/step-000002/update-001.rank0.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    page = make_page(folder)
    assert "update-001.rank0.parquet is damaged" in page
    assert steps_shown(read_data(page)) == [1, 3]


def test_regions_that_the_page_does_not_know_do_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthetic_run.REGIONS", {n: f"new{n}" for n in range(9)})
    page = make_page(make_run(tmp_path / "new", steps=1))
    assert "that this Dinghai does not know: number" in page
    assert read_data(page)["overview"]["curves"]


def test_secrets_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "secret", steps=1)
    config = json.loads((folder / "config.json").read_text())
    secret = "hf_" + "A" * 34
    config["hub"] = {"hf_token": "abc123-private", "url": f"https://user:{secret}@example.org", "max_new_tokens": 7}
    (folder / "config.json").write_text(json.dumps(config))
    page = make_page(folder)
    assert secret not in page
    assert "abc123-private" not in page
    assert ["hub.max_new_tokens", "7"] in read_data(page)["overview"]["settings"]


def test_the_versions_that_trained_are_told_from_those_that_write(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "versions", steps=1)
    assert read_data(make_page(folder))["overview"]["trained_with"] == []
    (folder / "versions.json").write_text('{"torch": "2.99", "device": "CPU"}')
    data = read_data(make_page(folder))
    assert data["overview"]["trained_with"] == [["torch", "2.99"], ["device", "CPU"]]
    assert "torch" in dict(data["overview"]["versions"])
    (folder / "versions.json").write_text("{")
    assert read_data(make_page(folder))["overview"]["trained_with"] == []


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "same", steps=2)
    assert make_page(folder) == make_page(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        write_report(tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "full", steps=1)
    before = make_page(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dinghai.files.write_all", fail)
    with pytest.raises(RunFailed, match=r"report\.html.*free some space.*dinghai report"):
        write_report(folder)
    assert (folder / "report.html").read_text() == before
