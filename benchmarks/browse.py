"""Proves that large runs can be looked into: a step of a million tokens, and a run of a hundred million recorded ones.

    python benchmarks/browse.py [--steps 100] [--folder FOLDER]

Makes the runs in a temporary folder (50 MB: the steps of the long run share their files), and measures, in processes of
their own, through the library and through `dinghai watch`: how long a step takes to open, and how much memory browsing
takes. Each figure stands beside its bar; exits with status 1 if one is missed. The machine should be idle.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.client
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.config.settings import TrainSettings
from dinghai.files import json_line
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.trace import Samples, TraceWriter
from dinghai.trace.schema import step_folder

TOKENS_A_STEP, VOCABULARY = 1_000_000, 150_000
LENGTH, GROUP = 1_000, 8  # tokens of a completion, completions of a prompt
STEPS_BROWSED = 50
SECONDS_TO_OPEN, SECONDS_OF_CENSUS, MEGABYTES, FIRST_KILOBYTES = 1.0, 0.5, 500, 200
REGION = {name: number for number, name in enumerate(REGIONS)}
EFFECT = {name: number for number, name in enumerate(EFFECTS)}


# --- the runs --------------------------------------------------------------------------------------------------------


def make_run(folder: Path, updates: int, steps: int) -> Path:
    """A run whose steps all hold the same million tokens, in so many updates. Their files are links to one another."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.json").write_text(TrainSettings().model_dump_json())
    (folder / "metrics.jsonl").write_text("".join(json_line(metrics(step, updates)) for step in range(1, steps + 1)))
    make_tokenizer(folder / "model" / "tokenizer.json")
    write_step(folder / "trace", updates)
    first = step_folder(folder / "trace", 1)
    for step in range(2, steps + 1):
        copy = step_folder(folder / "trace", step)
        copy.mkdir()
        for file in first.iterdir():
            os.link(file, copy / file.name)
    return folder


def write_step(trace: Path, updates: int) -> None:
    """Step 1: completions of 1,000 tokens, 8 to a prompt, each completion in one of the updates; a clip of 0.2."""
    rng = np.random.default_rng(0)
    count = TOKENS_A_STEP // LENGTH
    ids = list(range(count))
    groups = [i // GROUP for i in ids]
    words = ["carry", "the", "one", "so", "we", "have", "therefore", "sum", "of", "wait", "check", "again", "equals"]
    texts = [" ".join(rng.choice(words, LENGTH)) for _ in ids]
    prompts = [f"Problem {group}: " + " ".join(rng.choice(words, 60)) for group in groups]
    reward = rng.integers(0, 2, count).astype(float)
    table = reward.reshape(-1, GROUP)
    advantage = ((table - table.mean(1, keepdims=True)) / (table.std(1, keepdims=True) + 1e-6)).reshape(-1)
    writer = TraceWriter(
        trace, 10 * TOKENS_A_STEP, seed=0, regions=dict(enumerate(REGIONS)), effects=dict(enumerate(EFFECTS))
    )
    names = [f"p{group}" for group in groups]
    writer.begin_step(1, Samples(ids, groups, names, prompts, texts, [LENGTH] * count, [True] * count, reward.tolist()))
    for update, mine in enumerate(np.array_split(rng.permutation(count), updates)):
        sample = np.repeat(mine, LENGTH)
        writer.add_update(update, tokens_of(rng, sample, advantage[sample].astype(np.float32), len(mine)), sample)
    writer.finish_step()


def tokens_of(rng: np.random.Generator, sample: np.ndarray, advantage: np.ndarray, completions: int) -> dict[str, Any]:
    rows = len(sample)
    logp_old = -rng.gamma(0.3, 1.5, rows).astype(np.float32)
    logp_new = np.minimum(logp_old + rng.normal(0, 0.1, rows), 0).astype(np.float32)
    ratio = np.exp(logp_new - logp_old)
    above, below, good = ratio > 1.2, ratio < 0.8, advantage > 0
    kinds = ("no_signal", "overshoot", "relapse", "forgotten", "escaped")
    where = [advantage == 0, above & good, above, below & good, below]
    region = np.select(where, [REGION[name] for name in kinds], REGION["inside"])
    stopped = np.isin(region, [REGION["overshoot"], REGION["escaped"]])
    effect = np.where(stopped, EFFECT["stopped"], np.where(advantage == 0, EFFECT["none"], EFFECT["kept"]))
    return {
        "position": np.tile(np.arange(LENGTH), completions),
        "token": np.minimum(rng.zipf(1.2, rows), VOCABULARY - 1),
        "logp_sampler": logp_old + rng.normal(0, 1e-3, rows),
        "logp_old": logp_old,
        "logp_new": logp_new,
        "advantage": advantage,
        "weight": np.where(stopped, 0, ratio * advantage),
        "region": region,
        "effect": effect,
        "entropy": rng.gamma(0.5, 0.8, rows),
        "factor": np.full(rows, 1 / LENGTH),
    }


def metrics(step: int, updates: int) -> dict[str, Any]:
    """A line with as many numbers as a run writes."""
    rng = np.random.default_rng(step)
    names = [f"{what}/{region}" for what in ("region", "weight_removed", "gradient_removed") for region in REGIONS]
    names += ["stopped_fraction", "band_fraction", "kl_old_new_k1", "kl_old_new_k3", "ratio_mean", "ess_fraction"]

    def clip() -> dict[str, float]:
        return dict(zip(names, rng.random(len(names)).tolist(), strict=True))

    row = {"step": step, "reward/mean": float(rng.random()), "entropy": 0.5, "tokens/signal": TOKENS_A_STEP}
    row |= {f"clip/{name}": value for name, value in clip().items()}
    return row | {"by_update": [{"update": update, **clip()} for update in range(updates)]}


def make_tokenizer(path: Path) -> None:
    """A byte-pair tokenizer with as many tokens as those of large models, which takes as much memory."""
    chosen = random.Random(0)
    tokens = [chr(0x100 + byte) for byte in range(256)]
    known, merges = set(tokens), []
    while len(tokens) < VOCABULARY:
        pair = chosen.choice(tokens[:20_000]), chosen.choice(tokens[:256])
        if "".join(pair) not in known and len(pair[0]) < 12:
            known.add("".join(pair))
            tokens.append("".join(pair))
            merges.append(pair)
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [list(m) for m in merges]}
    layers = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    facts = {"version": "1.0", "added_tokens": [], "pre_tokenizer": layers, "decoder": layers, "model": model}
    path.write_text(
        json.dumps(facts | {"truncation": None, "padding": None, "normalizer": None, "post_processor": None})
    )


