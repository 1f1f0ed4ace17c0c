"""Prompts are ordered by what they lost, and what is shown of a token is what the trace holds of it.

Run: pytest tests/lens/test_completions.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinghai.errors import InputError, RunFailed
from dinghai.lens.completions import HEAD_CHARACTERS, Limits, Spelling, _numbers, group, group_heads
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.trace import Samples, TraceReader, TraceWriter

GROUPS, SIZE = 5, 4
STEP = 3


def make_samples(**changed: Any) -> Samples:
    """Five prompts with four completions each; sample 7 is by far the longest. Ids run backwards."""
    count = GROUPS * SIZE
    columns: dict[str, Any] = {
        "sample": list(range(count))[::-1],
        "group": [10 * (i // SIZE) for i in range(count)],
        "prompt_id": [f"p{i // SIZE}" for i in range(count)],
        "prompt": [f"Question {i // SIZE}:\n what?" for i in range(count)],
        "completion": ["a\x1b[31mb" for _ in range(count)],
        "tokens": [300 if i == 7 else 6 + i % 3 for i in range(count)],
        "finished": [bool(i % 2) for i in range(count)],
        "reward": [float(i % 3) for i in range(count)],
        "reward_parts": {"task": [float(i % 3) for i in range(count)], "<b>": [0.5] * count},
    }
    return Samples(**(columns | changed))


def make_trace(
    folder: Path,
    samples: Samples | None = None,
    *,
    clip: bool = True,
    skip: bool = False,
    changes: dict[int, dict[str, Any]] | None = None,
) -> TraceReader:
    """A step whose even samples are in updates 0 and 2, the odd ones in 1 and 3, as a clip of 0.2 decides.

    Args:
        skip: samples without an advantage were never scored.
        changes: update -> column -> (row, value) written over it.
    """
    samples = samples or make_samples()
    random = np.random.default_rng(1)
    sample_N = np.repeat(samples.sample, samples.tokens)
    rows = len(sample_N)
    advantage_N = random.choice([0.0, 0.7, -1.3], max(samples.sample) + 1)[sample_N]
    logp_old = -random.gamma(0.6, 1.5, rows)
    writer = TraceWriter(folder, 10**6, 0, regions=dict(enumerate(REGIONS)), effects=dict(enumerate(EFFECTS)))
    writer.begin_step(STEP, samples)
    for update in range(4):
        mine = sample_N % 2 == update % 2
        logp_new = np.minimum(logp_old + random.normal(0, 0.15 * update, rows), 0) if update else logp_old
        ratio = np.exp(logp_new - logp_old)
        above, below, good = ratio > 1.2, ratio < 0.8, advantage_N > 0
        region = np.select(
            [advantage_N == 0, above & good, above, below & good, below],
            [REGIONS.index(name) for name in ("no_signal", "overshoot", "relapse", "forgotten", "escaped")],
            REGIONS.index("inside"),
        )
        stopped = np.isin(region, [REGIONS.index("overshoot"), REGIONS.index("escaped")]) & clip
        effect = np.select(
            [advantage_N == 0, stopped], [EFFECTS.index("none"), EFFECTS.index("stopped")], EFFECTS.index("kept")
        )
        columns = {
            "position": np.concatenate([np.arange(n) for n in samples.tokens]),
            "token": random.integers(0, 200, rows),
            "logp_sampler": logp_old,
            "logp_old": logp_old,
            "logp_new": logp_new,
            "advantage": advantage_N,
            "weight": np.where(stopped, 0, ratio * advantage_N),
            "region": region,
            "effect": effect,
            "entropy": random.gamma(0.5, 1, rows),
            "factor": np.full(rows, 0.25),
        }
        columns |= {"scored": advantage_N != 0} if skip else {}
        picked = {name: values[mine].copy() for name, values in columns.items()}
        for name, (row, value) in (changes or {}).get(update, {}).items():
            picked.setdefault(name, np.ones(mine.sum()))[row] = value
        order = random.permutation(int(mine.sum()))  # the order of a file is the trainer's own
        writer.add_update(update, {name: values[order] for name, values in picked.items()}, sample_N[mine][order])
    writer.finish_step()
    return TraceReader(folder)


def of_group(reader: TraceReader, samples: Samples, number: int) -> Tokens:
    ids = [one for one, of in zip(samples.sample, samples.group, strict=True) if of == number]
    tokens = read_tokens(reader, STEP)
    return tokens.rows(np.isin(tokens.sample, ids))


def test_heads_are_sums_over_the_tokens_of_the_prompt(tmp_path: Path) -> None:
    samples = make_samples()
    reader = make_trace(tmp_path / "trace", samples)
    heads = group_heads(reader, STEP)
    everything = float(read_tokens(reader, STEP).removed.sum(dtype=np.float64))
    assert sorted(head["group"] for head in heads) == [0, 10, 20, 30, 40]
    assert everything > 0
    for head in heads:
        tokens = of_group(reader, samples, head["group"])
        assert head["signal"] == tokens.signal.sum()
        assert head["stopped"] == tokens.stopped.sum()
        assert head["outside"] == tokens.outside.sum()
        assert head["removed"] == pytest.approx(tokens.removed.sum(dtype=np.float64) / everything, rel=1e-4)
        assert head["worst"] == pytest.approx(np.abs(tokens.log_ratio[tokens.signal]).max(), rel=1e-4)
        rewards = [r for r, g in zip(samples.reward, samples.group, strict=True) if g == head["group"]]
        assert head["reward_mean"] == pytest.approx(np.mean(rewards), rel=1e-4)
        assert (head["size"], head["prompt_id"]) == (SIZE, f"p{head['group'] // 10}")
        assert head["prompt"] == f"Question {head['group'] // 10}: what?"
    assert sum(head["removed"] for head in heads) == pytest.approx(1, abs=1e-3)


def test_the_prompt_that_lost_most_comes_first(tmp_path: Path) -> None:
    heads = group_heads(make_trace(tmp_path / "trace"), STEP)
    assert heads[0]["removed"] > heads[-1]["removed"]
    assert [head["removed"] for head in heads] == sorted((head["removed"] for head in heads), reverse=True)


def test_where_nothing_was_removed_the_ratio_decides(tmp_path: Path) -> None:
    heads = group_heads(make_trace(tmp_path / "trace", clip=False), STEP)
    assert {head["removed"] for head in heads} == {0}
    assert [head["worst"] for head in heads] == sorted((head["worst"] for head in heads), reverse=True)


def test_a_prompt_with_a_number_that_is_none_comes_first_and_says_so(tmp_path: Path) -> None:
    samples = make_samples(tokens=[4] * GROUPS * SIZE)
    row = 4 * (samples.sample.index(10) // 2)  # even samples, four tokens each, in the order of the lists
    last = group_heads(make_trace(tmp_path / "sound", samples), STEP)[-1]["group"]
    place = next(i for i, of in enumerate(samples.group) if of == last and samples.sample[i] % 2 == 0)
    row = 4 * sum(1 for one in samples.sample[:place] if one % 2 == 0)
    reader = make_trace(tmp_path / "trace", samples, changes={2: {"logp_new": (row, np.nan), "advantage": (row, 0.7)}})
    heads = group_heads(reader, STEP)
    assert (heads[0]["group"], heads[0]["worst"], heads[0]["removed"]) == (last, "NaN", "NaN")
    shown = group(reader, STEP, last)["samples"][0]
    assert shown["id"] == samples.sample[place]
    assert "NaN" in shown["updates"]["2"]["ratio"]
    json.dumps(heads, allow_nan=False)
    json.dumps(shown, allow_nan=False)


def test_what_all_prompts_begin_with_is_left_out_of_their_heads(tmp_path: Path) -> None:
    system = "You are a helpful assistant that thinks step by step. " * 60
    prompts = [f"{system}Question {i // SIZE} is \x1b[2J{'long ' * 40}" for i in range(GROUPS * SIZE)]
    heads = group_heads(make_trace(tmp_path / "trace", make_samples(prompt=prompts)), STEP)
    for head in heads:
        assert head["prompt"].startswith(f"… {head['group'] // 10} is \\x1b[2Jlong")
        assert head["prompt"].endswith(" …")
        assert len(head["prompt"]) <= HEAD_CHARACTERS + 3  # an escape is longer than what it stands for


@pytest.mark.parametrize("prompt", ["", "the same for all of them"])
def test_prompts_that_do_not_differ_are_left_whole(tmp_path: Path, prompt: str) -> None:
    heads = group_heads(make_trace(tmp_path / "trace", make_samples(prompt=[prompt] * GROUPS * SIZE)), STEP)
    assert {head["prompt"] for head in heads} == {prompt}


def test_heads_do_not_read_the_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be most of a step's file."""
    reader = make_trace(tmp_path / "trace")
    asked: list[Any] = []
    samples, tokens = reader.samples, reader.tokens
    monkeypatch.setattr(reader, "samples", lambda step, columns=None: asked.append(columns) or samples(step, columns))
    monkeypatch.setattr(
        reader, "tokens", lambda step, update, columns: asked.append(columns) or tokens(step, update, columns)
    )
    group_heads(reader, STEP)
    assert all(columns is not None for columns in asked)
    assert not {"completion", "entropy", "logp_sampler", "token", "position", "kl_weight"} & {
        c for cs in asked for c in cs
    }


