"""Proves that the GPU benchmark runs to its end, on small shapes and a CPU, and leaves its table.

Run: pytest tests/ops/test_gpu_benchmark.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_every_row_that_needs_nothing_else_is_measured(tmp_path: Path) -> None:
    """And those of others say that they are not installed, or were measured as well; nothing fails."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--out", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"]
    assert all(row["what"] in (tmp_path / "gpu.md").read_text(encoding="utf-8") for row in rows)
    ours = [row for row in rows if row["what"].startswith(("dinghai", "floor", "plain"))]
    assert len(ours) == 10
    assert all(row["ms"] > 0 for row in ours), ours
    assert all(row["ms"] or "not installed" in row["note"] for row in rows), rows
    assert max(row["error"] for row in rows if row["what"] == "dinghai") < 0.05
