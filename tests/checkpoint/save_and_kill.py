"""Saves checkpoints in a child, kills it at a random moment, reads the newest, goes on from it; see test_save_killed.

Usage: python save_and_kill.py FOLDER ROUNDS; prints one JSON list with an entry a round.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dinghai.train.checkpoint import load_latest_checkpoint, save_checkpoint

GROUPS = ("policy", "optimizer", "critic")


def save(folder: Path, step: int) -> None:
    tensors = {group: {"x": torch.full((50_000,), float(step)), "n": torch.tensor(step)} for group in GROUPS}
    save_checkpoint(folder, step, tensors, {"step": step}, keep=2)


def save_without_pause(folder: Path, step: int, reports: int) -> None:
    while True:
        save(folder, step)
        os.write(reports, step.to_bytes(4, "little"))
        step += step % 3 != 0 or random.random() < 0.5  # every third step is now and then saved again


def killed_child(folder: Path, step: int) -> int:
    """Lets a child save from `step` on, kills it, and returns the last step that it reported as saved."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        save_without_pause(folder, step, writing)
    os.close(writing)
    time.sleep(random.uniform(0.005, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        reported = file.read()
    return int.from_bytes(reported[-4:], "little") if reported else step - 1


def main(folder: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    random.seed(0)
    save(folder, 1)
    found = []
    loaded = 1
    for _ in range(rounds):
        reported = killed_child(folder, loaded + 1)
        in_save = any(name.startswith(".") for name in os.listdir(folder / "checkpoints"))
        damaged: list[str] = []
        checkpoint = load_latest_checkpoint(folder, damaged.append)
        loaded = checkpoint.step
        tensors = [t for group in GROUPS for t in checkpoint.tensors[group].values()]
        consistent = checkpoint.state == {"step": loaded} and all(bool((t == loaded).all()) for t in tensors)
        found.append(
            {"reported": reported, "loaded": loaded, "in_save": in_save, "damaged": damaged, "consistent": consistent}
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
