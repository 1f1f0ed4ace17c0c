"""Runs with a fault in their tokens, made up: draws from known distributions, so that what should be seen is known.

Shapes: S completions, T tokens of each, V vocabulary, N tokens of an update.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.config.settings import TrainSettings
from dinghai.files import json_line
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.diagnose import CHECKS
from dinghai.lens.doctor.finding import Finding
from dinghai.lens.metrics_file import Metrics
from dinghai.trace import Samples, TraceWriter

REGIONS = ["masked", "no_signal", "inside", "overshoot", "relapse", "forgotten", "escaped", "dual"]
EFFECTS = ["none", "kept", "attenuated", "amplified", "stopped", "reversed"]
PROMPTS, SIZE, LENGTH, VOCABULARY = 12, 8, 10, 24

# (log-probs of the vocabulary, chosen tokens, random) -> log-probs [S, T] of those tokens
Scorer = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def exact(logits_STV: np.ndarray, token_ST: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return chosen(log_softmax(logits_STV), token_ST)


def scattered(size: float) -> Scorer:
    """As another pass with dropout, in another precision, or in batches of another shape would have it."""

    def score(logits_STV: np.ndarray, token_ST: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return exact(logits_STV + random.normal(0, size, logits_STV.shape), token_ST, random)

    return score


def heated(temperature: float) -> Scorer:
    return lambda logits_STV, token_ST, random: exact(logits_STV / temperature, token_ST, random)


def shifted(logits_STV: np.ndarray, token_ST: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each token has the log-prob of the one before it."""
    return np.roll(exact(logits_STV, token_ST, random), 1, axis=1)


def of_some(completions: int, scorer: Scorer) -> Scorer:
    """Only the first completions are scored so."""

    def score(logits_STV: np.ndarray, token_ST: np.ndarray, random: np.random.Generator) -> np.ndarray:
        logp_ST = exact(logits_STV, token_ST, random)
        logp_ST[:completions] = scorer(logits_STV, token_ST, random)[:completions]
        return logp_ST

    return score


def truncated(mass: float) -> Scorer:
    """Under the nucleus of that mass, which the tokens were drawn from."""
    return lambda logits_STV, token_ST, random: chosen(nucleus(log_softmax(logits_STV), mass), token_ST)


def nucleus(logp_STV: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-logp_STV, axis=-1)
    before = np.cumsum(np.take_along_axis(np.exp(logp_STV), order, -1), -1)
    before = np.concatenate([np.zeros_like(before[..., :1]), before[..., :-1]], -1)
    keep = np.zeros(logp_STV.shape, dtype=bool)
    np.put_along_axis(keep, order, before < mass, -1)
    return log_softmax(np.where(keep, logp_STV, -1e9))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def chosen(logp_STV: np.ndarray, token_ST: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logp_STV, token_ST[..., None], -1)[..., 0]


