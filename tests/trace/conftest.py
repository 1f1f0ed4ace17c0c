"""A batch of token records, and a trace of three steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from trace_records import Batch, make_batch, make_writer, write_step


@pytest.fixture
def batch() -> Batch:
    return make_batch(seed=1)


@pytest.fixture
def trace_folder(tmp_path: Path, batch: Batch) -> Path:
    """A trace of the steps 1, 2 and 3."""
    folder = tmp_path / "trace"
    writer = make_writer(folder)
    for step in (1, 2, 3):
        write_step(writer, step, batch)
    return folder
