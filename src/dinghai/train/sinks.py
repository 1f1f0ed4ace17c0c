"""Where metrics go beside metrics.jsonl. Each tool is imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError


class Sink(Protocol):
    """Takes each step's metrics."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files in the run's folder. A resumed run hides what an earlier attempt wrote of the steps it repeats."""

    def __init__(self, folder: Path, settings: TrainSettings, first_step: int) -> None:
        writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=first_step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """wandb, or trackio, which has wandb's interface."""

    def __init__(self, module: str, folder: Path, settings: TrainSettings) -> None:
        self._module = _import(module, module)
        options: dict[str, Any] = {
            "project": "dinghai",
            "name": folder.name,
            "config": settings.model_dump(mode="json"),
        }
        if module == "wandb":
            options |= {"dir": str(folder), "id": folder.name, "resume": "allow"}
        else:
            options |= {"resume": "allow"}
        self._run = self._module.init(**options)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._module.log(dict(numbers), step=step)

    def close(self) -> None:
        self._module.finish()


class Sinks:
    """All sinks of a run; none is fine."""

    def __init__(self, settings: TrainSettings, folder: Path, first_step: int) -> None:
        self._sinks: list[Sink] = [_build(name, folder, settings, first_step) for name in settings.run.sinks]

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Every number of a line of metrics.jsonl, those of each update index under `update_K/`."""
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and k != "step"}
        for update in metrics.get("by_update", []):
            prefix = f"update_{update['update']}"
            numbers |= {f"{prefix}/{k}": v for k, v in update.items() if isinstance(v, int | float) and k != "update"}
        for sink in self._sinks:
            sink.log(metrics["step"], numbers)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def check_sinks(names: Sequence[str]) -> None:
    """InputError for a sink whose package is missing, before anything is written."""
    for name in names:
        _import("torch.utils.tensorboard" if name == "tensorboard" else name, name)


def _build(name: str, folder: Path, settings: TrainSettings, first_step: int) -> Sink:
    if name == "tensorboard":
        return TensorBoardSink(folder, settings, first_step)
    return WandbSink(name, folder, settings)


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"run.sinks: {extra} is not installed: pip install 'dinghai[{extra}]'") from error
