"""Proves the studies what_the_clip_is_for, entropy_and_bounds and clip_higher: their settings are valid, their verdicts
follow from the numbers alone, what they read off a run is what the run recorded, and the pages in studies/results and
the index in studies/README.md are what their numbers say.

Run: pytest tests/studies/test_study_pages_a.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip_higher
import common.study
import entropy_and_bounds
import numpy as np
import pytest
import torch
import what_the_clip_is_for
from common.base import BASE, COLD_START, cold_started, merged
from common.coin import coin
from common.index import BEGIN, END, index, write_index
from common.measures import entropy_by_step, groups_by_step, mean_over_signal, rows_of
from common.page import CAME_OUT, NOT_TOLD_APART, REVERSED, markdown
from common.results import Results, Run, read_results
from common.study import Study, run_study, write_page, write_results

from dinghai.errors import RunFailed
from dinghai.objective import RULES, Effect, PolicyLoss, Region
from dinghai.sweep import perform
from dinghai.sweep.trials import validated
from dinghai.testing import prove_rule
from dinghai.trace import TraceReader
from dinghai.view.figure_style import as_svg, figure_settings

STUDIES = Path(clip_higher.__file__).parent
ALL: dict[str, Study] = {
    module.STUDY.name: module.STUDY for module in (what_the_clip_is_for, entropy_and_bounds, clip_higher)
}
SEEDS = 5
CLIP, NONE, BOTH = what_the_clip_is_for.CLIP, what_the_clip_is_for.NONE, what_the_clip_is_for.BOTH

TINY = {
    "model": {"hidden_size": 16, "heads": 2, "layers": 1, "context": 64},
    "task": {"kind": "addition", "digits": 2, "held_out": 8},
    "cold_start": {"steps": 3, "batch_size": 8},
}
TINY_RUN = {
    "task": {"kind": "addition", "digits": 2, "held_out": 8},
    "rollout": {"prompts": 4, "group_size": 4, "max_new_tokens": 12},
    "update": {"epochs": 2, "minibatches": 2, "lr": 0.02, "warmup": 0},
}


@pytest.fixture(scope="module", autouse=True)
def own_rules() -> Iterator[None]:
    """The studies' own rules, for as long as this module is tested: other tests go through all rules."""
    rules, loaded = dict(RULES), dict(perform._LOADED)
    perform._LOADED.clear()
    perform.load_rules([str(file) for study in ALL.values() for file in study.rule_files])
    yield
    for registry, before in ((RULES, rules), (perform._LOADED, loaded)):
        registry.clear()
        registry.update(before)


def results_of(study: Study, measures: Callable[[str, int], Mapping[str, Any]]) -> Results:
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
    """The verdicts of the page, in order; the page and the figure are made as well."""
    page = study.page(results)
    text = markdown(page, results)
    assert page.summary in text
    assert "nan" not in text.split()
    return [finding.outcome for finding in page.findings]


# --- what the clip is for --------------------------------------------------------------------------------------------


def of_rules(
    accuracy: Mapping[str, float], kl: Mapping[str, float], collapse: Mapping[str, bool], moved: float = 2.0
) -> Callable[[str, int], dict[str, Any]]:
    """By rule; the seeds differ by what is common to all rules."""

    def measures(arm: str, seed: int) -> dict[str, Any]:
        rule = arm.partition("-")[0]
        spread = 0.002 * (seed * 7 % 5) if rule == CLIP else 0.0
        return {
            "accuracy_start": 0.4,
            "accuracy_end": accuracy[rule] + 0.05 * seed / 5 + spread,
            "worst_fall": 0.1,
            "collapsed": float(collapse.get(rule, False)),
            "log10_kl_largest": kl[rule] + 0.1 * seed + spread,
            "log_ratio_largest": moved,
            "relapse": 0.01,
            "gradient_removed": 0.2,
        }

    return measures


