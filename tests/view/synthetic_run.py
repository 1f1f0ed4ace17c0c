"""A run as the training loop leaves it, made up: an addition task that is learned, and some hostile completions.

The last prompt of each step is answered right by all, and never scored; others that are have been scored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import payloads
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dinghai.config.settings import TrainSettings
from dinghai.files import json_line
from dinghai.trace import Samples, TraceWriter

_REGION_NAMES = ["masked", "no_signal", "inside", "overshoot", "relapse", "forgotten", "escaped", "dual"]
REGIONS = dict(enumerate(_REGION_NAMES))
EFFECTS = dict(enumerate(["none", "kept", "attenuated", "amplified", "stopped", "reversed"]))
UPDATES = 4


def make_run(folder: Path, steps: int = 12, hostile: list[str] | None = None, prompts: int = 8, seed: int = 0) -> Path:
    """Write a run folder and return it. `hostile` completions stand among those of the first prompts."""
    folder.mkdir(parents=True)
    settings = TrainSettings()
    settings.run.steps = steps
    (folder / "config.json").write_text(settings.model_dump_json())
    (folder / "model").mkdir()
    byte_tokenizer().save(str(folder / "model" / "tokenizer.json"))
    random = np.random.default_rng(seed)
    trace = TraceWriter(folder / "trace", 100_000, seed, regions=REGIONS, effects=EFFECTS)
    rows: list[dict[str, Any]] = [{"step": 0, "held_out/accuracy": 0.41}]
    for step in range(1, steps + 1):
        learned = 1 / (1 + np.exp(-8 * (step / steps - 0.45)))
        batch = make_step(random, prompts, 0.4 + 0.5 * learned, payloads.ALL if hostile is None else hostile)
        rows.append(write_step(trace, step, steps, batch, random, learned))
    (folder / "metrics.jsonl").write_text("".join(json_line(row) for row in rows))
    return folder


def make_step(random: np.random.Generator, prompts: int, accuracy: float, hostile: list[str], size: int = 8) -> Samples:
    columns: dict[str, list[Any]] = {name: [] for name in ("prompt", "completion", "reward")}
    for group in range(prompts):
        a, b = random.integers(10, 99, 2)
        for place in range(size):
            right = bool(random.random() < accuracy) or 0 < group == prompts - 1
            answer = a + b if right else a + b + random.integers(1, 30)
            units = (a % 10) + (b % 10)
            text = f"{a % 10}+{b % 10}={units}, carry {units // 10}\nso {a}+{b}={answer}"
            if group < 4 and place in (2, 5) and hostile:
                text, right = hostile[int(random.integers(len(hostile)))], False
            columns["prompt"].append(f"{a} + {b} = ?\n")
            columns["completion"].append(text)
            columns["reward"].append(float(right))
    count = prompts * size
    return Samples(
        sample=list(range(count)),
        group=[i // size for i in range(count)],
        prompt_id=[f"addition-{i // size}" for i in range(count)],
        tokens=[len(ids_of(text)) for text in columns["completion"]],
        finished=[bool(i % 13) for i in range(count)],
        reward_parts={"task": columns["reward"]},
        **columns,
    )


def write_step(
    trace: TraceWriter, step: int, steps: int, samples: Samples, random: np.random.Generator, learned: float
) -> dict[str, Any]:
    """Record the step's updates; returns its row of metrics, counted from the same numbers."""
    reward = np.array(samples.reward).reshape(-1, 8)
    advantage_S = ((reward - reward.mean(1, keepdims=True)) / (reward.std(1, keepdims=True) + 1e-6)).reshape(-1)
    sample_N = np.repeat(np.arange(len(samples.sample)), samples.tokens)
    scored_N = (sample_N < len(samples.sample) - 8) | (advantage_S[sample_N] != 0)
    tokens_N = np.concatenate([ids_of(text) for text in samples.completion])
    entropy_N = random.gamma(0.5, 0.9 * (1.3 - learned), len(sample_N))
    logp_old_N = (-entropy_N * random.gamma(1.0, 1.0, len(sample_N)) - 1e-4).astype(np.float32)
    trace.begin_step(step, samples)
    fates = []
    for update in range(UPDATES):
        mine = (sample_N % 2) == (update % 2)
        spread = 0.12 * update * np.sqrt(np.minimum(1, entropy_N[mine]))
        pull = 0.05 * update * np.sign(advantage_S[sample_N[mine]])
        fate = _decide(logp_old_N[mine], advantage_S[sample_N[mine]], random.normal(0, 1, mine.sum()) * spread + pull)
        columns = fate | {
            "position": np.concatenate([np.arange(n) for n in samples.tokens])[mine],
            "token": tokens_N[mine],
            "logp_sampler": logp_old_N[mine],
            "logp_old": logp_old_N[mine],
            "advantage": advantage_S[sample_N[mine]],
            "entropy": entropy_N[mine],
        }
        record = {name: columns[name] for name in columns if name != "ratio"} | {"scored": scored_N[mine]}
        trace.add_update(update, record, sample_N[mine])
        fates.append(columns)
    trace.finish_step()
    return _metrics(step, steps, samples, fates, reward)


