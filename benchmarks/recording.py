"""What the trace costs: bytes a token on disk, and the share of a training step's time.

    python benchmarks/recording.py [--turns 10] [--only bytes|time|reading]

Bytes: of the files that hold a row for each token and update, of real runs and of made-up tokens that do not compress.
The bar: at most 16 a row; none for the last three, the dearest cases there are. Beside it those of all files, with
prompts and completions.

Time, measured in two ways. First the clock around all that the training's own thread does for the trace, waiting
included, over the clock around its steps. The bar is 3 %, and 0.5 % with the trace off, where the loss's factor is all
that is left. Then steps with and without a trace, which take turns within one run, as recording changes nothing of what
is trained: how far their medians are apart, in time and in processor time (which counts the thread that writes as
well), and, for what such a figure is worth, how far those of two kinds of steps without a trace are.

Reading: 2,000 steps listed, and six columns of a million tokens read, by a reader that has done so before.

Prints tables. Exits with status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from dinghai.config.settings import TrainSettings
from dinghai.objective.layout import Layout
from dinghai.objective.reduce import Reduction
from dinghai.trace import BackgroundWriter, Samples, TraceReader, TraceWriter
from dinghai.train import loop, record, run

INF = float("inf")
BYTES, SHARE_ON, SHARE_OFF, READ_SECONDS, LIST_SECONDS = 16.0, 0.03, 0.005, 0.4, 0.05

LONG = {
    "model": {"layers": 4, "context": 512},
    "task": {"kind": "addition", "held_out": 8},
    "cold_start": {"steps": 0},
    "rollout": {"prompts": 4, "max_new_tokens": 256},
    "evaluation": {"every": 1000},
}
MISMATCH = {"rollout": {"top_p": 0.9}}  # an engine that draws from another distribution than the trainer's
OF_TIME: dict[str, tuple[dict[str, Any], int]] = {  # settings, and steps in a block
    "the default run": ({}, 6),
    "4 layers, 256 new tokens, untrained": (LONG, 2),
}
OF_BYTES: dict[str, dict[str, Any]] = {
    "the default run": {},
    "GSPO": {"objective": {"rule": "gspo"}},
    "truncated importance sampling, KL in the loss": {
        "objective": {"corrections": {"tis": {}}, "kl": {"beta": 0.01}},
        **MISMATCH,
    },
    "4 layers, 256 new tokens, untrained": {**LONG, "run": {"steps": 3}},
}


def quietly(settings: TrainSettings) -> None:
    """Trains, and prints nothing."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.train(settings, set())


def settings_of(folder: Path, name: str, *changes: dict[str, Any]) -> TrainSettings:
    """Default settings with the changes laid over them, table by table."""
    tables: dict[str, dict[str, Any]] = {"run": {"folder": str(folder), "name": name}}
    for change in changes:
        for table, values in change.items():
            tables.setdefault(table, {}).update(values)
    return TrainSettings(**tables)  # type: ignore[arg-type]


# --- bytes -----------------------------------------------------------------------------------------------------------