BETTER, WORSE = {CLIP: 0.7, NONE: 0.3, BOTH: 0.5}, {CLIP: 0.3, NONE: 0.7, BOTH: 0.5}
NEARER, FARTHER = {CLIP: -2.0, NONE: -1.0, BOTH: -1.0}, {CLIP: -1.0, NONE: -2.0, BOTH: -2.0}


@pytest.mark.parametrize(
    "accuracy, kl, collapse, expected",
    [
        (BETTER, NEARER, {NONE: True}, [CAME_OUT, CAME_OUT, CAME_OUT, CAME_OUT]),
        (WORSE, FARTHER, {CLIP: True}, [REVERSED, REVERSED, REVERSED, REVERSED]),
        (dict.fromkeys(BETTER, 0.5), dict.fromkeys(NEARER, -1.0), {}, [NOT_TOLD_APART] * 2),
        (BETTER, NEARER, {CLIP: True, NONE: True}, [NOT_TOLD_APART, CAME_OUT]),
    ],
)
def test_the_verdict_on_the_clip_turns_with_the_numbers(
    accuracy: Mapping[str, float], kl: Mapping[str, float], collapse: Mapping[str, bool], expected: list[str]
) -> None:
    """Collapse, accuracy against none, KL, and accuracy against both sides; only the rules differ."""
    study = ALL["what_the_clip_is_for"]
    if accuracy[CLIP] == accuracy[NONE]:  # without any difference, only noise about 0

        def measures(arm: str, seed: int) -> dict[str, Any]:
            found = of_rules(accuracy, kl, collapse)(arm, seed)
            noise = 0.1 * (-1) ** (seed + arm.startswith(CLIP)) * (seed + 1 - 3)
            return found | {"accuracy_end": 0.5 + noise, "log10_kl_largest": noise}
    else:
        measures = of_rules(accuracy, kl, collapse)
    found = outcomes(study, results_of(study, measures))
    collapse_outcome, against_none, nearer, _, against_both = found
    for outcome, wanted in zip((collapse_outcome, against_none, nearer, against_both), expected, strict=False):
        assert outcome.startswith(wanted)


def test_a_run_that_failed_counts_as_collapsed() -> None:
    """It has no accuracy, and is not forgotten for that."""
    study = ALL["what_the_clip_is_for"]
    whole = results_of(study, of_rules(BETTER, NEARER, {}))
    assert outcomes(study, whole)[0] == NOT_TOLD_APART
    failed = replace(
        whole, runs=tuple(replace(r, error="NaN", measures={}) if r.arm.startswith(NONE) else r for r in whole.runs)
    )
    assert outcomes(study, failed)[0] == CAME_OUT
    assert f"30 of {6 * SEEDS} without" in study.page(failed).findings[0].measured
    ended_below = results_of(study, of_rules(BETTER, NEARER, {NONE: True}))
    both = replace(
        ended_below,
        runs=tuple(
            replace(r, error="NaN", measures={}) if r.arm.startswith(NONE) and r.seed == 0 else r
            for r in ended_below.runs
        ),
    )
    assert study.page(both).findings[0].measured == study.page(failed).findings[0].measured


def test_the_clip_bounds_no_ratio_unless_all_stay_within() -> None:
    """One token beyond the farther bound, |log r| > 0.223, is enough to say so."""
    study = ALL["what_the_clip_is_for"]
    assert outcomes(study, results_of(study, of_rules(BETTER, NEARER, {}, moved=0.3)))[3].startswith("false")
    assert outcomes(study, results_of(study, of_rules(BETTER, NEARER, {}, moved=0.2)))[3] == CAME_OUT


def test_both_sides_obeys_the_laws_of_every_rule() -> None:
    """Its weight is the gradient of its surrogate, and what it stops has a gradient of exactly zero."""
    assert prove_rule("both_sides").settings == 4  # defaults, both ends of the usual range, and off