def column(fate: dict[str, Any], name: str, count: int) -> list[Any]:
    values = fate[name]
    return values if isinstance(values, list) else [values] * count


@pytest.mark.parametrize("number", [0, 20])
def test_the_numbers_of_a_token_are_those_of_the_trace(tmp_path: Path, number: int) -> None:
    reader = make_trace(tmp_path / "trace")
    found = group(reader, STEP, number)
    assert (found["step"], found["group"], found["prompt_id"], found["size"]) == (STEP, number, f"p{number // 10}", 4)
    assert found["prompt"] == f"Question {number // 10}:\n what?"
    compared = 0
    for sample in found["samples"]:
        assert sorted(sample["updates"]) == (["0", "2"] if sample["id"] % 2 == 0 else ["1", "3"])
        for update, fate in sample["updates"].items():
            tokens = read_tokens(reader, STEP, int(update))
            tokens = tokens.rows(tokens.sample == sample["id"])
            tokens = tokens.rows(np.argsort(tokens.position))
            count = len(tokens)
            assert len(sample["text"]) == len(sample["token"]) == count == sample["length"]
            for name in ("region", "effect"):
                assert column(fate, name, count) == getattr(tokens, name).tolist()
            for name in ("advantage", "weight", "weight_unclipped", "removed", "entropy", "logp_old", "logp_new"):
                assert np.allclose(column(fate, name, count), getattr(tokens, name), rtol=1e-4, atol=0), name
            assert np.allclose(column(fate, "ratio", count), np.exp(tokens.log_ratio.astype(float)), rtol=1e-7)
            assert "correction" not in fate
            assert "kl_weight" not in fate
            compared += count
    assert compared > 40