# --- through the library, in a process of its own ---------------------------------------------------------------------


def measure(run: Path, browsed: int) -> dict[str, Any]:
    """Seconds to open steps and to count the whole run, and the peak of this process's memory."""
    from dinghai.lens.bins import bins_for
    from dinghai.lens.census import census
    from dinghai.lens.completions import group, group_heads
    from dinghai.trace import TraceReader
    from dinghai.view.token_text import load_token_text, speller

    text = load_token_text(run / "model" / "tokenizer.json")
    spell = speller(text) if text is not None else None
    reader = TraceReader(run / "trace")
    steps = reader.steps()
    bins = bins_for(reader)

    def open_step(step: int) -> dict[str, float]:
        """As somebody does who chooses a step: its place in the list, census, prompts, and the worst prompt."""
        seconds = {"list": clocked(reader.steps)}
        seconds["census"] = clocked(lambda: census(reader, [step], bins=bins))
        heads: list[Any] = []
        seconds["prompts"] = clocked(lambda: heads.extend(group_heads(reader, step)))
        seconds["prompt"] = clocked(lambda: group(reader, step, heads[0]["group"], spell))
        return seconds | {"open": sum(seconds.values())}

    first, again = open_step(steps[0]), open_step(steps[0])
    some = random.Random(1).sample(steps, min(browsed, len(steps)))
    begun = time.process_time()
    opened = [open_step(step)["open"] for step in some]
    processor = (time.process_time() - begun) / max(1, len(some))
    whole = clocked(lambda: census(reader, bins=bins)) if browsed else 0.0
    found = {"first": first, "again": again, "opened": opened, "whole": whole}
    return found | {"processor": processor, "megabytes": megabytes()}


