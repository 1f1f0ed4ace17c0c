"""Proves the pages of one_update, tokens_and_gradient, gspo_fraction, dual_clip, critic and claims: their verdicts
follow from the numbers alone, and the pages in studies/results are what their numbers say.

Run: pytest tests/studies/test_study_pages_b.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import claims
import critic
import dual_clip
import gspo_fraction
import one_update
import pytest
import single_tokens
import tokens_and_gradient
from common.page import CAME_OUT, NOT_TOLD_APART, REVERSED, Page, markdown
from common.results import Results, Run, read_results
from common.study import Study

from dinghai.objective import RULES
from dinghai.view.figure_style import as_svg, figure_settings

STUDIES = Path(claims.__file__).parent
PAGES = STUDIES.parent / "src" / "dinghai" / "view" / "page"
ALL: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (claims, critic, dual_clip, gspo_fraction, one_update, tokens_and_gradient)
}
SEEDS = 5

# --- synthetic numbers -----------------------------------------------------------------------------------------------


def results_of(study: Study, measures: Callable[[str, int], Mapping[str, object]]) -> Results:
    """Results with the study's arms whose numbers are given: measures(arm, seed)."""
    return Results(
        study=study.name,
        arms={arm.key: arm.label for arm in study.arms},
        changes={arm.key: {} for arm in study.arms},
        settings={"run.steps": 20},
        made={"date": "2026-01-01", "machine": "a machine", "python": "3", "torch": "2"},
        runs=tuple(
            Run(arm.key, seed, None, dict(measures(arm.key, seed))) for arm in study.arms for seed in range(SEEDS)
        ),
    )


def outcomes(study: Study, results: Results) -> list[str]:
    """The verdicts of the page, in order; the page is written as well, and must have a number in every place."""
    page = study.page(results)
    text = markdown(page, results)
    assert page.summary in text
    assert "nan" not in text.split()
    assert "None" not in text
    return [finding.outcome for finding in page.findings]


def near(value: float, seed: int) -> float:
    """The value with a spread over the seeds that no interval of differences hides behind."""
    return value * (1 + 0.001 * seed)


# --- one update ------------------------------------------------------------------------------------------------------


def distances(apart: Mapping[str, float], otherwise_at_4: float) -> Callable[[str, int], dict[str, float]]:
    def measures(arm: str, seed: int) -> dict[str, float]:
        distance = apart.get(arm, 0.0 if arm.endswith("-1") else otherwise_at_4)
        return {"distance": distance, "fingerprint": hash((arm if distance else "same", seed)) % 2**48}

    return measures


def test_one_update_names_each_rule_that_differs_with_its_reason() -> None:
    """All equal: it came out. clip_cov may differ, since it says so itself; if PPO does, it did not come out."""
    study = ALL["one_update"]
    assert outcomes(study, results_of(study, distances({}, 0.5))) == [CAME_OUT, CAME_OUT]
    assert outcomes(study, results_of(study, distances({}, 0.0))) == [CAME_OUT, "did not come out"]
    excepted = results_of(study, distances({"clip_cov-1": 0.3}, 0.5))
    assert outcomes(study, excepted)[0] == CAME_OUT
    assert "clip_cov: tokens drawn for their covariance are detached" in study.page(excepted).summary
    broken = results_of(study, distances({"ppo-1": 0.3}, 0.5))
    assert outcomes(study, broken)[0] == "did not come out"
    assert "ppo: none that the registry knows" in study.page(broken).summary


def test_one_update_asks_every_registered_rule() -> None:
    """Each rule of the package, with one update and with four, and one reduction for all."""
    own = {rule.name for rule in RULES.values() if rule.surrogate.__module__.startswith("dinghai.")}
    asked = {arm.changes["objective"]["rule"] for arm in ALL["one_update"].arms}
    assert own <= asked
    settings = [ALL["one_update"].trial(arm, 0, Path(), None).settings for arm in ALL["one_update"].arms]
    assert {tables["objective"]["reduction"] for tables in settings} == {"token-mean"}
    assert len(ALL["one_update"].arms) == 2 * len(asked)


# --- tokens and gradient ---------------------------------------------------------------------------------------------


def shares(times: float, surprise: float, weight: float) -> Callable[[str, int], dict[str, float]]:
    def measures(arm: str, seed: int) -> dict[str, float]:
        found = {"fraction/stopped": near(0.02, seed), "share/stopped": near(0.02 * times, seed)}
        logs = {"share_to_fraction": times, "surprise": surprise, "weight": weight}
        return found | {f"log_{name}/stopped": math.log(near(value, seed)) for name, value in logs.items()}

    return measures


