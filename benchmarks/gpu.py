"""The policy head, rollouts and a whole step on a GPU, against the floor of the matrix products and against others.

    python benchmarks/gpu.py [--out FOLDER] [--budget SECONDS] [--only head linear step] [--tiny]

Needs torch and Triton, and the source tree beside it; the whole step needs transformers, pydantic and, for its other
side, TRL. Ends within the budget, by default under 8 minutes: what no time is left for is named as skipped. TRL 1.16,
Liger and CCE are timed where they are installed.

Each head is first held against autograd in float32 on a few rows ("error": the distance of both gradients, relative),
and is not timed if that fails. Times are medians of runs that take turns, by the device's clock. Memory is what a run
takes at its peak beyond its inputs and the gradients that it leaves. All but Liger's GRPO loss, which has its own, get
the GRPO rule of `PolicyLoss`; a row with given coefficients shows what that costs between the products.

Prints one table, and writes it to FOLDER (default $OUT, else here) as gpu.md and gpu.json. --tiny: small shapes, on any
machine, to try the script; its times say nothing.

Shapes: N tokens, H hidden size, V vocabulary, B sequences, T tokens of each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import gpu_step
import torch
from gpu_heads import (
    OTHERS,
    Case,
    Run,
    dinghai_head,
    gradient_error,
    half_clipped,
    make_case,
    products,
    reference_gradients,
)
from gpu_step import NEEDED, StepJob
from torch import Tensor

CUDA = torch.cuda.is_available()
LARGEST_ERROR = 0.05  # of a gradient in bfloat16 through rounded logits
# (N, H, V), and its bars: milliseconds, GB, milliseconds with half the rows without signal.
HEADS = [((16384, 4096, 151936), (88.0, 0.35, 45.0)), ((8192, 1024, 151936), (13.0, None, None))]
TINY_HEADS = [((96, 32, 300), (None, None, None))]
LINEAR = (128, 512, [10_000, 100_000, 1_000_000])  # H, V and the Ns
TINY_LINEAR = (16, 32, [500, 5_000])
REFERENCE_ROWS = 128


@dataclass
class Row:
    """One line of the table; None where nothing was measured."""

    what: str
    shape: str
    ms: float | None = None
    gb: float | None = None
    error: float | None = None
    bar: str = ""
    note: str = ""


class Table:
    """The rows so far, and how much time is left for more."""

    def __init__(self, budget: float) -> None:
        self.rows: list[Row] = []
        self._end = time.monotonic() + budget

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(markdown_of(row), flush=True)


# ---------------------------------------------------------------------------------------------------------- the heads


def milliseconds(run: Callable[[], Any]) -> float:
    if not CUDA:
        begun = time.perf_counter()
        run()
        return (time.perf_counter() - begun) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def gigabytes(run: Callable[[], Any]) -> float | None:
    """Peak beyond what is there before, or is left: inputs and gradients."""
    if not CUDA:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = run()
    left = torch.cuda.memory_allocated()
    del kept
    return (torch.cuda.max_memory_allocated() - max(before, left)) / 1e9


def in_turns(runs: dict[str, Callable[[], Any]], table: Table, repeats: int) -> dict[str, float]:
    """Median milliseconds of each; fewer repeats, and in the end none, as time runs out."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if table.left > 20 or not times[name]:
                times[name].append(milliseconds(run))
    return {name: statistics.median(values) for name, values in times.items()}