def _decide(logp_old_N: np.ndarray, advantage_N: np.ndarray, change_N: np.ndarray) -> dict[str, np.ndarray]:
    change_N = np.minimum(change_N, -logp_old_N)  # a probability is at most 1
    ratio_N = np.exp(change_N)
    above, below, good = ratio_N > 1.2, ratio_N < 0.8, advantage_N > 0
    region = np.select([advantage_N == 0, above & good, above, below & good, below], [1, 3, 4, 5, 6], 2)
    stopped = (region == 3) | (region == 6)
    return {
        "logp_new": (logp_old_N + change_N).astype(np.float32),
        "ratio": ratio_N,
        "region": region,
        "effect": np.where(advantage_N == 0, 0, np.where(stopped, 4, 1)),
        "weight": np.where(stopped, 0, ratio_N * advantage_N),
    }


def _clip_metrics(fate: dict[str, np.ndarray]) -> dict[str, Any]:
    signal = fate["region"] != 1
    full = np.abs(fate["ratio"] * fate["advantage"])
    lost = np.where(fate["effect"] == 4, full, 0)
    out: dict[str, Any] = {
        "signal_tokens": int(signal.sum()),
        "stopped_fraction": float((fate["effect"] == 4)[signal].mean()) if signal.any() else 0.0,
        "band_fraction": float((np.abs(fate["ratio"] - 1) > 0.2)[signal].mean()) if signal.any() else 0.0,
        "weight_removed/total": float(lost.sum() / full.sum()) if full.sum() else 0.0,
    }
    if signal.any():
        out["kl_old_new_k3"] = float((fate["ratio"] - 1 - np.log(fate["ratio"]))[signal].mean())
    for number, name in REGIONS.items():
        out[f"region/{name}_fraction"] = float((fate["region"] == number).mean())
        share = float(lost[fate["region"] == number].sum() / full.sum()) if full.sum() else 0.0
        out[f"weight_removed/{name}"] = share
        out[f"gradient_removed/{name}"] = 0.7 * share
    return out | {"gradient_removed/total": 0.7 * out["weight_removed/total"]}


def _metrics(
    step: int, steps: int, samples: Samples, fates: list[dict[str, np.ndarray]], reward: np.ndarray
) -> dict[str, Any]:
    whole = {name: np.concatenate([fate[name] for fate in fates]) for name in fates[0]}
    row: dict[str, Any] = {
        "step": step,
        "reward/mean": float(reward.mean()),
        "reward/task/mean": float(reward.mean()),
        "reward/std": float(reward.std()),
        "groups/no_signal_fraction": float((reward.std(1) == 0).mean()),
        "completion/length_mean": float(np.mean(samples.tokens)),
        "completion/truncated_fraction": float(1 - np.mean(samples.finished)),
        "lr": 1e-3,
        "grad_norm_mean": float(0.8 + 0.4 * np.sin(step)),
        "tokens/signal": int((whole["region"] != 1).sum()),
        "tokens/loss": len(whole["region"]),
        "updates": UPDATES,
        "left_early": False,
        "seconds/step": 1.05,
        "by_update": [
            {"update": u, "epoch": u // 2, "minibatch": u % 2, **_clip_metrics(fate)} for u, fate in enumerate(fates)
        ],
    }
    if (whole["region"] != 1).any():
        row["entropy"] = float(whole["entropy"][whole["region"] != 1].mean())
    row |= {f"clip/{name}": value for name, value in _clip_metrics(whole).items()}
    if step % 4 == 0 or step == steps:
        row["held_out/accuracy"] = float(np.clip(0.41 + 0.5 * step / steps, 0, 1))
    return row


def byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are bytes in the order of their symbols, as in the built-in model; 256 ends a completion."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


_TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    return [*_TOKENIZER.encode(text.encode("utf-8", "backslashreplace").decode()).ids, 256]


def read_data(page: str) -> dict[str, Any]:
    """The JSON that a report embeds."""
    start = page.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    data: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return data
