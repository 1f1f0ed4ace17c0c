"""Fixtures that the tests with tiny models share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS, save_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny operations are slower on several threads, and their sums would depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, by the architecture's name; made once. Tests that change it copy it first."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny(tmp_path_factory.mktemp("tiny") / name, CONFIGS[name]())
        return made[name]

    return folder
