"""Recorded runs for tests of replays: training steps with their trace and settings, without what a run does around it.

The model is built once, since building it takes longer than a step.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # the tiny runs of the tests of training
from tiny_runs import code_of, tiny

from dinghai.config.load import CONFIG_FILE, settings_to_json
from dinghai.configured import build_policy_loss, with_resolved_objective
from dinghai.train.loop import train_step
from dinghai.train.run import seed_everything
from dinghai.train.setup import Beginning
from dinghai.train.shortcuts import choose_shortcuts

# A step of four updates, large enough to leave every rule's bounds.
STEP: dict[str, Any] = {
    "run": {"steps": 1},
    "cold_start": {"steps": 0},
    "rollout": {"max_new_tokens": 12},
    "update": {"lr": 0.02},
}


def recorded(folder: Path, name: str, *changes: dict[str, Any], steps: int = 1) -> Path:
    """The folder of a run with settings and trace. The model, the task and the engine are those of `STEP`."""
    settings = tiny(folder, name, STEP, *changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some values are odd on purpose
        policy_loss = build_policy_loss(settings)
    beginning, weights = _beginning(str(folder.parent))
    for parameter_name, parameter in beginning.policy.model.named_parameters():
        parameter.data.copy_(weights[parameter_name])
    beginning.settings = settings = with_resolved_objective(settings, policy_loss)
    beginning.policy_loss = policy_loss
    beginning.shortcuts = choose_shortcuts(settings, policy_loss, beginning.policy, beginning.engine)
    run = folder / name
    run.mkdir(parents=True)
    (run / CONFIG_FILE).write_text(settings_to_json(settings), "utf-8")
    parts = beginning.parts(run)
    assert parts.trace is not None
    next_prompt = 0
    with parts.trace:
        for step in range(1, steps + 1):
            seed_everything(settings.run.seed, "step", step)
            record, next_prompt = train_step(parts, step, next_prompt)
            record.finish()
    return run


@cache
def _beginning(folder: str) -> tuple[Beginning, dict[str, Tensor]]:
    settings = tiny(Path(folder), "model", STEP)
    beginning = Beginning(settings, code_of(settings))
    return beginning, {name: p.detach().clone() for name, p in beginning.policy.model.named_parameters()}
