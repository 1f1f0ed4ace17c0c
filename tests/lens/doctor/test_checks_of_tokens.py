"""The doctor's checks that read tokens: each fires on a run with its fault, names the cause, and not on one without.

Run: pytest tests/lens/doctor/test_checks_of_tokens.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.checks import duplicates, entropy_bounds, first_update, kl_tokens, noise_floor, relapse
from dinghai.lens.doctor.checks.entropy_bounds import attribution, entropy_push
from dinghai.lens.doctor.finding import Grade, Place
from dinghai.lens.metrics_file import load_metrics
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.tokens import Tokens

sys.path.insert(0, str(Path(__file__).parents[2] / "train"))  # the tiny runs of the tests of training
from tiny_runs import run_tiny
from token_faults import (
    LENGTH,
    SIZE,
    exact,
    found,
    heated,
    log_softmax,
    look,
    make_case,
    of_some,
    scattered,
    shifted,
    truncated,
)

MODULES = (duplicates, entropy_bounds, first_update, kl_tokens, noise_floor, relapse)
MINE = [check for module in MODULES for check in module.CHECKS]


def names_found(case: Case) -> list[str]:
    return [check.name for check in MINE if check.look(case) is not None]


def case_of(run: Path) -> Case:
    return Case(run, json.loads((run / "config.json").read_text("utf-8")), load_metrics(run / "metrics.jsonl"))


# --- runs without a fault ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [1.0, 4.0, 12.0], ids=["flat", "usual", "many completions come out alike"])
@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_is_found_in_a_run_without_a_fault(tmp_path: Path, sharpness: float, steps: int) -> None:
    case = make_case(tmp_path, steps=steps, sharpness=sharpness, sampler=scattered(1e-6), old=scattered(1e-6))
    assert names_found(case) == []


def test_nothing_is_found_in_a_run_that_was_trained_and_nothing_fails_without_a_trace(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "healthy", {"update": {"lr": 1e-3}})
    assert names_found(case_of(run)) == []
    (run / "trace").rename(run / "elsewhere")
    assert names_found(case_of(run)) == []
    assert names_found(Case(tmp_path / "no run", {}, load_metrics(run / "metrics.jsonl"))) == []


def test_no_check_fails_on_what_is_not_finite(tmp_path: Path) -> None:
    def broken(columns: dict[str, np.ndarray]) -> None:
        one_far_gone(columns)
        for name in ("logp_sampler", "logp_old", "logp_new", "entropy"):
            columns[name][::7], columns[name][1::7], columns[name][2::7] = np.nan, -np.inf, np.inf

    def unknown(logits_STV: np.ndarray, token_ST: np.ndarray, random: np.random.Generator) -> np.ndarray:
        logp_ST = exact(logits_STV, token_ST, random)
        logp_ST[:, 1], logp_ST[:, 2], logp_ST[SIZE : 2 * SIZE] = np.nan, -np.inf, np.nan
        return logp_ST

    rows = [{"clip/kl_old_new_k3": 0.4, "clip/region/relapse_fraction": 0.1}] * 3
    case = make_case(tmp_path, tamper=broken, sampler=unknown, copies=SIZE, rows=rows)
    assert {"kl-blow-up", "relapse-dominates"} <= set(names_found(case))
    attribution(case, case.steps)


# --- r = 1 in the first update ---------------------------------------------------------------------------------------

CAUSES: dict[str, dict[str, Any]] = {
    "different temperatures": {"scorer": heated(0.7)},
    "truncated distribution": {"scorer": truncated(0.8), "settings": {"rollout.top_p": 0.8}},
    "shifted by one token": {"scorer": shifted},
    "Some completions are read otherwise": {"scorer": of_some(8, scattered(1.0))},
    "dropout": {"scorer": scattered(0.3)},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_ratio_that_is_not_1_before_any_update_is_told_with_its_cause(tmp_path: Path, cause: str) -> None:
    how = CAUSES[cause]
    case = make_case(tmp_path, sampler=how["scorer"], old=how["scorer"], settings=how.get("settings"))
    finding = found(case, "ratio-not-one")
    assert finding.grade == Grade.INVALID
    assert cause in finding.cause
    assert finding.evidence[0].place.update == 0
    furthest = [one.place for one in finding.evidence if one.place.position is not None]
    assert {place.group == (place.sample or 0) // SIZE for place in furthest} == {True}


def test_the_temperature_is_named(tmp_path: Path) -> None:
    for wrong in (0.8, 1.25):
        finding = found(make_case(tmp_path / str(wrong), old=heated(wrong)), "ratio-not-one")
        assert finding is not None
        (said,) = (one.text for one in finding.evidence if "temperature" in one.text)
        assert float(said.split("about ")[1].split()[0]) == pytest.approx(wrong, abs=0.06)


def test_rounding_far_from_the_bounds_is_a_note_and_says_which_precision(tmp_path: Path) -> None:
    case = make_case(tmp_path / "bf16", old=scattered(3e-3), settings={"model.dtype": "bfloat16"})
    finding = found(case, "ratio-not-one")
    assert finding.grade == Grade.NOTE
    assert 'model.dtype = "float32"' in finding.fix
    finding = found(make_case(tmp_path / "shape", old=scattered(5e-4)), "ratio-not-one")
    assert "update.micro_batch_tokens" in finding.fix


def test_what_lies_beyond_a_bound_is_counted_in_what_the_rule_sees(tmp_path: Path) -> None:
    """Scatter of single tokens cancels in the mean over a sequence, and the bounds of sequences are narrower."""
    narrow = {"eps_low": 0.05, "eps_high": 0.05, "dual_clip": None}
    shares = []
    for ratio in ("token", "sequence"):
        settings = {"objective.ratio": ratio, "objective.parameters": narrow}
        finding = found(make_case(tmp_path / ratio, old=scattered(0.1), settings=settings), "ratio-not-one")
        assert f"% of the {ratio}s lie beyond" in finding.evidence[0].text
        shares.append(finding.share)
    assert shares[1] < 0.5 * shares[0]


def test_dropout_rates_of_the_model_are_named(tmp_path: Path) -> None:
    case = make_case(tmp_path, old=scattered(0.3))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"attn_pdrop": 0.1, "resid_pdrop": 0.0, "layers": 1}')
    finding = found(case, "ratio-not-one")
    assert any("attn_pdrop 0.1" in one.text for one in finding.evidence)
    assert not any("resid_pdrop" in one.text for one in finding.evidence)


def test_log_probs_that_may_be_the_engines_are_told_from_those_that_cannot(tmp_path: Path) -> None:
    as_engine: dict[str, Any] = {"sampler": heated(0.7), "old": heated(0.7)}
    theirs = {"update.shortcuts.old_log_probs": "engine"}
    finding = found(make_case(tmp_path / "engine", settings=theirs, **as_engine), "ratio-not-one")
    assert 'update.shortcuts.old_log_probs = "score"' in finding.fix
    finding = found(make_case(tmp_path / "own", **as_engine), "ratio-not-one")
    assert "old_log_probs" not in finding.fix
    assert "log π_new is" in finding.evidence[-1].text
    finding = found(make_case(tmp_path / "apart", old=heated(0.7), settings=theirs), "ratio-not-one")
    assert "old_log_probs" not in finding.fix


# --- engine and trainer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", CAUSES)
def test_an_engine_that_is_another_policy_is_told_with_its_cause(tmp_path: Path, cause: str) -> None:
    how = CAUSES[cause]
    finding = found(make_case(tmp_path, sampler=how["scorer"], settings=how.get("settings")), "engine-mismatch")
    assert finding.grade >= Grade.HARMFUL
    assert cause in finding.cause
    assert look(make_case(tmp_path / "none"), "engine-mismatch") is None


def test_an_engine_in_low_precision_has_a_remedy_and_a_correction_takes_the_edge_off(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rollout.dtype": "bfloat16"}
    finding = found(make_case(tmp_path / "plain", sampler=scattered(0.3), settings=settings), "engine-mismatch")
    assert finding.grade == Grade.HARMFUL
    assert finding.fix == 'set rollout.dtype = "float32", or correct for it with objective.corrections.tis'
    settings["objective.corrections"] = {"tis": {"cap": 2.0}}
    finding = found(make_case(tmp_path / "tis", sampler=scattered(0.3), settings=settings), "engine-mismatch")
    assert finding.grade == Grade.NOTE
    # As far apart as engines in bfloat16 are reported to be: a KL of 0.001.
    assert look(make_case(tmp_path / "usual", sampler=scattered(0.05), settings=settings), "engine-mismatch") is None


# --- epsilon and the noise -------------------------------------------------------------------------------------------


def test_bounds_within_the_noise_are_told_and_how_many_stops_are_chance(tmp_path: Path) -> None:
    narrow = {"objective": {"eps_low": 1e-7, "eps_high": 1e-7}, "update": {"lr": 1e-5}}
    finding = found(case_of(run_tiny(tmp_path, "fault", narrow)), "epsilon-in-noise")
    assert finding.grade == Grade.INVALID
    assert "noise of that size alone" in finding.evidence[1].text
    assert look(make_case(tmp_path / "none", sampler=scattered(0.01)), "epsilon-in-noise") is None


def test_noise_of_the_engine_alone_is_not_said_to_stop_anything(tmp_path: Path) -> None:
    """The ratio is of the trainer's two log-probs, in which the engine's rounding is not."""
    settings = {"rollout.dtype": "bfloat16"}
    finding = found(make_case(tmp_path / "engine", sampler=scattered(0.3), settings=settings), "epsilon-in-noise")
    assert finding.grade == Grade.NOTE
    assert len(finding.evidence) == 1
    both = settings | {"model.dtype": "bfloat16"}
    finding = found(make_case(tmp_path / "both", sampler=scattered(0.3), settings=both), "epsilon-in-noise")
    assert finding.grade == Grade.INVALID
    assert "float32 in model.dtype and rollout.dtype" in finding.fix


# --- relapse ---------------------------------------------------------------------------------------------------------


def one_far_gone(columns: dict[str, np.ndarray], ratio: float = 500.0) -> None:
    """Sample 2, position 3 (A < 0): a rare token that became `ratio` times likelier; all others hardly moved."""
    row = 2 * LENGTH + 3
    columns["logp_old"][row] = np.log(0.001)
    columns["logp_new"][row] = np.log(0.001 * ratio)


def test_a_token_in_relapse_that_makes_the_gradient_is_named_and_dual_clip_is_the_remedy(tmp_path: Path) -> None:
    finding = found(make_case(tmp_path, tamper=one_far_gone), "relapse-dominates")
    assert finding.check == "relapse-dominates"
    assert "objective.dual_clip = 3" in finding.fix
    assert Place(finding.evidence[1].place.step, 1, 0, 2, 3) in [one.place for one in finding.evidence]
    assert any("r = 500:" in one.text for one in finding.evidence)


def test_what_the_dual_clip_stopped_or_a_rule_without_one_is_not_told_to_set_it(tmp_path: Path) -> None:
    def stopped(columns: dict[str, np.ndarray]) -> None:
        one_far_gone(columns)
        columns["advantage"][2 * LENGTH + 3] = 1.0  # then the clip itself stops it

    assert look(make_case(tmp_path / "stopped", tamper=stopped), "relapse-dominates") is None
    bounded = {"objective.parameters": {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": 1000.0}}
    finding = found(make_case(tmp_path / "wide", tamper=one_far_gone, settings=bounded), "relapse-dominates")
    assert "dual_clip" not in finding.fix


def test_many_tokens_in_relapse_are_told_of_token_ratios_within_usual_bounds_only(tmp_path: Path) -> None:
    many = [{"clip/region/relapse_fraction": 0.08}] * 3
    finding = found(make_case(tmp_path / "many", rows=many), "relapse-dominates")
    assert "8.0%" in finding.evidence[0].text
    others: dict[str, dict[str, Any]] = {
        "sequences": {"objective.ratio": "sequence"},
        "narrow": {"objective.parameters": {"eps_low": 1e-3, "eps_high": 1e-3}},
    }
    for name, settings in others.items():
        assert look(make_case(tmp_path / name, rows=many, settings=settings), "relapse-dominates") is None


# --- entropy and the two bounds --------------------------------------------------------------------------------------


def drawn_tokens(seed: int, drift: float = 0.4, count: int = 6000) -> tuple[Tokens, torch.Tensor]:
    """Tokens of known distributions, and how the entropy changes along the gradient of each, by autograd: [N]."""
    random = np.random.default_rng(seed)
    logits_NV = random.normal(0, 1, (count, 32)) * random.uniform(0.5, 6, (count, 1))
    old_NV = log_softmax(logits_NV)
    token_N = (old_NV + random.gumbel(size=old_NV.shape)).argmax(-1)
    moved_NV = torch.tensor(logits_NV + random.normal(0, drift, logits_NV.shape), requires_grad=True)
    new_NV = torch.log_softmax(moved_NV, -1)
    entropy_N = -(new_NV.exp() * new_NV).sum(-1)
    (of_entropy_NV,) = torch.autograd.grad(entropy_N.sum(), moved_NV, retain_graph=True)
    (of_logp_NV,) = torch.autograd.grad(new_NV[range(count), token_N].sum(), moved_NV)
    row_N = np.arange(count)
    logp_old_N, logp_new_N = old_NV[row_N, token_N], new_NV.detach().numpy()[row_N, token_N]
    ratio_N, advantage_N = np.exp(logp_new_N - logp_old_N), np.where(random.random(count) < 0.5, 1.0, -1.0)
    above_N, below_N, good_N = ratio_N > 1.2, ratio_N < 0.8, advantage_N > 0
    names = ["overshoot", "relapse", "forgotten", "escaped"]
    cases = [above_N & good_N, above_N, below_N & good_N, below_N]
    region_N = np.select(cases, [REGIONS.index(name) for name in names], REGIONS.index("inside"))
    stopped_N = cases[0] | (below_N & ~good_N)
    columns = {
        "update": np.zeros(count), "logp_old": logp_old_N, "logp_new": logp_new_N, "advantage": advantage_N,
        "weight": np.where(stopped_N, 0, ratio_N * advantage_N), "entropy": entropy_N.detach().numpy(),
        "factor": np.ones(count),
    }  # fmt: skip
    tokens = Tokens(
        {name: values.astype(np.float32) for name, values in columns.items()}
        | {
            "region": region_N,
            "effect": np.where(stopped_N, EFFECTS.index("stopped"), EFFECTS.index("kept")),
            "scored": np.ones(count, dtype=bool),
        }
    )
    return tokens, (of_entropy_NV * of_logp_NV).sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_what_each_bound_did_to_the_entropy_is_what_autograd_says(seed: int) -> None:
    """From the token's probability and the entropy alone, against the whole distribution."""
    tokens, change_N = drawn_tokens(seed)
    push = entropy_push(tokens)
    assert push is not None
    exact_N = change_N.numpy()
    full_N, left_N, log_ratio_N = tokens.weight_unclipped, tokens.weight, tokens.log_ratio
    size = np.abs(exact_N) @ np.abs(full_N)
    taken_N = np.where(tokens.stopped, full_N, 0)
    for estimate, true in (
        (push.applied, exact_N @ left_N),
        (push.upper, exact_N[log_ratio_N > 0] @ taken_N[log_ratio_N > 0]),
        (push.lower, exact_N[log_ratio_N < 0] @ taken_N[log_ratio_N < 0]),
    ):
        assert estimate == pytest.approx(true, abs=0.02 * size)
    assert push.lower < 0 < push.upper  # what 2509.26114 says: the lower bound raises the entropy, the upper lowers it
    assert push.size == pytest.approx(size, rel=0.15)


