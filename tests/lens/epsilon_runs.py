"""Runs whose ratios are put there, so that what a bound takes of them can be reckoned by hand.

Shapes: B completions of a step, L tokens of each.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinghai.config.load import CONFIG_FILE, settings_from_json, settings_to_json
from dinghai.configured import build_policy_loss, with_resolved_objective
from dinghai.objective import Effect, Region
from dinghai.trace import Samples, TraceWriter

TWO_UPDATES: dict[str, Any] = {"epochs": 2, "minibatches": 1}


def write_run(
    folder: Path,
    log_ratio_BL: np.ndarray,
    advantage_B: np.ndarray,
    *,
    apart_BL: np.ndarray | float = 0.0,
    logp_old: float = -8.0,
    steps: int = 3,
    **tables: Any,
) -> Path:
    """A run of `steps` steps, each of two updates: at the first every ratio is 1, at the second they are those given.

    apart_BL: log π_old - log π_sampler. logp_old: of every token, nats. tables: of settings, over the defaults.
    """
    tables = {"update": TWO_UPDATES, "trace": {"tokens": 10_000_000}} | tables
    settings = settings_from_json(json.dumps(tables))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some bounds are odd on purpose
        policy_loss = build_policy_loss(settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(settings_to_json(with_resolved_objective(settings, policy_loss)), "utf-8")
    B, L = log_ratio_BL.shape
    texts = ["x"] * B
    samples = Samples(
        sample=list(range(B)), group=[i // 2 for i in range(B)], prompt_id=texts, prompt=texts, completion=texts,
        tokens=[L] * B, finished=[True] * B, reward=[0.0] * B, reward_parts={},
    )  # fmt: skip
    names = ({int(r): r.name.lower() for r in Region}, {int(e): e.name.lower() for e in Effect})
    writer = TraceWriter(folder / "trace", 10_000_000, 0, regions=names[0], effects=names[1])
    old_N = torch.full((B * L,), logp_old)
    for step in range(1, steps + 1):
        writer.begin_step(step, samples)
        for update in (0, 1):
            new_N = old_N + update * torch.from_numpy(log_ratio_BL.reshape(-1)).float()
            out = policy_loss(
                logp_new=new_N, logp_old=old_N, advantage=torch.from_numpy(advantage_B).float().repeat_interleave(L),
                cu_seqlens=torch.arange(0, B * L + 1, L),
            )  # fmt: skip
            decision = out.decision
            columns = {
                "position": np.tile(np.arange(L), B), "token": np.zeros(B * L, dtype=int),
                "logp_sampler": old_N.numpy() - np.broadcast_to(apart_BL, (B, L)).reshape(-1), "logp_old": old_N,
                "logp_new": new_N, "advantage": decision.advantage, "weight": decision.weight,
                "region": decision.region, "effect": decision.effect, "entropy": torch.ones(B * L),
                "factor": out.factor, "log_ratio": decision.log_ratio,
            }  # fmt: skip
            writer.add_update(update, columns, np.repeat(np.arange(B), L))
        writer.finish_step()
    return folder


def write_metrics(folder: Path, rows: list[dict[str, float]]) -> None:
    """The metrics of its steps."""
    lines = [json.dumps({"step": step} | row) for step, row in enumerate(rows, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def spread_out(count: int, length: int, scale: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratios [B, L], normal, and advantages [B], 1 and -1 by turns. Most tokens went where they were pushed."""
    generator = np.random.default_rng(1)
    advantage_B = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    return generator.normal(0, scale, (count, length)) + advantage_B[:, None] * scale / 2, advantage_B