@pytest.mark.parametrize(
    "ratio, advantage, weight, region, effect",
    [
        (1.1, 2.0, 2.2, Region.INSIDE, Effect.KEPT),
        (1.3, 1.0, 0.0, Region.OVERSHOOT, Effect.STOPPED),
        (1.3, -1.0, 0.0, Region.RELAPSE, Effect.STOPPED),
        (0.7, 1.0, 0.0, Region.FORGOTTEN, Effect.STOPPED),
        (0.7, -1.0, 0.0, Region.ESCAPED, Effect.STOPPED),
    ],
)
def test_both_sides_stops_all_four_regions(
    ratio: float, advantage: float, weight: float, region: Region, effect: Effect
) -> None:
    """PPO's clip leaves relapse and forgotten tokens their gradient; this one does not."""
    old_N = torch.tensor([-2.0], dtype=torch.float64)
    out = PolicyLoss("both_sides")(
        logp_new=(old_N + math.log(ratio)).requires_grad_(),
        logp_old=old_N,
        advantage=torch.tensor([advantage], dtype=torch.float64),
        mask=torch.ones(1, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 1]),
    )
    assert out.decision.weight.item() == pytest.approx(weight)
    assert (out.decision.region.item(), out.decision.effect.item()) == (region, effect)


# --- entropy and the bounds ------------------------------------------------------------------------------------------


def entropies(upper: float, lower: float, fall: float) -> Callable[[str, int], dict[str, Any]]:
    """What each bound adds to the entropy, and what is lost in any case."""

    def measures(arm: str, seed: int) -> dict[str, Any]:
        bounds = arm.partition("-")[0]
        has_upper, has_lower = bounds in ("both", "upper"), bounds in ("both", "lower")
        end = 0.1 + upper * has_upper + lower * has_lower + 0.01 * seed + 1e-4 * (seed * len(bounds) % 3) - fall
        return {
            "entropy": [0.1, end],
            "entropy_start": 0.1 + 0.01 * seed,
            "entropy_end": end,
            "entropy_gain": end - 0.1 - 0.01 * seed,
            "accuracy_end": 0.5,
            "overshoot": 0.01,
            "escaped": 0.02,
            "kl_largest": 0.1,
        }

    return measures


def test_the_verdict_on_entropy_turns_with_the_numbers() -> None:
    """The literature's case, its opposite, and bounds that do nothing."""
    study = ALL["entropy_and_bounds"]
    assert outcomes(study, results_of(study, entropies(-0.02, 0.01, 0.0))) == [CAME_OUT] * 10
    assert outcomes(study, results_of(study, entropies(0.02, -0.01, 0.0))) == [REVERSED] * 10
    assert set(outcomes(study, results_of(study, entropies(0.0, 0.0, 0.0)))) == {NOT_TOLD_APART}


def test_a_coin_pays_whatever_is_said() -> None:
    """Ones and zeros, half of each, from the global generator that a run seeds."""
    import random

    random.seed(0)
    paid = coin(["a"] * 2000)
    assert set(paid) == {0.0, 1.0}
    assert abs(np.mean(paid) - 0.5) < 0.05
    random.seed(0)
    assert coin(["another"] * 2000) == paid


# --- clip-higher -----------------------------------------------------------------------------------------------------


def wider(gain: float, stopped: float, released: float) -> Callable[[str, int], dict[str, Any]]:
    """What each wider bound adds to everything; how likely tokens are."""

    def measures(arm: str, seed: int) -> dict[str, Any]:
        more = (gain if arm != clip_higher.key(clip_higher.USUAL) else 0.0) + 1e-4 * (seed * len(arm) % 3)
        ends = {f"{name}_end": 0.5 + 0.01 * seed + more for name in ("entropy", "distinct", "any_right", "accuracy")}
        return ends | {
            "entropy": [0.1, 0.1 + more],
            "stopped_probability": stopped + 0.001 * seed,
            "stopped_unlikely": 0.5,
            "released_unlikely": released + 0.001 * (seed % 2),
            "good_unlikely": 0.1,
            "overshoot": 0.01,
            "gradient_overshoot": 0.1,
        }

    return measures