def test_the_evidence_names_the_bound_and_needs_tokens(tmp_path: Path) -> None:
    def lower_bound(columns: dict[str, np.ndarray]) -> None:
        """Bad tokens that were likely have been left behind: going on would have flattened nothing but them."""
        rare = (columns["advantage"] < 0) & (columns["logp_old"] < np.log(0.1))
        columns["logp_new"] = np.where(rare, columns["logp_old"] - 0.5, columns["logp_old"])

    case = make_case(tmp_path, tamper=lower_bound)
    said = attribution(case, case.steps)
    assert said is not None
    assert "the lower bound raises it" in said.text
    assert "upper" not in said.text
    assert "a smaller objective.eps_low makes for more entropy" in said.text
    assert (attribution(case, []), attribution(case, [99])) == (None, None)
    still = make_case(tmp_path / "still", drift=0.0)
    assert attribution(still, still.steps) is None  # nothing was stopped


# --- how far the policy moved ----------------------------------------------------------------------------------------


def test_a_kl_that_blows_up_is_told_with_the_tokens_that_carry_it(tmp_path: Path) -> None:
    rows = [{"clip/kl_old_new_k3": kl} for kl in (0.01, 0.4, 0.02)]
    finding = found(make_case(tmp_path, tamper=one_far_gone, rows=rows), "kl-blow-up")
    assert finding.share == pytest.approx(1 / 3)
    assert finding.evidence[0].place == Place(step=2)
    assert "half of the KL of the second update lies in 1 token of 960" in finding.evidence[1].text
    assert finding.evidence[2].place == Place(2, 1, 0, 2, 3)
    assert "500 times likelier" in finding.evidence[2].text
    assert look(make_case(tmp_path / "none", rows=[{"clip/kl_old_new_k3": 0.05}] * 3), "kl-blow-up") is None