def make_case(
    folder: Path,
    *,
    steps: int = 3,
    sharpness: float = 2.0,
    sampler: Scorer = exact,
    old: Scorer = exact,
    drift: float = 0.05,
    copies: int = 1,
    tamper: Callable[[dict[str, np.ndarray]], None] | None = None,
    settings: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> Case:
    """A run of two updates a batch, as the doctor sees it.

    sharpness: spread of the logits; large for completions that come out alike.
    sampler, old: how the engine and the trainer score the tokens; what was drawn from follows `sampler` only where it
        is truncated.
    drift: by how much the logits move until the second update. copies: how many draws of a group are the same one.
    tamper: changes the columns of the second update of each step.
    settings: dotted paths laid over the default settings. rows: of metrics.jsonl, laid over what is made up.
    """
    random = np.random.default_rng(0)
    config = TrainSettings().model_dump(mode="json")
    config["objective"] |= {"ratio": "token", "parameters": {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": None}}
    for path, value in (settings or {}).items():
        *tables, key = path.split(".")
        table = config
        for name in tables:
            table = table[name]
        table[key] = value
    names = dict(enumerate(REGIONS)), dict(enumerate(EFFECTS))
    writer = TraceWriter(folder / "trace", 1_000_000, 0, regions=names[0], effects=names[1])
    metrics: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        logits_STV = np.repeat(random.normal(0, sharpness, (PROMPTS, LENGTH, VOCABULARY)), SIZE, axis=0)
        drawn_from = log_softmax(logits_STV)
        if config["rollout"]["top_p"] < 1:
            drawn_from = nucleus(drawn_from, config["rollout"]["top_p"])
        token_ST = (drawn_from + random.gumbel(size=drawn_from.shape)).argmax(-1)
        first_S = np.arange(len(token_ST)) // SIZE * SIZE
        token_ST = np.where((np.arange(len(token_ST)) % SIZE < copies)[:, None], token_ST[first_S], token_ST)
        _write_step(writer, step, logits_STV, token_ST, random, (sampler, old), drift, tamper)
        metrics.append({"step": step, "tokens/loss": token_ST.size, "tokens/signal": token_ST.size})
    metrics = [row | extra for row, extra in zip(metrics, rows or [{}] * steps, strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json_line(row) for row in metrics))
    return Case(folder, config, Metrics(rows=metrics))


def _write_step(
    writer: TraceWriter,
    step: int,
    logits_STV: np.ndarray,
    token_ST: np.ndarray,
    random: np.random.Generator,
    scorers: tuple[Scorer, Scorer],
    drift: float,
    tamper: Callable[[dict[str, np.ndarray]], None] | None,
) -> None:
    count = len(token_ST)
    sampler_ST, old_ST = (score(logits_STV, token_ST, random) for score in scorers)
    advantage_S = np.where(np.arange(count) % 2, 1.0, -1.0)
    texts = [bytes(row.astype(np.uint8) + 65).decode() for row in token_ST]
    samples = Samples(
        sample=list(range(count)), group=[i // SIZE for i in range(count)], prompt_id=texts, prompt=texts,
        completion=texts, tokens=[LENGTH] * count, finished=[True] * count, reward=advantage_S.tolist(),
        reward_parts={},
    )  # fmt: skip
    writer.begin_step(step, samples)
    for update in range(2):
        moved = logits_STV + (random.normal(0, drift, logits_STV.shape) if update else 0)
        logp_STV = log_softmax(moved)
        columns = {
            "position": np.tile(np.arange(LENGTH), count),
            "token": token_ST.reshape(-1),
            "logp_sampler": sampler_ST.reshape(-1),
            "logp_old": old_ST.reshape(-1),
            "logp_new": chosen(logp_STV, token_ST).reshape(-1),
            "advantage": np.repeat(advantage_S, LENGTH),
            "entropy": -(np.exp(logp_STV) * logp_STV).sum(-1).reshape(-1),
        }
        if tamper and update:
            tamper(columns)
        columns |= decide(columns)
        floats = {name: values.astype(np.float32) for name, values in columns.items() if values.dtype == np.float64}
        writer.add_update(update, columns | floats, np.repeat(np.arange(count), LENGTH))
    writer.finish_step()


def decide(columns: dict[str, np.ndarray], eps: float = 0.2) -> dict[str, np.ndarray]:
    """What the clip does."""
    with np.errstate(all="ignore"):
        ratio, good = np.exp(columns["logp_new"] - columns["logp_old"]), columns["advantage"] > 0
    above, below = ratio > 1 + eps, ratio < 1 - eps
    region = np.select([above & good, above, below & good, below], [3, 4, 5, 6], 2)
    stopped = (region == 3) | (region == 6)
    return {
        "region": region,
        "effect": np.where(stopped, 4, 1),
        "weight": np.where(stopped, 0.0, ratio * columns["advantage"]),
    }


def look(case: Case, name: str) -> Finding | None:
    """What one check of the doctor says."""
    return next(check for check in CHECKS if check.name == name).look(case)


def found(case: Case, name: str) -> Finding:
    """As `look`, where the check must find something."""
    finding = look(case, name)
    assert finding is not None, f"{name} found nothing"
    assert finding.check == name
    return finding
