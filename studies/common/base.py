"""The base of all studies: the built-in task and model from one cold start a seed, and short runs on top of it.

A study says only in what its runs differ from `BASE`. Settings are nested tables, as a TOML file has them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Tables = dict[str, Any]  # nested tables of settings

STEPS = 20

# Of a cold start, made once for each seed: that of the first run.
COLD_START: Tables = {
    "model": {"device": "cpu", "threads": 1},
    "cold_start": {"steps": 320},
}

# Of the runs. The learning rate is constant, so that late steps can do as much harm as early ones.
BASE: Tables = {
    "run": {"steps": STEPS},
    "model": {"device": "cpu", "threads": 1},
    "task": {"kind": "addition", "held_out": 256},
    "cold_start": {"steps": 0},
    "rollout": {"prompts": 32, "group_size": 8, "max_new_tokens": 32},
    "objective": {"rule": "ppo", "reduction": "token-mean"},
    "update": {"epochs": 2, "minibatches": 2, "lr": 2e-4, "schedule": "constant", "warmup": 4},
    "evaluation": {"every": 4},
    "checkpoint": {"every": 1000},
}


def merged(*layers: Mapping[str, Any]) -> Tables:
    """Nested tables, each laid over the ones before; the arguments stay as they are."""
    result: Tables = {}
    for layer in layers:
        for key, value in layer.items():
            under = result.get(key)
            if isinstance(value, Mapping) and isinstance(under, dict):
                result[key] = merged(under, value)
            else:
                result[key] = copy.deepcopy(value)
    return result


def run_settings(seed: int, cold_start: Path, *changes: Mapping[str, Any]) -> Tables:
    """The settings of a run of the base with this seed that starts from a cold start's folder."""
    start = {"run": {"seed": seed}, "model": {"path": str(cold_start.resolve())}}
    return merged(BASE, start, *changes)


def cold_started(seed: int, folder: Path, *changes: Mapping[str, Any]) -> Path:
    """The folder of the cold-started model of a seed, made under `folder` where it is not there already.

    changes: laid over COLD_START. Other settings, another folder.
    """
    from dinghai.config.settings import TrainSettings
    from dinghai.train.cold_start import cold_start
    from dinghai.train.setup import Beginning

    tables = merged(COLD_START, *changes, {"run": {"seed": seed}})
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:8]
    model = folder / f"seed-{seed}-{digest}"
    if model.exists():
        return model
    print(f"cold start of seed {seed}: {model}", flush=True)
    model.parent.mkdir(parents=True, exist_ok=True)
    beginning = Beginning(TrainSettings(**tables), ())
    with contextlib.closing(beginning.task):
        cold_start(beginning.policy, beginning.task, beginning.settings, lambda step, steps, loss: None)
        beginning.policy.save(model)
    return model
