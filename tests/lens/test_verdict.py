"""Each sentence of the verdict, against made-up records, and that they are true for every rule."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_summary import CONFIG, ROWS, make_run

from dinghai.lens import closing_lines, sentences, summarize
from dinghai.lens.words import counted, joined, ordinal, percent
from dinghai.objective import RULES, Effect, PolicyLoss
from dinghai.testing.batches import random_batch


def verdict(folder: Path, rows: list[dict[str, Any]], config: dict[str, Any] | None = CONFIG) -> list[str]:
    return sentences(summarize(make_run(folder, rows, config)))


def accuracies(*pairs: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"step": step, "held_out/accuracy": value} for step, value in pairs]


def rewards(values: list[float]) -> list[dict[str, Any]]:
    return [{"step": step, "reward/mean": value} for step, value in enumerate(values, start=1)]


# --- did it learn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "problems", "expected"),
    [
        (
            ROWS,
            None,
            "Held-out accuracy rose from 41.0% to 87.0% over 2 steps (reward from 0.25 to 0.75; two evaluations).",
        ),
        (
            accuracies((0, 0.5), (1, 0.4)),
            None,
            "Held-out accuracy fell from 50.0% to 40.0% over 1 step (two evaluations).",
        ),
        (accuracies((0, 0.5), (1, 0.5)), 8, "Held-out accuracy stayed at 50.0% over 1 step (two evaluations)."),
        (
            accuracies((0, 0.5), (1, 0.6), (2, 0.4)),
            50,  # 2·√(0.25/50 + 0.24/50) = 0.198
            "Held-out accuracy shows no change beyond noise over 2 steps: 50.0% at first and 40.0% at last, where 50 "
            "problems can tell a change of 19.8 points.",
        ),
        (accuracies((0, 0.5), (1, 0.6), (2, 0.4)), 200, "Held-out accuracy fell from 50.0% to 40.0% over 2 steps."),
        (
            [*accuracies((0, 0.4)), *rewards([0.2])],
            None,
            "The run made one step, whose mean reward was 0.2. Held-out accuracy was evaluated once, at step 0: 40.0%.",
        ),
        (
            rewards([0.2, 0.3]),
            None,
            "The reward went from 0.2 to 0.3 over 2 steps, which are too few to tell a change from noise.",
        ),
        (
            rewards([0.1, 0.2, 0.3] + [0.5] * 9 + [0.8, 0.9, 1.0]),
            None,
            "The reward rose from 0.2 to 0.9 over 15 steps (means of the first and last 3 steps).",
        ),
        (
            rewards([0.8, 0.9, 1.0] + [0.5] * 9 + [0.1, 0.2, 0.3]),
            None,
            "The reward fell from 0.9 to 0.2 over 15 steps (means of the first and last 3 steps).",
        ),
        (
            rewards([0.1, 0.5, 0.9] * 5),
            None,
            "The reward shows no change beyond noise: 0.5 to 0.5 over 15 steps (means of the first and last 3 steps).",
        ),
        ([{"step": 1}], None, "The run made 1 step."),
        ([{"step": 0, "held_out/accuracy": 0.4}], None, "No training step was recorded."),
    ],
)
def test_what_was_learned(tmp_path: Path, rows: list[dict[str, Any]], problems: int | None, expected: str) -> None:
    config = CONFIG | {"run": {}} | ({"task": {"held_out": problems}} if problems else {})
    assert verdict(tmp_path, rows, config)[0] == expected


def test_a_run_cut_short_says_how_far_it_came(tmp_path: Path) -> None:
    assert "over 2 of 40 planned steps" in verdict(tmp_path, ROWS, CONFIG | {"run": {"steps": 40}})[0]


def test_a_run_without_a_step_is_not_said_to_be_right(tmp_path: Path) -> None:
    assert verdict(tmp_path, []) == ["No training step was recorded."]


# --- what the rule did -----------------------------------------------------------------------------------------------


def acted(**clip: float) -> list[dict[str, Any]]:
    return [{"step": 1, "tokens/loss": 200, "tokens/signal": 100} | {f"clip/{k}": v for k, v in clip.items()}]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (
            {"stopped_fraction": 0.04, "gradient_removed/total": 0.035},
            "The rule stopped 4.0% of the tokens that had a signal and took away 3.5% of the gradient.",
        ),
        ({"stopped_fraction": 0.04}, "The rule stopped 4.0% of the tokens that had a signal."),
        (
            {"stopped_fraction": 0.0002, "gradient_removed/total": 0.00003},
            "The rule stopped 0.02% of the tokens that had a signal and took away 0.003% of the gradient.",
        ),
        (
            {"stopped_fraction": 0.0, "gradient_removed/total": 0.0, "effect/kept_fraction": 0.5},
            "The rule left the gradient of every token as it was.",
        ),
        (
            {"stopped_fraction": 0.0, "gradient_removed/total": 0.2, "effect/attenuated_fraction": 0.25},
            "The rule weakened 50.0% of the tokens that had a signal and took away 20.0% of the gradient.",
        ),
        (
            {
                "stopped_fraction": 0.1,
                "gradient_removed/total": 0.2,
                "effect/attenuated_fraction": 0.1,
                "effect/amplified_fraction": 0.05,
                "effect/reversed_fraction": 0.01,
            },
            "The rule stopped 10.0%, weakened 20.0%, strengthened 10.0% and reversed 2.0% of the tokens that had a "
            "signal, and took away 20.0% of the gradient.",
        ),
        (
            {"stopped_fraction": 0.1, "gradient_removed/total": 0.2, "gradient_removed/dropped": 0.2},
            "The rule and the rollout correction stopped 10.0% of the tokens that had a signal and took away 20.0% of "
            "the gradient.",
        ),
        (
            {"stopped_fraction": 1.0, "gradient_removed/total": 1.0},
            "The rule stopped 100.0% of the tokens that had a signal and took away 100.0% of the gradient.",
        ),
    ],
)
def test_what_the_rule_took(tmp_path: Path, clip: dict[str, float], expected: str) -> None:
    assert verdict(tmp_path, acted(**clip))[1] == expected


ONE_UPDATE = CONFIG | {"update": {"epochs": 1, "minibatches": 1}}


def test_one_update_a_batch_means_that_epsilon_did_nothing(tmp_path: Path) -> None:
    said = verdict(tmp_path, acted(**{"stopped_fraction": 0.0, "gradient_removed/total": 0.0}), ONE_UPDATE)
    assert said[1] == (
        "Each batch of rollouts got one update, so the ratio r was 1 throughout and bounds on it did nothing; set "
        "update.epochs or update.minibatches above 1 for them to act."
    )


def test_one_update_a_batch_with_a_rule_that_acts_at_a_ratio_of_one(tmp_path: Path) -> None:
    """Clip-Cov, say, which takes tokens by their covariance."""
    said = verdict(tmp_path, acted(**{"stopped_fraction": 0.02, "gradient_removed/total": 0.1}), ONE_UPDATE)
    assert said[1] == (
        "Each batch of rollouts got one update, so the ratio r was 1 throughout and bounds on it did nothing. All the "
        "same the rule stopped 2.0% of the tokens that had a signal and took away 10.0% of the gradient."
    )


def test_nothing_is_said_of_a_ratio_that_was_not_one(tmp_path: Path) -> None:
    clip = {"stopped_fraction": 0.02, "gradient_removed/total": 0.1, "band_fraction": 0.1}
    assert "r was 1" not in " ".join(verdict(tmp_path, acted(**clip), ONE_UPDATE))


def by_update(stopped: list[float], removed: list[float]) -> list[dict[str, Any]]:
    entries = [
        {"update": index, "signal_tokens": 10, "stopped_fraction": s, "gradient_removed/total": r}
        for index, (s, r) in enumerate(zip(stopped, removed, strict=True))
    ]
    return [{"step": 1, "by_update": entries}]


@pytest.mark.parametrize(
    ("stopped", "removed", "expected"),
    [
        (
            [0, 0.01, 0.02, 0.015],
            [0, 0.1, 0.2, 0.3],
            "It stops tokens from the second of the 4 updates of each batch on, most at the third (2.0% of the "
            "tokens with a signal); at the first every r is 1.",
        ),
        (
            [0, 0],
            [0, 0.25],
            "It takes gradient at the last of the 2 updates of each batch only; at the first every r is 1.",
        ),
        (
            [0.5, 0.01],
            [0, 0.1],
            "It stops tokens from the first update of each batch on, most at the first (50.0% of the tokens with a "
            "signal).",
        ),
        ([0, 0], [0, 0], None),
        ([0.5], [0.5], None),
    ],
)
def test_when_the_rule_acts(tmp_path: Path, stopped: list[float], removed: list[float], expected: str | None) -> None:
    said = [one for one in verdict(tmp_path, by_update(stopped, removed)) if one.startswith("It ")]
    assert said == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (
            "token",
            "75% of the gradient it took lay in overshoot: good tokens that have already become likelier are held "
            "back.",
        ),
        (
            "sequence",
            "75% of the gradient it took lay in overshoot: good completions that have already become likelier are held "
            "back.",
        ),
    ],
)
def test_where_it_took_most(tmp_path: Path, ratio: str, expected: str) -> None:
    clip = {"stopped_fraction": 0.1, "gradient_removed/total": 0.4}
    clip |= {"gradient_removed/overshoot": 0.3, "gradient_removed/escaped": 0.1}
    assert expected in verdict(tmp_path, acted(**clip), CONFIG | {"objective": {"rule": "grpo", "ratio": ratio}})


@pytest.mark.parametrize("share", [1.0, 0.999, 0.6])
def test_all_and_nearly_all(tmp_path: Path, share: float) -> None:
    clip = {"stopped_fraction": 0.1, "gradient_removed/total": 0.4}
    clip |= {"gradient_removed/escaped": 0.4 * share, "gradient_removed/dual": 0.4 * (1 - share)}
    amount = {1.0: "All", 0.999: "Nearly all", 0.6: "60%"}[share]
    assert any(one.startswith(f"{amount} of the gradient") for one in verdict(tmp_path, acted(**clip)))


@pytest.mark.parametrize("name", list(RULES))
@pytest.mark.parametrize("on_policy", [True, False], ids=["first update", "later update"])
def test_the_sentences_are_true_for_every_rule(tmp_path: Path, name: str, on_policy: bool) -> None:
    """What they say of effects is held against the loss's own decision on each token."""
    batch = random_batch(rows=12, length=16, seed=3)
    batch = batch.on_policy() if on_policy else batch
    loss = PolicyLoss(name)
    inputs = {key: value.requires_grad_(key == "logp_new") for key, value in batch.padded().items() if key != "mask"}
    out = loss(**inputs, mask=batch.mask_BT)
    metrics = {f"clip/{key}": value for key, value in out.stats.metrics().items()}
    row = {"step": 1, "tokens/loss": metrics.pop("clip/tokens"), "tokens/signal": metrics.pop("clip/signal_tokens")}
    config = {
        "objective": {"rule": name, "ratio": loss.ratio, "parameters": {}},
        "update": {"epochs": 1, "minibatches": 1 if on_policy else 2},
    }
    said = verdict(tmp_path, [row | metrics], config)

    effect_N = out.decision.effect[batch.mask_BT]
    signal = int(((effect_N != Effect.NONE) & (out.decision.advantage[batch.mask_BT] != 0)).sum())
    spoken = {"stopped": Effect.STOPPED, "weakened": Effect.ATTENUATED, "strengthened": Effect.AMPLIFIED}
    spoken |= {"reversed": Effect.REVERSED}
    for verb, effect in spoken.items():
        share = int((effect_N == effect).sum()) / signal
        found = re.search(rf"{verb} (?:more than )?([\d.]+)% ?", said[1]) if share else None
        if share:
            assert found is not None, (verb, share, said[1])
            assert float(found[1]) == pytest.approx(100 * share, abs=0.11)
        else:
            assert f"{verb} " not in said[1]
    untouched = bool((effect_N == Effect.KEPT)[effect_N != Effect.NONE].all())
    weight, unclipped = out.decision.weight[batch.mask_BT], out.decision.weight_unclipped[batch.mask_BT]
    if untouched:
        assert torch.equal(weight, unclipped)
        assert "as it was" in said[1] or "did nothing; set update.epochs" in said[1]
    else:
        assert "as it was" not in said[1]
        assert "did nothing; set update.epochs" not in said[1]
    if "r was 1 throughout" in said[1]:
        assert on_policy