def test_completions_are_ordered_by_what_they_lost_over_all_updates(tmp_path: Path) -> None:
    samples = make_samples()
    reader = make_trace(tmp_path / "trace", samples)
    for head in group_heads(reader, STEP):
        tokens = of_group(reader, samples, head["group"])
        lost = {one: float(tokens.removed[tokens.sample == one].sum()) for one in set(tokens.sample.tolist())}
        shown = [sample["id"] for sample in group(reader, STEP, head["group"])["samples"]]
        assert [lost[one] for one in shown] == sorted(lost.values(), reverse=True)


def test_limits_leave_the_worst_completions_and_the_first_tokens(tmp_path: Path) -> None:
    reader = make_trace(tmp_path / "trace")
    whole, cut = group(reader, STEP, 10), group(reader, STEP, 10, None, Limits(samples=2, tokens=5))
    assert [one["id"] for one in cut["samples"]] == [one["id"] for one in whole["samples"]][:2]
    assert cut["size"] == SIZE
    for short, long in zip(cut["samples"], whole["samples"], strict=False):
        assert (short["text"], short["length"]) == (long["text"][:5], long["length"])
        for update, fate in short["updates"].items():
            assert column(fate, "ratio", 5) == column(long["updates"][update], "ratio", long["length"])[:5]
    assert max(len(one["text"]) for one in whole["samples"]) == 300


def test_optional_columns_are_shown_where_the_run_has_them(tmp_path: Path) -> None:
    changes = {u: {"correction": (0, 0.5), "kl_weight": (0, -0.25)} for u in range(4)}
    found = group(make_trace(tmp_path / "trace", changes=changes), STEP, 0)
    fates = [fate for sample in found["samples"] for fate in sample["updates"].values()]
    assert all("correction" in fate and "kl_weight" in fate for fate in fates)


