"""A run with hostile completions, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import make_run

from dinghai.view.report import write_report


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: tests that change a run make their own."""
    return make_run(tmp_path_factory.mktemp("runs") / "addition-3", steps=6)


@pytest.fixture(scope="session")
def page(run_folder: Path) -> str:
    return write_report(run_folder).read_text("utf-8")