def clocked(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def megabytes() -> float:
    """The most that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(run: Path, browsed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(run), str(browsed)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


# --- through `dinghai watch` ------------------------------------------------------------------------------------------


@contextmanager
def watching(run: Path) -> Iterator[tuple[int, int]]:
    """The page's process and port."""
    command = [sys.executable, "-m", "dinghai.cli", "watch", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        if found is None:
            raise SystemExit("dinghai watch did not say where its page is")
        yield process.pid, int(found[1])
    finally:
        process.terminate()
        process.wait()


class Browser:
    """Asks as a browser does: one connection, compressed."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.received = 0  # bytes of bodies, as they came

    def get(self, path: str) -> bytes:
        self._connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:200]!r}")
        self.received += len(body)
        return gzip.decompress(body) if answer.headers["content-encoding"] == "gzip" else body

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))


def measure_served(run: Path) -> dict[str, Any]:
    with watching(run) as (process, port), ThreadPoolExecutor(2) as pool:
        browser, other = Browser(port), Browser(port)
        first = {"seconds": clocked(lambda: first_page(browser)), "kilobytes": browser.received / 1000}
        steps = [one["step"] for one in browser.json("/api/runs/0/traced")["steps"]]

        def open_step(step: int) -> None:
            """Census and prompts are asked for at the same time, as the page does."""
            counted = pool.submit(other.get, f"/api/runs/0/census?step={step}")
            heads = browser.json(f"/api/runs/0/groups?step={step}")
            browser.get(f"/api/runs/0/group?step={step}&group={heads[0]['group']}")
            counted.result()

        some = random.Random(2).sample(steps, min(STEPS_BROWSED, len(steps)))
        begun = processor_seconds(process)
        opened = [clocked(functools.partial(open_step, step)) for step in some]
        processor = (processor_seconds(process) - begun) / len(some)
        whole = clocked(lambda: browser.get("/api/runs/0/census"))
        status = Path(f"/proc/{process}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"first": first, "opened": opened, "whole": whole, "processor": processor, "megabytes": peak}


def processor_seconds(process: int) -> float:
    """What a process has had of the processor so far."""
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def first_page(browser: Browser) -> None:
    """The page, what it links to and what that imports, and the numbers of its first view."""
    waiting, seen = ["/"], set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith("data:"):
            continue
        seen.add(path)
        text = browser.get(path).decode()
        found = re.findall(r'(?:src|href)="([^"#]+)"', text) if path == "/" else []
        found += re.findall(r'^import .* from "\./([^"]+)"', text, re.MULTILINE) if path.endswith(".js") else []
        waiting += [
            link if link.startswith("/") else f"{path.rpartition('/')[0]}/{link.removeprefix('./')}" for link in found
        ]
    for path in ("/api/runs", "/api/runs/0/overview", "/api/runs/0/traced"):
        browser.get(path)


# --- the table -------------------------------------------------------------------------------------------------------


def machine() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


class Table:
    """Prints each figure beside its bar."""

    def __init__(self) -> None:
        self.held = True
        print(f"{date.today()}, {machine()}, Python {platform.python_version()}\n")
        print("| | figure | bar |\n|---|---:|---|")

    def row(self, what: str, figure: float, unit: str, bar: float | None = None) -> None:
        verdict = "" if bar is None else f"≤ {bar:g} {unit}: {'held' if figure <= bar else 'MISSED'}"
        self.held &= bar is None or figure <= bar
        shown = f"{figure:.3f}" if unit == "s" else f"{figure:.0f}"
        print(f"| {what} | {shown} {unit} | {verdict} |", flush=True)


def busy() -> str:
    """What makes seconds longer than they are."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return (
        f"\n{load:.1f} processes wanted the {cores} cores: the seconds are not those of an idle machine"
        if load > cores
        else ""
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of the long run, a million recorded tokens each")
    parser.add_argument("--folder", type=Path, help="where the runs are made, and left; by default a temporary folder")
    parser.add_argument("--measure", nargs=2, metavar=("RUN", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), int(options.measure[1]))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return browse(options.folder or Path(temporary), options.steps)


def browse(folder: Path, steps: int) -> int:
    runs = {"4 updates of 250,000": (4, 1), "1 update of 1,000,000": (1, 1), "long": (4, steps)}
    for name, (updates, count) in runs.items():
        if not (folder / name).exists():
            make_run(folder / name, updates, count)
    table = Table()
    for name in list(runs)[:2]:
        found = in_own_process(folder / name, 0)
        table.row(f"step of {name} tokens, opened for the first time", found["first"]["open"], "s", SECONDS_TO_OPEN)
        table.row("… opened again", found["again"]["open"], "s", SECONDS_TO_OPEN)
        for part, bar in (("list", None), ("census", SECONDS_OF_CENSUS), ("prompts", None), ("prompt", None)):
            table.row(f"… of that the {part}", found["again"][part], "s", bar)
        table.row("… memory of the process", found["megabytes"], "MB", MEGABYTES)
        found = measure_served(folder / name)
        table.row("… opened through `dinghai watch`", found["opened"][0], "s", SECONDS_TO_OPEN)
        table.row("… memory of the server", found["megabytes"], "MB", MEGABYTES)
    found = in_own_process(folder / "long", STEPS_BROWSED)
    slowest = f"slowest of {len(found['opened'])} random steps"
    table.row(
        f"run of {steps * TOKENS_A_STEP:,} recorded tokens: {slowest}", max(found["opened"]), "s", SECONDS_TO_OPEN
    )
    table.row("… of the processor's time, a step", found["processor"], "s")
    table.row("… census of the run", found["whole"], "s")
    table.row("… memory of the process", found["megabytes"], "MB", MEGABYTES)
    found = measure_served(folder / "long")
    table.row("… `dinghai watch`: first page with all it needs", found["first"]["seconds"], "s", SECONDS_TO_OPEN)
    table.row("… its bytes, compressed", found["first"]["kilobytes"], "kB", FIRST_KILOBYTES)
    table.row(f"… {slowest}", max(found["opened"]), "s", SECONDS_TO_OPEN)
    table.row("… of the processor's time, a step", found["processor"], "s")
    table.row("… census of the run", found["whole"], "s")
    table.row("… memory of the server", found["megabytes"], "MB", MEGABYTES)
    print(busy())
    return 0 if table.held else 1


if __name__ == "__main__":
    sys.exit(main())
