"""Tiny runs for sweeps, from the tests of training."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))  # the tiny runs of the tests of training


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes that train."""
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