def test_tokens_and_gradient_is_false_only_where_they_differ_by_a_factor_of_two() -> None:
    """The first verdict follows share / fraction, the second which factor is the larger."""
    study = ALL["tokens_and_gradient"]
    assert outcomes(study, results_of(study, shares(12, 11, 1.1)))[:2] == ["false", CAME_OUT]
    assert outcomes(study, results_of(study, shares(1.5, 1.1, 1.4)))[:2] == [
        "not refuted at this scale",
        NOT_TOLD_APART,
    ]
    assert outcomes(study, results_of(study, shares(0.1, 0.2, 0.5)))[:2] == ["false", NOT_TOLD_APART]


# --- GSPO ------------------------------------------------------------------------------------------------------------


def stopped(times: float, better: float) -> Callable[[str, int], dict[str, object]]:
    def measures(arm: str, seed: int) -> dict[str, object]:
        fraction = 0.005 * (times if arm == gspo_fraction.GSPO else 1)
        accuracy = 0.6 + 0.01 * seed + (near(better, seed) if arm == gspo_fraction.GSPO else 0.0)
        return {
            "stopped": fraction,
            "log_stopped": math.log(fraction) + 0.01 * seed * (arm == gspo_fraction.GSPO),
            "accuracy_end": accuracy,
            "accuracy": [0.4, accuracy],
            "evaluation_steps": [0, 20],
        }

    return measures


@pytest.mark.parametrize(
    "times, better, expected",
    [
        (100.0, 0.05, [CAME_OUT, CAME_OUT]),
        (8.0, -0.05, ["came out in direction, not in size", REVERSED]),
        (0.5, 0.0, [NOT_TOLD_APART, NOT_TOLD_APART]),
    ],
)
def test_gspo_fraction_tells_direction_from_size(times: float, better: float, expected: list[str]) -> None:
    """About a hundredfold, more but far from a hundredfold, and not more."""
    study = ALL["gspo_fraction"]
    assert outcomes(study, results_of(study, stopped(times, better))) == expected


# --- dual clip -------------------------------------------------------------------------------------------------------


def weights(with_c: float, without: float, beyond: float, better: float) -> Callable[[str, int], dict[str, float]]:
    def measures(arm: str, seed: int) -> dict[str, float]:
        is_with = arm.startswith(dual_clip.WITH + "-")
        norm = 1.0 if is_with else 10 ** near(0.5, seed)
        return {
            "weight_largest": with_c if is_with else without,
            "gradient_beyond": near(beyond, seed),
            "norm_largest": norm,
            "log10_norm_largest": math.log10(norm),
            "accuracy_start": 0.4,
            "accuracy_end": 0.6 + (near(better, seed) if is_with else 0.0),
        }

    return measures


def test_dual_clip_bounds_only_what_is_bounded() -> None:
    """In every run with it at most c, and beyond c in some without; otherwise the verdict says so."""
    study = ALL["dual_clip"]
    both = f"{CAME_OUT} at 2 of 2 settings"
    assert outcomes(study, results_of(study, weights(3.0, 40.0, 0.05, 0.02))) == [
        CAME_OUT,
        "came out at 2 of 2 learning rates",
        both,
        both,
    ]
    assert outcomes(study, results_of(study, weights(3.0, 2.0, 0.0, -0.02))) == [
        "true, but nothing needed it here",
        NOT_TOLD_APART,
        both,
        f"{REVERSED} at 2 of 2 settings",
    ]
    assert outcomes(study, results_of(study, weights(3.1, 40.0, 0.05, 0.02)))[0] == "did not come out"


# --- critic ----------------------------------------------------------------------------------------------------------


def critics(better: float, explained: float, slower: float) -> Callable[[str, int], dict[str, object]]:
    def measures(arm: str, seed: int) -> dict[str, object]:
        of_ppo = arm == critic.PPO
        accuracy = 0.7 + 0.01 * seed + (near(better, seed) if of_ppo else 0.0)
        found: dict[str, object] = {
            "accuracy": [0.4, accuracy],
            "evaluation_steps": [0, 20],
            "accuracy_mean": accuracy,
            "accuracy_end": accuracy,
            "seconds_update": 0.1 + (near(slower, seed) if of_ppo else 0.0),
            "explained": [],
        }
        if of_ppo:
            found |= {"explained": [None, explained], "explained_late": near(explained, seed)}
        return found

    return measures


