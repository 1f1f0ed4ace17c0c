"""Takes the explainer's six tokens, one of each region, from a recorded run, and writes explain_examples.json.

    python benchmarks/explain_examples.py

It trains the built-in task with the dual clip, a learning rate and a number of updates that are too high, so that every
region occurs, and then looks at the tokens where a right and a wrong completion of the same prompt part: the ones that
a reward is about. Of these it takes, in each region, the one whose ratio is nearest to a ratio that shows well. The run
is the same on every machine with the same PyTorch; on another one the tokens may be others, which is why they are kept.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.lens.regions import REGIONS
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.trace import TraceReader

SETTINGS = ["--objective.rule", "dual_clip", "--update.lr", "0.001", "--update.epochs", "4"]
SHOWS_WELL = {"inside": 1.1, "overshoot": 1.6, "relapse": 2.0, "forgotten": 0.5, "escaped": 0.5, "dual": 4.0}
PROBABILITY = (0.03, 0.3)  # π_old of a token that was no accident, and had room to become three times as likely
EXAMPLES = Path(__file__).parents[1] / "src" / "dinghai" / "view" / "page" / "explain_examples.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dinghai.cli", "train", *SETTINGS, "--run.name", "explain"]
        subprocess.run([*command, "--run.folder", folder], check=True)
        run = Path(folder) / "explain"
        config = json.loads((run / "config.json").read_text("utf-8"))
        found = examples(TraceReader(run / "trace"))
    content = {
        "made": f"dinghai train {' '.join(SETTINGS)}",
        "seed": config["run"]["seed"],
        "rule": config["objective"]["rule"],
        "parameters": config["objective"]["parameters"],
        "examples": found,
    }
    EXAMPLES.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
    print(EXAMPLES.read_text("utf-8"))


def examples(reader: TraceReader) -> list[dict[str, Any]]:
    """One token of each region that shows well, in the order of SHOWS_WELL."""
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for step in reader.steps():
        samples = {row["sample"]: row for row in reader.samples(step).to_pylist()}
        pivots = set(parting_tokens(list(samples.values())))
        tokens = read_tokens(reader, step)
        for i in np.flatnonzero(usable(tokens)):
            sample, position = int(tokens.sample[i]), int(tokens.position[i])
            region = REGIONS[int(tokens.region[i])]
            if (sample, position) not in pivots or region not in SHOWS_WELL:
                continue
            distance = abs(math.log(float(tokens.ratio[i]) / SHOWS_WELL[region]))
            if region not in best or distance < best[region][0]:
                best[region] = (distance, example(region, step, tokens.rows(slice(i, i + 1)), samples[sample]))
    missing = set(SHOWS_WELL) - set(best)
    if missing:
        raise SystemExit(f"the run has no telling token in {', '.join(sorted(missing))}: raise the learning rate")
    return [best[region][1] for region in SHOWS_WELL]


def usable(tokens: Tokens) -> np.ndarray:
    """Tokens with a signal and a probability in the range above: [N] bool."""
    p_old_N = np.exp(tokens.logp_old)
    return tokens.signal & (p_old_N > PROBABILITY[0]) & (p_old_N < PROBABILITY[1])


def parting_tokens(samples: list[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """(sample, position) where a completion first differs from one of its group that scored otherwise.

    The task's tokens are bytes, so a place in the text is a place among the tokens.
    """
    for one in samples:
        for other in samples:
            if one["group"] == other["group"] and one["reward"] != other["reward"]:
                pairs = zip(one["completion"], other["completion"], strict=False)
                place = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
                if place is not None:
                    yield one["sample"], place


def example(region: str, step: int, token: Tokens, sample: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a token; numbers to six digits, which decide as the recorded ones do."""
    place, text = int(token.position[0]), sample["completion"]
    return {
        "region": region,
        "step": step,
        "update": int(token.update[0]),
        "prompt": sample["prompt"],
        "before": text[:place],
        "token": text[place],
        "after": text[place + 1 :],
        "reward": sample["reward"],
        "ratio": six_digits(token.ratio[0]),
        "advantage": six_digits(token.advantage[0]),
        "p_old": six_digits(np.exp(token.logp_old[0])),
        "weight": six_digits(token.weight[0]),
    }


def six_digits(number: np.floating[Any]) -> float:
    return float(f"{float(number):.6g}")


if __name__ == "__main__":
    main()