def test_a_learning_rate_far_too_high_blows_the_kl_up(tmp_path: Path) -> None:
    finding = found(case_of(run_tiny(tmp_path, "fault", {"update": {"lr": 0.3}})), "kl-blow-up")
    assert any(one.place.position is not None for one in finding.evidence)


def test_a_policy_that_ran_away_from_the_reference_is_told_with_the_step(tmp_path: Path) -> None:
    far = [{"kl_ref_k3": kl} for kl in (0.1, 1.3, 1.6)]
    finding = found(make_case(tmp_path, rows=far), "far-from-reference")
    assert finding.evidence[0].place == Place(step=2)
    assert look(make_case(tmp_path / "none", rows=[{"kl_ref_k3": 0.3}] * 3), "far-from-reference") is None


# --- copies ----------------------------------------------------------------------------------------------------------


def test_completions_that_are_copies_are_told_from_those_that_are_likely(tmp_path: Path) -> None:
    finding = found(make_case(tmp_path / "copies", copies=4), "duplicates")
    assert finding.grade == Grade.INVALID
    assert "21.4% of the pairs" in finding.evidence[0].text  # of 8 completions 4 are one: 6 pairs of 28
    likely = make_case(tmp_path / "likely", sharpness=40.0)
    groups = duplicates._groups(likely)
    assert sum(one.equal_pairs for one in groups) > 0.3 * sum(one.pairs for one in groups)
    assert look(likely, "duplicates") is None