def test_critic_is_judged_by_accuracy_by_skill_and_by_time() -> None:
    """Three verdicts, each of its own number."""
    study = ALL["critic"]
    assert outcomes(study, results_of(study, critics(0.05, 0.4, 0.1))) == [CAME_OUT, CAME_OUT, CAME_OUT]
    no_better = "did not come out: it is no better than a constant"
    assert outcomes(study, results_of(study, critics(-0.05, 0.01, -0.05))) == [REVERSED, no_better, REVERSED]


# --- claims ----------------------------------------------------------------------------------------------------------


def runs_of_clip(escaped: Callable[[int], float]) -> Callable[[str, int], dict[str, float]]:
    return lambda arm, seed: {"removed_escaped": escaped(seed), "log_ratio_largest": 1.5, "stopped_first": 0.0}


def test_claims_have_the_verdicts_of_the_explainer() -> None:
    """Each verdict is computed, from autograd and runs; the explainer's page must say the same, in the same order."""
    study = ALL["claims"]
    results = results_of(study, runs_of_clip(lambda seed: near(0.1, seed)))
    outcomes(study, results)
    told = {claim["id"]: claim["verdict"] for claim in json.loads((PAGES / "explain_claims.json").read_text("utf-8"))}
    assert {claim.key: claim.verdict for claim in claims.claims(results)} == told
    assert [claim.key for claim in claims.claims(results)] == list(told)


def test_claims_follow_the_runs() -> None:
    """If no gradient is removed in `escaped`, that the clip protects what was learned is only half shown."""
    study = ALL["claims"]
    results = results_of(study, runs_of_clip(lambda seed: 0.01 * (seed - 2)))
    assert {claim.key: claim.verdict for claim in claims.claims(results)}["protects"] == "half"


def test_single_tokens_by_hand_agree_with_the_rule_at_every_token() -> None:
    """Value and autograd of the formula written out, against the rule's closed form; and GRPO's loss to 1e-12."""
    shown = [token for tokens in claims.tokens().values() for token in tokens]
    assert len(shown) > 15
    assert all(token.agrees for token in shown)
    assert all(
        token.region == region for region in claims.tokens() if region != "dual" for token in claims.tokens()[region]
    )
    assert single_tokens.grpo_loss().error <= 1e-12
    assert single_tokens.show(1.43, 1).value == pytest.approx(1.2, abs=1e-12)
    assert not replace(single_tokens.show(1.43, 1), weight=0.3).agrees


@pytest.mark.parametrize(
    "name, measures",
    [
        ("claims", runs_of_clip(lambda seed: 0.1)),
        ("critic", critics(0.05, 0.4, 0.1)),
        ("dual_clip", weights(3.0, 40.0, 0.05, 0.02)),
        ("gspo_fraction", stopped(100.0, 0.05)),
        ("one_update", distances({}, 0.5)),
        ("tokens_and_gradient", shares(12, 11, 1.1)),
    ],
)
def test_figure_is_drawn_from_numbers(name: str, measures: Callable[[str, int], Mapping[str, object]]) -> None:
    """From synthetic numbers, without a warning."""
    with figure_settings():
        assert b"<svg" in as_svg(ALL[name].figure(results_of(ALL[name], measures)))


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_claimed_where_every_run_failed(name: str) -> None:
    """No number, no verdict that something came out: what is left of the claims are those that need no run."""
    study = ALL[name]
    results = results_of(study, lambda arm, seed: {})
    results = replace(results, runs=tuple(replace(run, error="it failed") for run in results.runs))
    assert CAME_OUT not in outcomes(study, results)
    if name == "claims":
        assert {claim.key: claim.verdict for claim in claims.claims(results)}["protects"] == "half"
    with figure_settings():
        assert b"<svg" in as_svg(study.figure(results))


@pytest.mark.parametrize("name", ALL)
def test_page_is_what_the_numbers_say(name: str) -> None:
    """studies/results/NAME.md is what the study says of NAME.json, and at least five seeds stand behind it."""
    results = read_results(STUDIES / "results" / f"{name}.json")
    page: Page = ALL[name].page(results)
    assert (STUDIES / "results" / f"{name}.md").read_text("utf-8") == markdown(page, results)
    assert len(results.seeds) >= 5
