"""Runs with a fault, made up: a sound run of which some steps or settings are changed, and traces of rewards."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.files import json_line
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.diagnose import diagnose
from dinghai.lens.doctor.finding import Finding
from dinghai.lens.metrics_file import Metrics, load_metrics
from dinghai.trace import Samples, TraceWriter

STEPS = 20
REGIONS = {0: "masked", 1: "no_signal", 2: "inside"}
EFFECTS = {0: "none", 1: "kept"}

# A run in which nothing is wrong, with the settings that the checks speak of.
SOUND: dict[str, Any] = {
    "reward/mean": 0.5,
    "reward/std": 0.4,
    "reward/task/mean": 0.5,
    "entropy": 0.5,
    "tokens/loss": 1000,
    "tokens/signal": 800,
    "clip/stopped_fraction": 0.02,
    "clip/band_fraction": 0.03,
    "clip/gradient_removed/total": 0.2,
    "clip/gradient_removed/escaped": 0.2,
    "clip/region/relapse_fraction": 0.004,
    "clip/kl_old_new_k3": 0.005,
    "clip/ess_fraction": 0.99,
    "clip/log_ratio_abs_max": 0.9,
    "clip/nonfinite_tokens": 0.0,
    "kl_ref_k3": 0.1,
    "groups/no_signal_fraction": 0.2,
    "completion/length_mean": 100.0,
    "completion/truncated_fraction": 0.01,
    "grad_norm_mean": 0.7,
    "lr": 1e-4,
}
CONFIG: dict[str, Any] = {
    "run": {"steps": STEPS},
    "model": {"dtype": "float32"},
    "task": {"held_out": 100},
    "rewards": [{"source": "task", "weight": 1.0}],
    "rollout": {"max_new_tokens": 256, "dynamic_sampling": False, "top_p": 1.0, "top_k": 0},
    "update": {"epochs": 2, "minibatches": 2, "max_grad_norm": 1.0, "lr": 1e-4, "warmup": 2},
    "advantage": {"kind": "group"},
    "objective": {
        "rule": "grpo",
        "ratio": "token",
        "reduction": "seq-mean-token-mean",
        "parameters": {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": None},
    },
}

Changes = dict[int, dict[str, Any]]


def every(changed: dict[str, Any]) -> Changes:
    """The same change in each step."""
    return dict.fromkeys(range(1, STEPS + 1), changed)


def make_run(
    folder: Path, changed: Changes, config: dict[str, Any] | None = None, accuracy: float | None = 0.4
) -> Path:
    """The sound run with some steps and settings changed; settings are laid over table by table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [] if accuracy is None else [{"step": 0, "held_out/accuracy": accuracy}]
    rows += [{"step": step} | SOUND | changed.get(step, {}) for step in range(1, STEPS + 1)]
    settings = copy.deepcopy(CONFIG)
    _lay_over(settings, config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "metrics.jsonl").write_text("".join(map(json_line, rows)))
    return folder


def _lay_over(data: dict[str, Any], layer: dict[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _lay_over(data[key], value)
        else:
            data[key] = value


def case_of(folder: Path, until: int | None = None) -> Case:
    """A run as the checks see it, whole or until a step."""
    metrics = load_metrics(folder / "metrics.jsonl")
    if until is not None:
        metrics = Metrics([row for row in metrics.rows if row["step"] <= until])
    return Case(folder, json.loads((folder / "config.json").read_text()), metrics)


def findings(folder: Path, changed: Changes, config: dict[str, Any] | None = None) -> list[Finding]:
    """What all checks find in the sound run with some steps and settings changed. A check that fails raises."""
    return diagnose(case_of(make_run(folder, changed, config)))


def write_rewards(
    folder: Path, parts: dict[str, np.ndarray], step: int = 20, lengths: np.ndarray | None = None
) -> None:
    """The trace of one step of a run: groups of eight completions with the parts of their rewards, [S] each.

    `total` stands for the sum where it is not that of the parts.
    """
    count = len(next(iter(parts.values())))
    total = parts.pop("total", sum(parts.values()))
    lengths = np.full(count, 2) if lengths is None else lengths
    sample_N = np.repeat(np.arange(count), lengths)
    size = len(sample_N)
    trace = TraceWriter(folder / "trace", 1_000_000, 0, regions=REGIONS, effects=EFFECTS)
    samples = Samples(
        sample=list(range(count)),
        group=[i // 8 for i in range(count)],
        prompt_id=[f"p{i // 8}" for i in range(count)],
        prompt=["?"] * count,
        completion=["x"] * count,
        tokens=lengths.tolist(),
        finished=[True] * (count - 1) + [False],
        reward=np.asarray(total, dtype=float).tolist(),
        reward_parts={name: values.tolist() for name, values in parts.items()},
    )
    random = np.random.default_rng(0)
    logp_N = random.uniform(-2, -0.5, size).astype(np.float32)  # no two completions are equal in every way
    logp_new_N = logp_N + random.normal(0, 0.05, size).astype(np.float32)
    advantage_N = np.where(sample_N % 2 == 0, 1.0, -1.0).astype(np.float32)
    columns = {
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "token": random.integers(0, 50_000, size),
        "logp_sampler": logp_N,
        "logp_old": logp_N,
        "advantage": advantage_N,
        "entropy": np.full(size, 0.5, dtype=np.float32),
        "region": np.full(size, 2),
        "effect": np.full(size, 1),
    }
    trace.begin_step(step, samples)
    for update, new_N in enumerate((logp_N, logp_new_N)):
        ratio_N = np.exp(new_N - logp_N)
        trace.add_update(update, columns | {"logp_new": new_N, "weight": ratio_N * advantage_N}, sample_N)
    trace.finish_step()