def test_the_verdict_on_clip_higher_turns_with_the_numbers() -> None:
    """Entropy, diversity, right ones, accuracy, and the likelihood of what is stopped and released."""
    study = ALL["clip_higher"]
    all_three = f"{CAME_OUT} at 3 of 3 settings"
    found = outcomes(study, results_of(study, wider(0.1, 0.1, 0.4)))
    assert found == [all_three] * 4 + [CAME_OUT, all_three]
    found = outcomes(study, results_of(study, wider(-0.1, 0.5, 0.05)))
    against = f"{REVERSED} at 3 of 3 settings"
    assert found == [against] * 4 + [REVERSED, against]


@pytest.mark.parametrize("name", ALL)
def test_figures_are_drawn_with_gaps_and_failures_too(name: str) -> None:
    """The same numbers give the same bytes; runs without numbers are left out."""
    measures = {
        "what_the_clip_is_for": of_rules(BETTER, NEARER, {}),
        "entropy_and_bounds": entropies(-0.02, 0.01, 0.0),
        "clip_higher": wider(0.1, 0.1, 0.4),
    }[name]
    whole = results_of(ALL[name], measures)
    gaps = replace(whole, runs=(replace(whole.runs[0], error="NaN", measures={}), *whole.runs[1:]))
    with figure_settings():
        drawn = as_svg(ALL[name].figure(whole))
        assert drawn == as_svg(ALL[name].figure(whole))
        assert drawn != as_svg(ALL[name].figure(gaps))


# --- common to all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_settings_are_valid(name: str, tmp_path: Path) -> None:
    """Every trial of every arm is a run that could begin; names are unique and arms differ."""
    study = ALL[name]
    trials = [study.trial(arm, seed, tmp_path / "model", None) for arm in study.arms for seed in range(2)]
    resolved = validated(trials, tmp_path)
    assert len(resolved) == 2 * len(study.arms)
    contents = {settings.model_dump_json(exclude={"run"}) for settings in resolved.values()}
    assert len(contents) == len(study.arms)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """clip_higher with a tiny model, two steps, two bounds and two seeds, as the command runs it."""
    folder = tmp_path_factory.mktemp("studies")
    study = replace(
        ALL["clip_higher"],
        arms=ALL["clip_higher"].arms[:2],
        shared=merged(ALL["clip_higher"].shared, TINY_RUN),
        cold_start=TINY,
    )
    return run_study(study, 2, 2, folder, folder / "cold-starts", 1), folder


def test_a_study_runs_and_is_written_and_read(miniature: tuple[Results, Path], tmp_path: Path) -> None:
    """Each arm with each seed; the page is made of the file, and names no place of this machine."""
    results, _ = miniature
    study = ALL["clip_higher"]
    assert [(run.arm, run.seed, run.error) for run in results.runs] == [
        (arm, seed, None) for seed in range(2) for arm in list(results.arms)
    ]
    write_results(results, tmp_path)
    again = read_results(tmp_path / "clip_higher.json")
    assert again == read_results(tmp_path / "clip_higher.json")
    write_page(study, again, tmp_path)
    text = (tmp_path / "clip_higher.md").read_text("utf-8")
    assert str(STUDIES.parent) not in text
    assert "2 seeds" in text
    assert (tmp_path / "clip_higher.svg").read_bytes().startswith(b"<?xml")


def test_a_study_uses_the_runs_that_are_there(miniature: tuple[Results, Path], capsys: pytest.CaptureFixture) -> None:
    """The same command again trains nothing and finds the same numbers."""
    results, folder = miniature
    study = replace(
        ALL["clip_higher"],
        arms=ALL["clip_higher"].arms[:2],
        shared=merged(ALL["clip_higher"].shared, TINY_RUN),
        cold_start=TINY,
    )
    models = sorted((folder / "cold-starts").iterdir())
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert run_study(study, 2, 2, folder, folder / "cold-starts", 1).runs == results.runs
    assert written == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert sorted((folder / "cold-starts").iterdir()) == models
    assert "done already" in capsys.readouterr().out


