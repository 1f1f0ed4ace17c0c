"""A comparison as JSON: all its sums, and what follows from them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.files import nonfinite_as_text
from dinghai.lens.replay import FIRST_ORDER, KEYS, SIGNAL_REGIONS
from dinghai.lens.replay_candidates import Candidate
from dinghai.lens.replay_compare import Compared, Comparison, cosine_of, removed_share, stopped_fraction, value


def as_json(run_folder: Path, found: Comparison) -> dict[str, Any]:
    """Keys: run, steps, recorded_steps, updates, tokens, unscored, masked, reproduced (tokens that the run's own
    settings decide as recorded), keys (what each vector of sums holds), own, candidates, notes.

    `own` and each of `candidates` have what the objective is, `total` and `by_update` with its figures, and `sums` by
    update; a candidate also `first_change` (step and update from which on its weights are others) and `examples`.
    Fractions are of 1; what is not finite is its name, and a cosine with nothing is null.
    """
    data = {
        "run": run_folder.name,
        "steps": found.steps,
        "recorded_steps": found.recorded_steps,
        "updates": found.updates,
        "tokens": found.tokens,
        "unscored": found.unscored,
        "masked": found.masked,
        "reproduced": found.as_recorded,
        "keys": list(KEYS),
        "own": _objective(found.own) | _figures(found.own_sums, found.own_sums),
        "candidates": [_candidate(one, found) for one in found.compared],
        "notes": [*found.notes, FIRST_ORDER],
    }
    named: dict[str, Any] = nonfinite_as_text(data)
    return named


def _candidate(one: Compared, found: Comparison) -> dict[str, Any]:
    return {
        **_objective(one.candidate),
        "warnings": list(one.candidate.warnings),
        "first_change": None if one.first is None else dict(zip(("step", "update"), one.first, strict=True)),
        **_figures(one.sums, found.own_sums),
        "examples": [dataclasses.asdict(example) for example in one.examples],
    }


def _objective(candidate: Candidate) -> dict[str, Any]:
    policy_loss = candidate.policy_loss
    return {
        "label": candidate.label,
        "rule": candidate.rule,
        "ratio": policy_loss.ratio,
        "reduction": policy_loss.reduction.name,
        "parameters": dataclasses.asdict(policy_loss.parameters),
    }


def _figures(sums_UK: np.ndarray, own_UK: np.ndarray) -> dict[str, Any]:
    by_update = [_answers(*both) for both in zip(sums_UK, own_UK, strict=True)]
    return {"total": _answers(sums_UK, own_UK), "by_update": by_update, "sums": sums_UK.tolist()}


def _answers(sums: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    cosine = cosine_of(sums, own)
    return {
        "stopped_fraction": stopped_fraction(sums),
        "gradient_removed": removed_share(sums),
        "gradient_removed_by_region": {region: removed_share(sums, region) for region in SIGNAL_REGIONS},
        "cosine": None if math.isnan(cosine) else cosine,
        "differ": int(value(sums, "differ")),
    }