CUT = [row | {"completion/truncated_fraction": 0.3} for row in ROWS]


# --- what looks wrong, and how it ends -------------------------------------------------------------------------------


def test_a_sound_run_is_told_so(tmp_path: Path) -> None:
    assert verdict(tmp_path, [{"step": 1, "groups/no_signal_fraction": 0.1}])[-1] == "Nothing looks wrong."


def test_what_looks_wrong_comes_last_and_nothing_else_is_said_of_it(tmp_path: Path) -> None:
    said = verdict(tmp_path, CUT)
    assert said[-1].startswith("Many completions are cut: 30.0% were cut at rollout.max_new_tokens")
    assert "Nothing looks wrong." not in said


def test_one_update_a_batch_is_told_once_and_is_not_wrong(tmp_path: Path) -> None:
    rows = [row | {"clip/stopped_fraction": 0.0, "clip/band_fraction": 0.0} for row in ROWS]
    rows = [{key: value for key, value in row.items() if "removed" not in key} for row in rows]
    said = verdict(tmp_path, rows, CONFIG | {"update": {"epochs": 1, "minibatches": 1}})
    assert [one.check for one in summarize(tmp_path).findings] == ["epsilon-cannot-act"]
    assert sum("one update" in one for one in said) == 1
    assert said[-1] == "Nothing looks wrong."