def test_what_was_never_computed_is_none_and_no_word(tmp_path: Path) -> None:
    """Samples whose advantages are all 0; everything else is as in the run that scored them too."""
    whole, skipped = (make_trace(tmp_path / name, skip=skip) for name, skip in (("all", False), ("some", True)))
    assert group_heads(whole, STEP) == group_heads(skipped, STEP)
    unscored = 0
    for head in group_heads(whole, STEP):
        pair = [group(reader, STEP, head["group"])["samples"] for reader in (whole, skipped)]
        for full, sample in zip(*pair, strict=True):
            for update, fate in sample["updates"].items():
                if "scored" not in fate:
                    assert fate == full["updates"][update]
                    continue
                unscored += 1
                assert fate["scored"] is False
                nothing = dict.fromkeys(("logp_old", "logp_new", "entropy", "ratio"))
                assert fate == full["updates"][update] | nothing | {"scored": False}
                assert fate["advantage"] == fate["removed"] == fate["weight"] == fate["weight_unclipped"] == 0
    assert unscored > 3


def test_the_ratio_is_that_of_the_rule(tmp_path: Path) -> None:
    """A sequence's, where the rule saw that; with the digits that bounds of 3e-4 need."""
    changes = {u: {"log_ratio": (slice(None), 3.14e-4)} for u in range(4)}
    found = group(make_trace(tmp_path / "trace", changes=changes), STEP, 0)
    ratios = {fate["ratio"] for sample in found["samples"] for fate in sample["updates"].values()}
    assert ratios == {1.000314}


def test_a_completion_that_no_update_took_is_shown_without_tokens(tmp_path: Path) -> None:
    """A run that leaves a batch early, or drops what would not fit."""
    samples = make_samples()
    writer = TraceWriter(tmp_path / "t", 10**6, 0, regions=dict(enumerate(REGIONS)), effects=dict(enumerate(EFFECTS)))
    writer.begin_step(STEP, samples)
    writer.finish_step()
    reader = TraceReader(tmp_path / "t")
    assert [head["signal"] for head in group_heads(reader, STEP)] == [0] * GROUPS
    for sample in group(reader, STEP, 0)["samples"]:
        assert (sample["text"], sample["updates"]) == ([], {})
        assert sample["length"] > 0


def test_texts_are_safe(tmp_path: Path) -> None:
    count = GROUPS * SIZE
    samples = make_samples(prompt=["\x1b[2J<b>\u202e\nnext"] * count, prompt_id=["\x1b]0;x\x07"] * count)
    found = group(make_trace(tmp_path / "trace", samples), STEP, 0)
    assert found["prompt"] == "\\x1b[2J<b>\\u202e\nnext"
    assert found["prompt_id"] == "\\x1b]0;x\\x07"
    assert found["samples"][0]["written"] == "a\\x1b[31mb"
    assert set(found["samples"][0]["parts"]) == {"task", "<b>"}
    assert found["samples"][0]["text"][0].startswith("⟨")


def test_a_spelling_is_asked_for_each_completion_as_a_whole(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def spell(tokens: Sequence[int]) -> Spelling:
        asked.append(list(tokens))
        return Spelling([f"t{token}" for token in tokens], {1: "e6 b5"})

    found = group(make_trace(tmp_path / "trace"), STEP, 0, spell)
    assert [sample["token"] for sample in found["samples"]] == asked
    assert found["samples"][0]["text"] == [f"t{token}" for token in asked[0]]
    assert found["samples"][0]["bytes"] == {"1": "e6 b5"}
    assert found["samples"][0]["written"] is None


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    reader = make_trace(tmp_path / "trace")
    with pytest.raises(InputError, match="step 3 has no recorded prompt 7"):
        group(reader, STEP, 7)
    with pytest.raises(InputError):
        group_heads(reader, STEP + 1)
    path = tmp_path / "trace" / f"step-{STEP:06d}" / "update-001.rank0.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailed, match="damaged"):
        group_heads(TraceReader(tmp_path / "trace"), STEP)


NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64, allow_subnormal=False)


@given(st.lists(NUMBERS, max_size=8))
def test_numbers_are_rounded_as_text_is(values: list[float]) -> None:
    """To five digits, in the shortest writing; what is not finite by its name."""
    for value, rounded in zip(values, _numbers(np.array(values, dtype=np.float64), 5), strict=True):
        if not math.isfinite(value):
            assert isinstance(rounded, str)
            assert float(rounded) == value or math.isnan(value)
        else:
            assert rounded == pytest.approx(value, rel=6e-5)
            if 1e-15 < abs(value) < 1e15:
                assert rounded == float(f"{rounded:.5g}")