def why_not(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def measure_heads(table: Table, tiny: bool) -> None:
    for (N, H, V), (bar_ms, bar_gb, bar_half) in TINY_HEADS if tiny else HEADS:
        shape = f"N={N} H={H} V={V}"
        if table.left < 60 and not tiny:
            table.add(Row("head", shape, note="skipped: no time left"))
            continue
        case = make_case(N, H, V)
        few = case.rows(slice(0, min(REFERENCE_ROWS, case.length)))
        right = reference_gradients(few)
        measure_others(table, shape, case, few, right)
        try:
            measure_ours(table, shape, case, gradient_error(dinghai_head(few), right), (bar_ms, bar_gb, bar_half))
        except Exception as error:  # the other shapes are still to be measured
            table.add(Row("dinghai", shape, note=why_not(error)))


def measure_others(table: Table, shape: str, case: Case, few: Case, right: tuple[Tensor, Tensor]) -> None:
    """The floor, and every other head that is installed, is right and fits."""
    runs: dict[str, Callable[[], Any]] = {}
    rows = {name: Row(name, shape) for name in OTHERS}
    for name, make in OTHERS.items():
        try:
            head = make()
            rows[name].error = gradient_error(head(few), right)
            if not rows[name].error <= LARGEST_ERROR:
                rows[name].note = "wrong gradients: not timed"
                continue
            runs[name] = head(case)
            rows[name].gb = gigabytes(runs[name])
        except Exception as error:  # another's code: whatever it raises, the table goes on and says so
            rows[name].note = why_not(error)
            runs.pop(name, None)
        if CUDA:
            torch.cuda.empty_cache()
    try:
        floor = products(case)
        flops = 6 * case.tokens * case.hidden_NH.shape[1] * case.weight_VH.shape[0]
        ms = in_turns({"floor": floor}, table, 5)["floor"]
        table.add(Row("floor: the three products alone", shape, ms, note=f"{flops / ms / 1e9:.0f} TFLOP/s"))
    except torch.OutOfMemoryError as error:
        table.add(Row("floor: the three products alone", shape, note=why_not(error)))
    for name, ms in in_turns(runs, table, 3).items():
        rows[name].ms = ms
    for row in rows.values():
        table.add(row)


def measure_ours(
    table: Table, shape: str, case: Case, error: float, bars: tuple[float | None, float | None, float | None]
) -> None:
    if not error <= LARGEST_ERROR:
        table.add(Row("dinghai", shape, error=error, note="wrong gradients: not timed"))
        return
    bar_ms, bar_gb, bar_half = bars
    half = case.rows(slice(0, case.tokens // 2))
    clipped = half_clipped(case)
    runs: dict[str, Run] = {
        "dinghai": dinghai_head(case),
        "dinghai, coefficients given": dinghai_head(case, case.advantage_N / case.tokens),
        "dinghai, half without signal (not read)": dinghai_head(half),
        "dinghai, half past the clip (scored)": dinghai_head(clipped),
    }
    gb = {name: gigabytes(run) for name, run in runs.items()}
    ms = in_turns(runs, table, 5)
    for name in runs:
        row = Row(name, shape, ms[name], gb[name])
        if name == "dinghai":
            row.bar, row.error = verdict((ms[name], bar_ms, "ms"), (gb[name], bar_gb, "GB")), error
        elif "not read" in name:
            row.bar = verdict((ms[name], bar_half, "ms"))
        table.add(row)


def verdict(*measured: tuple[float | None, float | None, str]) -> str:
    """What the bars are, and whether each was met; nothing on a machine that they are not for."""
    parts = []
    for value, bar, unit in measured:
        if bar is not None:
            parts.append(f"<= {bar:g} {unit}: {'not measured' if value is None else 'yes' if value <= bar else 'NO'}")
    return ", ".join(parts)


def measure_linear(table: Table, tiny: bool) -> None:
    """Cost a token, and memory, from few tokens to many."""
    H, V, sizes = TINY_LINEAR if tiny else LINEAR
    costs = []
    for N in sizes:
        shape = f"N={N} H={H} V={V}"
        if table.left < 20:
            table.add(Row("dinghai, cost against N", shape, note="skipped: no time left"))
            continue
        run = dinghai_head(make_case(N, H, V))
        gb = gigabytes(run)
        ms = in_turns({"ours": run}, table, 5)["ours"]
        costs.append(ms / N)
        note = f"{ms / N * 1e6:.1f} ns a token, {costs[-1] / costs[0]:.2f} of the first"
        table.add(Row("dinghai, cost against N", shape, ms, gb, note=note))


# ------------------------------------------------------------------------------------------------------ a whole step


def measure_steps(table: Table, tiny: bool) -> None:
    """Each side in a process of its own, so that neither holds memory of the other."""
    if CUDA:
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        job = StepJob(folder)
        if tiny:
            job = StepJob(folder, 4, 4, 8, 8, 1, 8, layers=2, hidden=128, vocabulary=500)
        shape = (
            f"{job.prompts} x {job.group_size} completions of {job.new_tokens} tokens, prompts of {job.prompt_words}"
        )
        seconds: dict[str, float] = {}
        for side in NEEDED:
            missing = [m for m in NEEDED[side] if importlib.util.find_spec(m) is None]
            if missing:
                note = f"not installed: {', '.join(missing)}"
            elif table.left < (0 if tiny else 45):
                note = "skipped: no time left"
            else:
                note = step_in_its_own_process(table, side, job, shape, seconds)
            if note:
                table.add(Row(f"{side}, whole step", shape, note=note))


def step_in_its_own_process(table: Table, side: str, job: StepJob, shape: str, seconds: dict[str, float]) -> str:
    """Adds the rows of one side and returns nothing; or returns why there are none."""
    command = [sys.executable, gpu_step.__file__, side, json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(10.0, table.left - 5))
    except subprocess.TimeoutExpired:
        return "skipped: did not end in the time left"
    if done.returncode != 0:
        return f"failed: {done.stderr.strip().splitlines()[-1][:160] if done.stderr.strip() else done.returncode}"
    result = json.loads(done.stdout.strip().splitlines()[-1])
    seconds[side] = result["seconds"]
    ratio = f"{seconds['TRL'] / seconds['dinghai']:.2f} x TRL's steps a second" if len(seconds) == 2 else ""
    bar = f">= 3 x TRL: {'yes' if seconds['TRL'] >= 3 * seconds['dinghai'] else 'NO'}" if ratio and CUDA else ""
    rate = f"{result['tokens'] / result['rollout']:.0f} tokens a second"
    table.add(Row(f"{side}, rollout", shape, result["rollout"] * 1e3, note=rate))
    table.add(Row(f"{side}, whole step", shape, result["seconds"] * 1e3, bar=bar, note=ratio))
    return ""


# ---------------------------------------------------------------------------------------------------------- the table

COLUMNS = ("what", "shape", "ms", "GB beyond inputs and gradients", "gradient error", "bar", "note")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def markdown_of(row: Row) -> str:
    columns = ((row.ms, ".2f"), (row.gb, ".3f"), (row.error, ".1e"))
    numbers = ["-" if x is None else f"{x:{form}}" for x, form in columns]
    return f"| {' | '.join([row.what, row.shape, *numbers, row.bar, row.note])} |"


def machine() -> str:
    def version(package: str) -> str:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{package} {importlib.metadata.version(package)}"
        return f"no {package}"

    device = torch.cuda.get_device_name() if CUDA else f"{platform.processor() or platform.machine()}, no GPU"
    packages = ", ".join(map(version, ("triton", "transformers", "trl", "liger-kernel", "cut-cross-entropy")))
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{date.today().isoformat()}, {device}, {python}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--budget", type=float, default=450.0)
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not CUDA and not arguments.tiny:
        sys.exit("there is no GPU here: --tiny tries the script on a CPU")
    warnings.simplefilter("ignore")
    table, about = Table(arguments.budget), machine()
    print(f"{about}\n\n{HEADER}", flush=True)
    for name in arguments.only:
        try:
            MEASUREMENTS[name](table, arguments.tiny)
        except Exception as error:
            table.add(Row(name, "", note=why_not(error)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([about, "", HEADER, *map(markdown_of, table.rows)]) + "\n"
    (arguments.out / "gpu.md").write_text(text, encoding="utf-8")
    result = {"machine": about, "rows": [asdict(row) for row in table.rows]}
    (arguments.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


MEASUREMENTS: dict[str, Callable[[Table, bool], None]] = {
    "head": measure_heads,
    "linear": measure_linear,
    "step": measure_steps,
}

if __name__ == "__main__":
    main()
