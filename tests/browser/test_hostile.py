"""Every hostile text, as prompt, completion, token, name and setting, in the report and in the live page: each is shown
letter for letter, none runs, nothing is asked for. What would show otherwise fails in `open_page`.

pytest tests/browser/test_hostile.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

sys.path.insert(0, str(Path(__file__).parent.parent / "view"))  # the payloads and the server of the tests of the views
import payloads
from served import Served
from synthetic_run import EFFECTS, REGIONS

from dinghai.config.settings import TrainSettings
from dinghai.files import json_line
from dinghai.text import safe
from dinghai.trace import Samples, TraceWriter
from dinghai.view.report import write_report

SIZE = 8  # completions of a prompt
NAME = "<img src=x onerror=window.hit=1>"  # of the run and so of its folder


def storable(text: str) -> str:
    """As the trace keeps it: lone surrogates by their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


TEXTS = [storable(payload) for payload in payloads.ALL]


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose vocabulary, prompts, completions, names, settings and metrics are payloads; all its tokens stop."""
    folder = tmp_path_factory.mktemp("hostile") / NAME
    (folder / "model").mkdir(parents=True)
    config = json.loads(TrainSettings().model_dump_json())
    config["run"]["name"] = NAME
    config["hostile"] = {storable(payload): storable(payload) for payload in payloads.ALL}
    (folder / "config.json").write_text(json.dumps(config))
    rule = {"version": 1, "name": TEXTS[44], "title": TEXTS[90], "paper": TEXTS[91], "formula": TEXTS[92]}
    rule |= {"zero": TEXTS[93], "ratio": "token", "reduction": TEXTS[94], "parameters": {}, "boundaries": []}
    (folder / "rule.json").write_text(
        json.dumps(rule | {"boundaries_vary_with": None, "weights": None, "note": TEXTS[95]})
    )
    vocabulary = {text: number for number, text in enumerate(TEXTS)}
    Tokenizer(WordLevel(vocabulary, unk_token=TEXTS[0])).save(str(folder / "model" / "tokenizer.json"))
    record(folder / "trace")
    named = {f"reward/{text}/mean": 0.5 for text in payloads.PAGE}
    rows = [{"step": step, "reward/mean": 0.5, "clip/stopped_fraction": 1.0, **named} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json_line(row) for row in rows))
    return folder


def record(folder: Path) -> None:
    """The first prompt's completions consist of all the payloads together, the others of one each."""
    per_sample = -(-len(TEXTS) // SIZE)
    ids = [[n % len(TEXTS) for n in range(i * per_sample, (i + 1) * per_sample)] for i in range(SIZE)]
    ids += [[n] for n in range(len(TEXTS)) for _ in (0, 1)]
    prompts = [TEXTS[0]] * SIZE + [text for text in TEXTS for _ in (0, 1)]
    count = len(prompts)
    samples = Samples(
        sample=list(range(count)),
        group=[0] * SIZE + [1 + n // 2 for n in range(count - SIZE)],
        prompt_id=prompts,
        prompt=prompts,
        completion=["".join(TEXTS[n] for n in one) for one in ids],
        tokens=[len(one) for one in ids],
        finished=[True] * count,
        reward=[float(n % 2) for n in range(count)],
        reward_parts={text: [0.5] * count for text in payloads.PAGE},
    )
    writer = TraceWriter(folder, 10**6, 0, regions=REGIONS, effects=EFFECTS)
    token_N = np.concatenate(ids)
    size = len(token_N)
    columns = {
        "position": np.concatenate([np.arange(len(one)) for one in ids]),
        "token": token_N,
        **dict.fromkeys(("logp_sampler", "logp_old"), np.full(size, -2.0)),
        "logp_new": np.full(size, -1.0),
        "advantage": np.ones(size),
        "weight": np.zeros(size),
        "region": np.full(size, 3),
        "effect": np.full(size, 4),
        "entropy": np.ones(size),
    }
    sample_N = np.repeat(np.arange(count), samples.tokens)
    writer.begin_step(1, samples)
    for update in (0, 1):
        writer.add_update(update, columns, sample_N)
    writer.finish_step()


@pytest.fixture(scope="module")
def hostile_report(hostile_run: Path) -> Path:
    return write_report(hostile_run)


@pytest.fixture(scope="module")
def hostile_address(hostile_run: Path) -> Iterator[str]:
    served = Served([hostile_run])
    yield served.address
    served.stop()


def walk_through(page: Any) -> None:
    """Reads every token with the keyboard, points at some, opens what can be opened, and changes every choice."""
    page.wait_for_selector(".tokens .t")
    page.locator(".tokens .t").first.focus()
    page.keyboard.press("Home")
    for key in ["ArrowRight"] * 40 + ["]", "[", "n", "n", "End", "Tab", "ArrowRight"]:
        page.keyboard.press(key)
    for token in page.locator(".tokens .t").all()[:20]:
        token.hover()
    for select in page.locator("main select").all():
        for place in range(min(4, select.locator("option").count())):
            select.select_option(index=place)
    page.wait_for_timeout(200)


@pytest.fixture(params=["report", "live"])
def hostile_page(request: pytest.FixtureRequest, open_page: Any) -> Any:
    """The page of the hostile run, its tokens drawn."""
    where = request.getfixturevalue("hostile_report" if request.param == "report" else "hostile_address")
    # The server refuses to replay a run of such settings, which the browser's console tells too.
    page = open_page(where, expected_errors=("409",))
    page.wait_for_selector(".tokens .t")
    page.locator("#replay, #tokens").first.scroll_into_view_if_needed()
    if request.param == "live":
        page.wait_for_selector("#replay .notes >> text=The run cannot be replayed")
    return page


def test_there_are_enough_payloads() -> None:
    assert len(set(payloads.ALL)) >= 200


def test_every_payload_is_a_token_that_is_shown_letter_for_letter(hostile_page: Any, screenshot: Any) -> None:
    shown = set(hostile_page.evaluate("[...document.querySelectorAll('.tokens .t')].map(t => t.textContent)"))
    missing = [safe(text) for text in TEXTS if safe(text) not in shown]
    assert missing == []
    screenshot(hostile_page, "hostile")


def test_settings_prompts_and_names_are_shown_letter_for_letter(hostile_page: Any) -> None:
    text = hostile_page.evaluate("document.body.textContent")
    assert [one for one in TEXTS if safe(json.dumps(one, ensure_ascii=False)) not in text] == []
    assert hostile_page.evaluate("document.querySelector('h1').textContent").count(NAME) == 1
    assert NAME in hostile_page.title()


def test_nothing_runs_however_the_page_is_used(hostile_page: Any) -> None:
    walk_through(hostile_page)
    assert hostile_page.locator("script").count() == 2  # of either page
    for foreign in ("img", "iframe", "object", "embed", "form", "base", "template", "math", "video", "audio"):
        assert hostile_page.locator(f"body {foreign}").count() == 0, foreign
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    assert hostile_page.evaluate(handlers) == []