def test_groups_without_entropy_are_told_unless_the_task_is_solved(tmp_path: Path) -> None:
    finding = found(make_case(tmp_path / "gone", sharpness=1000.0), "identical-groups")
    assert finding.share > 0.9
    solved = make_case(tmp_path / "solved", sharpness=1000.0, rows=[{"held_out/accuracy": 1.0}] * 3)
    assert look(solved, "identical-groups") is None
    assert look(make_case(tmp_path / "copied", copies=SIZE), "identical-groups") is None  # not for want of entropy


def test_equal_completions_with_other_log_probs_are_told(tmp_path: Path) -> None:
    def other_weights(logits_STV: np.ndarray, token_ST: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The odd completions were sampled after the weights had changed."""
        logp_ST = exact(logits_STV, token_ST, random)
        logp_ST[1::2] = scattered(1.0)(logits_STV, token_ST, random)[1::2]
        return logp_ST

    finding = found(make_case(tmp_path, copies=2, sampler=other_weights), "same-text-other-log-probs")
    assert finding.evidence[0].place.position is not None
    none = make_case(tmp_path / "none", copies=2, sampler=scattered(0.01))
    assert look(none, "same-text-other-log-probs") is None


def test_each_threshold_says_why_and_on_what_it_rests() -> None:
    thresholds = [(check.name, threshold) for check in MINE for threshold in check.thresholds.values()]
    assert [name for name, threshold in thresholds if len(threshold.why) < 20] == []
    assert len({check.name for check in MINE}) == len(MINE)
