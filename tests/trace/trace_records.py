"""Steps of realistic token records, in the shape that the training loop writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinghai.trace import BackgroundWriter, Samples, TraceWriter

REGIONS = dict(enumerate(["MASKED", "NO_SIGNAL", "INSIDE", "OVERSHOOT", "RELAPSE", "FORGOTTEN", "ESCAPED", "DUAL"]))
EFFECTS = dict(enumerate(["NONE", "KEPT", "ATTENUATED", "AMPLIFIED", "STOPPED", "REVERSED"]))


@dataclass
class Batch:
    """The completions of a step, and what each update saw of them."""

    samples: Samples
    updates: list[tuple[dict[str, np.ndarray], np.ndarray]]


def make_batch(seed: int, groups: int = 32, group_size: int = 8, length: int = 20, updates: int = 4) -> Batch:
    """Log-probs, advantages and weights distributed as those of a small model in the middle of training."""
    random = np.random.default_rng(seed)
    count = groups * group_size
    lengths = random.integers(length // 2, length + length // 2, count)
    reward = random.integers(0, 2, count).astype(float)
    samples = Samples(
        sample=list(range(count)),
        group=[i // group_size for i in range(count)],
        prompt_id=[f"p{i // group_size}" for i in range(count)],
        prompt=[f"What is {i // group_size} + 17?\n" for i in range(count)],
        completion=["x" * n for n in lengths],
        tokens=[int(n) for n in lengths],
        finished=[bool(n < length) for n in lengths],
        reward=[float(r) for r in reward],
        reward_parts={"task": [float(r) for r in reward]},
    )
    grouped = reward.reshape(groups, group_size)
    advantage_S = ((grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, keepdims=True) + 1e-6)).reshape(-1)

    sample_N = np.repeat(np.arange(count), lengths)
    size = len(sample_N)
    logp_old = -random.gamma(0.4, 1.5, size).astype(np.float32)
    record = {
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "token": np.minimum(random.zipf(1.3, size), 50_000),
        "logp_sampler": logp_old + random.normal(0, 1e-6, size).astype(np.float32),
        "logp_old": logp_old,
        "advantage": advantage_S[sample_N].astype(np.float32),
        "entropy": random.gamma(0.5, 0.8, size).astype(np.float32),
    }
    out = []
    for update in range(updates):
        logp_new = logp_old + random.normal(0, 0.06 * update, size).astype(np.float32)
        ratio, advantage = np.exp(logp_new - logp_old), record["advantage"]
        above, below = ratio > 1.2, ratio < 0.8
        region = np.select(
            [advantage == 0, above & (advantage > 0), above, below & (advantage > 0), below], [1, 3, 4, 5, 6], 2
        )
        stopped = (region == 3) | (region == 6)
        weight = np.where(stopped, 0, ratio * advantage).astype(np.float32)
        effect = np.where(stopped, 4, np.where(advantage == 0, 0, 1))
        columns = record | {"logp_new": logp_new, "weight": weight, "region": region, "effect": effect}
        in_minibatch = (sample_N % 2) == (update % 2)
        out.append(({name: values[in_minibatch] for name, values in columns.items()}, sample_N[in_minibatch]))
    return Batch(samples, out)


def write_step(writer: TraceWriter | BackgroundWriter, step: int, batch: Batch) -> None:
    writer.begin_step(step, batch.samples)
    for update, (columns, sample_N) in enumerate(batch.updates):
        writer.add_update(update, columns, sample_N)
    writer.finish_step()


def make_writer(folder: Path, tokens_per_update: int = 100_000, seed: int = 0, rank: int = 0) -> TraceWriter:
    return TraceWriter(folder, tokens_per_update, seed, rank, regions=REGIONS, effects=EFFECTS)