def bytes_a_token(trace: Path) -> tuple[int, float, float]:
    """(rows, bytes of the update files a row, bytes of everything a row)."""
    updates = sorted(trace.rglob("update-*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in updates)
    everything = sum(path.stat().st_size for path in trace.rglob("*") if path.is_file())
    return rows, sum(path.stat().st_size for path in updates) / rows, everything / rows


def incompressible(folder: Path, corrected: bool = False, critic: bool = False) -> Path:
    """A step of 128 completions of 512 tokens drawn evenly from a vocabulary of 150,000; nothing of it repeats.

    corrected: with a rollout correction and a KL in the loss. critic: with an advantage of its own for each token.
    """
    random = np.random.default_rng(0)
    completions, length, updates = 128, 512, 4
    sample_N = np.repeat(np.arange(completions), length)
    size = len(sample_N)
    reward = random.random(completions)
    logp_old_N = -random.gamma(2.0, 3.0, size)
    columns = {
        "position": np.tile(np.arange(length), completions),
        "token": random.integers(0, 150_000, size),
        "logp_old": logp_old_N,
        "logp_sampler": logp_old_N + random.normal(0, 0.02, size),
        "advantage": random.normal(size=size) if critic else (reward - 0.5)[sample_N],
        "entropy": random.gamma(2.0, 1.0, size),
        "factor": np.full(size, 1 / length),
    }
    writer = TraceWriter(folder, 10**9, 0, regions={2: "inside", 3: "overshoot"}, effects={1: "kept", 4: "stopped"})
    letters = list("abcdefghijklmnopqrstuvwxyz ")
    texts = ["".join(random.choice(letters, 5 * length)) for _ in range(completions)]
    writer.begin_step(
        1,
        Samples(
            sample=list(range(completions)), group=[i // 8 for i in range(completions)],
            prompt_id=[str(i // 8) for i in range(completions)], prompt=["?"] * completions, completion=texts,
            tokens=[length] * completions, finished=[True] * completions, reward=reward.tolist(),
        ),
    )  # fmt: skip
    for update in range(updates):
        mine = sample_N % 2 == update % 2
        change_N = random.normal(0, 0.1, size)
        stopped_N = np.exp(change_N) > 1.2
        weight_N = np.where(stopped_N, 0.0, np.exp(change_N) * columns["advantage"])
        more = {"logp_new": logp_old_N + change_N, "weight": weight_N}
        more |= {"region": np.where(stopped_N, 3, 2), "effect": np.where(stopped_N, 4, 1)}
        if corrected:
            more |= {"correction": np.minimum(np.exp(columns["logp_old"] - columns["logp_sampler"]), 2.0)}
            more |= {"kl_weight": random.normal(0, 0.01, size)}
        writer.add_update(update, {name: x[mine] for name, x in (columns | more).items()}, sample_N[mine])
    writer.finish_step()
    return folder


def report_bytes(folder: Path) -> bool:
    print("| run | token rows | bytes a row, tokens' files | bytes a row, everything | bar |")
    print("|---|---:|---:|---:|---|")
    held = True
    traces: list[tuple[str, Path, float]] = []
    for name, change in OF_BYTES.items():
        place = name.replace(" ", "-").replace(",", "")
        quietly(settings_of(folder, place, change))
        traces.append((name, folder / place / "trace", BYTES))
    traces.append(("150,000 words drawn evenly", incompressible(folder / "even"), BYTES))
    dearer = {"a correction and KL in the loss": {"corrected": True}, "a critic": {"critic": True}}
    dearer["all three"] = {"corrected": True, "critic": True}
    traces += [(f"the same with {name}", incompressible(folder / name, **how), INF) for name, how in dearer.items()]
    for name, trace, bar in traces:
        rows, of_tokens, of_all = bytes_a_token(trace)
        held &= of_tokens <= bar
        verdict = "none" if bar == INF else "held" if of_tokens <= bar else "missed"
        print(f"| {name} | {rows:,} | {of_tokens:.1f} | {of_all:.1f} | {verdict} |", flush=True)
    return held


# --- time ------------------------------------------------------------------------------------------------------------


KINDS = ("on", "off", "off again")


@dataclass
class Steps:
    """The steps of one kind: seconds, of the processor in all threads, and what the training gave the trace of them."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    recording: list[float] = field(default_factory=list)


def kind_of(step: int, block: int) -> tuple[str, bool]:
    """Which kind a step is of, and whether it counts: the first of a block may still bear the block before it.

    Blocks of `block` steps take turns, each time in another order, so that a drift favours none of them.
    """
    turn, place = divmod((step - 1) // block, len(KINDS))
    return KINDS[(place + turn) % len(KINDS)], (step - 1) % block > 0


@contextlib.contextmanager
def clocked(block: int) -> Iterator[dict[str, Steps]]:
    """Measures the run within it, which has a trace in some of its blocks of steps and none in the others."""
    found = {kind: Steps() for kind in KINDS}
    waited = [0.0]  # for the trace, since the last step ended
    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(owner, name)
        undo.append(lambda: setattr(owner, name, original))
        setattr(owner, name, by(original))

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            try:
                return original(*arguments, **more)
            finally:
                waited[0] += time.perf_counter() - begun

        return call

    def step_record(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(step: int, collected: Any, trace: Any, ratio: Any) -> Any:
            return original(step, collected, trace if kind_of(step, block)[0] == "on" else None, ratio)

        return call

    def whole_step(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(parts: Any, step: int, next_prompt: int) -> Any:
            kind, counts = kind_of(step, block)
            waited[0] = 0.0
            begun, processor = time.perf_counter(), time.process_time()
            result = original(parts, step, next_prompt)
            if counts:
                found[kind].seconds.append(time.perf_counter() - begun)
                found[kind].processor.append(time.process_time() - processor)
                found[kind].recording.append(waited[0])
            return result

        return call

    def before_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(trace: Any) -> Any:
            begun = time.perf_counter()
            original(trace)
            if found["on"].recording:  # on top of the steps, as the training waits outside them
                found["on"].recording[-1] += time.perf_counter() - begun

        return call

    replace(record, "_trace_samples", timed)
    replace(record.StepRecord, "_trace_columns", timed)
    replace(record.StepRecord, "_write_trace", timed)
    replace(BackgroundWriter, "begin_step", timed)
    replace(BackgroundWriter, "finish_step", timed)
    replace(BackgroundWriter, "wait", before_checkpoint)
    replace(loop, "StepRecord", step_record)
    replace(run, "_step", whole_step)
    try:
        yield found
    finally:
        for back in reversed(undo):
            back()


def seconds_of_factor(rows: int, updates: int) -> float:
    """What is still done for a trace where there is none: the loss gives its factor the caller's shape, each update."""
    layout = Layout.packed(torch.Size([rows]), torch.tensor([0, rows]), torch.ones(rows, dtype=torch.bool))
    factor_N = Reduction("seq-mean-token-mean").factor(layout)
    return updates * quickest(lambda: layout.scatter(factor_N), times=200)


def report_time(folder: Path, turns: int) -> bool:
    print("| run | steps of each kind | seconds a step | on | off | time, on/off | time, off/off | processor, on/off |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    held = True
    for name, (change, block) in OF_TIME.items():
        length = {"run": {"steps": turns * block * len(KINDS)}}
        with clocked(block) as found:
            quietly(settings_of(folder, f"time-{block}", change, {"evaluation": {"every": 1000}}, length))
        rows, _, _ = bytes_a_token(folder / f"time-{block}" / "trace")
        recorded = TraceReader(folder / f"time-{block}" / "trace")
        updates = sum(len(recorded.updates(step)) for step in recorded.steps())
        on, off, again = (found[kind] for kind in KINDS)
        share = sum(on.recording) / sum(on.seconds)
        left = seconds_of_factor(rows // updates, updates // len(recorded.steps())) + statistics.mean(off.recording)
        share_off = left / statistics.mean(off.seconds)
        held &= share <= SHARE_ON and share_off <= SHARE_OFF
        print(
            f"| {name} | {len(on.seconds)} | {statistics.median(off.seconds):.3f} | {share:.2%} | {share_off:.3%} "
            f"| {compared(on.seconds, off.seconds)} | {compared(again.seconds, off.seconds)} "
            f"| {compared(on.processor, off.processor)} |",
            flush=True,
        )
    return held


def compared(these: list[float], those: list[float]) -> str:
    """How far the medians are apart, with the range that holds nine in ten of the medians of steps drawn again."""
    random = np.random.default_rng(0)

    def medians(values: list[float]) -> np.ndarray:
        return np.median(random.choice(values, (2000, len(values))), axis=1)

    low, high = np.quantile(medians(these) / medians(those) - 1, [0.05, 0.95])
    return f"{statistics.median(these) / statistics.median(those) - 1:+.1%} ({low:+.1%} to {high:+.1%})"


# --- reading ---------------------------------------------------------------------------------------------------------


def quickest(work: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def report_reading(folder: Path) -> bool:
    random = np.random.default_rng(0)
    size, completions = 1_000_000, 4_000
    sample_N = np.repeat(np.arange(completions), size // completions)
    writer = TraceWriter(folder / "large", 10**9, 0, regions={2: "inside"}, effects={1: "kept"})
    names = ("logp_sampler", "logp_old", "logp_new", "advantage", "weight", "entropy")
    columns = {name: random.normal(size=size) for name in names}
    columns |= {"position": np.arange(size) % 250, "token": random.integers(0, 150_000, size)}
    columns |= {"region": np.full(size, 2), "effect": np.full(size, 1)}
    texts = ["x"] * completions
    numbers = list(range(completions))
    samples = Samples(
        numbers, numbers, texts, texts, texts, [250] * completions, [True] * completions, [0.0] * completions
    )
    writer.begin_step(1, samples)
    writer.add_update(0, columns, sample_N)
    writer.finish_step()
    large, wanted = TraceReader(folder / "large"), ["logp_old", "logp_new", "advantage", "weight", "region", "effect"]

    many = TraceWriter(folder / "many", 10**9, 0, regions={2: "inside"}, effects={1: "kept"})
    for step in range(1, 2001):
        many.begin_step(step, Samples([0], [0], ["p"], ["?"], ["x"], [1], [True], [1.0]))
        many.add_update(0, {name: x[:1] for name, x in columns.items()}, sample_N[:1])
        many.finish_step()
    listed = TraceReader(folder / "many")
    time.sleep(2.1)  # files of a moment ago are hashed again each time
    for work in (lambda: large.tokens(1, columns=wanted), listed.steps):
        work()
    read, listing = quickest(lambda: large.tokens(1, columns=wanted)), quickest(listed.steps)
    print("| what | seconds | bar |")
    print("|---|---:|---|")
    print(f"| six columns of a million tokens | {read:.3f} | at most {READ_SECONDS} |")
    print(f"| the list of 2,000 steps | {listing:.3f} | at most {LIST_SECONDS} |")
    return read <= READ_SECONDS and listing <= LIST_SECONDS


def machine() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="blocks of steps with a trace")
    parser.add_argument("--only", choices=["bytes", "time", "reading"], help="one of the three")
    options = parser.parse_args()
    load = f", load before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{date.today()}, {machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}{load}")
    held = True
    with tempfile.TemporaryDirectory() as place:
        parts: dict[str, Callable[[], bool]] = {
            "bytes": lambda: report_bytes(Path(place)),
            "time": lambda: report_time(Path(place), options.turns),
            "reading": lambda: report_reading(Path(place)),
        }
        for name, part in parts.items():
            if options.only in (None, name):
                print()
                held &= part()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