def test_measures_of_a_run_are_what_it_recorded(miniature: tuple[Results, Path]) -> None:
    """Entropy, groups and fractions against the columns of the trace and the rows of the metrics."""
    _, folder = miniature
    run = folder / "clip_higher" / "high-0.2-seed0"
    reader, rows = TraceReader(run / "trace"), rows_of(run)
    assert entropy_by_step(run)[1] == pytest.approx(np.mean(reader.tokens(2, 0)["entropy"].to_numpy()), rel=1e-6)
    samples = reader.samples(1).to_pylist()
    groups = {group: [s for s in samples if s["group"] == group] for group in {s["group"] for s in samples}}
    distinct = np.mean([len({s["completion"] for s in group}) for group in groups.values()])
    assert groups_by_step(run)[0]["distinct"] == pytest.approx(distinct)
    counted = [(np.array(reader.tokens(s)["region"]), np.array(reader.tokens(s)["advantage"])) for s in reader.steps()]
    number = {name: n for n, name in reader.names(1).regions.items()}["overshoot"]
    signal = sum((advantage != 0).sum() for _, advantage in counted)
    expected = sum((region == number).sum() for region, _ in counted) / signal if signal else None
    assert mean_over_signal(rows, "clip/region/overshoot_fraction") == pytest.approx(expected)


def test_a_cold_start_is_made_once_for_its_seed_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Found again where nothing differs; other settings, another folder."""
    first = cold_started(0, tmp_path, TINY)
    assert "cold start of seed 0" in capsys.readouterr().out
    assert cold_started(0, tmp_path, TINY) == first
    assert capsys.readouterr().out == ""
    assert cold_started(0, tmp_path, TINY, {"cold_start": {"steps": 4}}) != first
    assert (first / "model.safetensors").is_file()
    assert COLD_START["cold_start"]["steps"] > 0 == BASE["cold_start"]["steps"]


def test_a_study_whose_every_run_failed_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It says why instead, with exit status 1."""
    study = ALL["clip_higher"]
    whole = results_of(study, wider(0.1, 0.1, 0.4))
    broken = replace(whole, runs=tuple(replace(run, error="out of memory", measures={}) for run in whole.runs))
    monkeypatch.setattr(common.study, "run_study", lambda *given: broken)
    monkeypatch.setattr(common.study, "STUDIES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["clip_higher.py"])
    assert common.study.main(study) == 1
    assert "out of memory" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.md"))


def test_the_index_is_made_of_the_pages(tmp_path: Path) -> None:
    """A row for each; what stands outside the marks stays, and without marks nothing is written."""
    (tmp_path / "one.md").write_text("# Title\n\n**Question.** Why|what?\n\n**In short.** Since.\n", "utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    write_index(readme, tmp_path)
    text = readme.read_text("utf-8")
    assert "| [Title](results/one.md) | Why\\|what? | Since. |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    readme.write_text("no marks", "utf-8")
    with pytest.raises(RunFailed, match="put them back"):
        write_index(readme, tmp_path)


# --- what is in the repository ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_page_is_what_its_numbers_say(name: str) -> None:
    """studies/results/NAME.md is made of NAME.json, letter for letter; at least five seeds stand behind it."""
    path = STUDIES / "results" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{name} has not been run: python studies/{name}.py")
    results = read_results(path)
    assert markdown(ALL[name].page(results), results) == path.with_suffix(".md").read_text("utf-8")
    assert len(results.seeds) >= 5
    assert set(results.arms) == {arm.key for arm in ALL[name].arms}
    assert "/tmp" not in json.dumps(results.as_json())


def test_the_index_is_what_the_pages_say() -> None:
    """studies/README.md lists every page with its own words."""
    assert index(STUDIES / "results") in (STUDIES / "README.md").read_text("utf-8")