def test_the_terminal_has_the_essence(tmp_path: Path) -> None:
    learned, took, wrong, report = closing_lines(summarize(make_run(tmp_path, CUT)))
    assert learned.startswith("Held-out accuracy rose from 41.0% to 87.0% over 2 steps")
    assert took == (
        "The rule stopped 4.0% of the tokens that had a signal and took away 3.5% of the gradient; "
        "64% of that in the region overshoot (good tokens already pushed far enough)."
    )
    assert wrong.startswith("Many completions are cut: 30.0% were cut at rollout.max_new_tokens")
    assert report == f"The report is {tmp_path / 'report.html'}."


def test_the_terminal_leaves_the_lesser_troubles_to_the_report(tmp_path: Path) -> None:
    bad = {
        "clip/nonfinite_tokens": 1.0,
        "clip/ess_fraction": 0.1,
        "clip/gradient_removed/total": 0.95,
        "groups/no_signal_fraction": 0.9,
        "completion/truncated_fraction": 0.5,
    }
    lines = closing_lines(summarize(make_run(tmp_path, [{"step": step} | bad for step in range(1, 5)])))
    assert len(lines) == 5
    assert lines[-1].endswith("It names 2 more things that look wrong.")


@pytest.mark.parametrize("value", ["\x1b[31m", "<b>", "{0}", "%s"])
def test_a_name_from_the_settings_cannot_break_a_sentence(tmp_path: Path, value: str) -> None:
    config: dict[str, Any] = {"objective": {"rule": value, "ratio": value}, "task": {"held_out": value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    assert value not in " ".join(sentences(summarize(tmp_path)))


def test_numbers_in_words() -> None:
    assert [counted(n, "step") for n in (0, 1, 2, 1500)] == ["no steps", "1 step", "2 steps", "1,500 steps"]
    assert [ordinal(n) for n in (1, 10, 11, 12, 21, 22, 23, 111)] == [
        "first", "tenth", "11th", "12th", "21st", "22nd", "23rd", "111th",
    ]  # fmt: skip
    assert [percent(x) for x in (0, 2e-6, 0.0004, 0.123, 0.9999, 1)] == [
        "0.0%", "0.0002%", "0.04%", "12.3%", "more than 99.9%", "100.0%",
    ]  # fmt: skip
    assert [joined(list(parts)) for parts in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
