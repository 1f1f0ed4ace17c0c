"""A run that is killed at any moment is resumed to the bytes of one that was not.

30 seeded moments: in the cold start, within the save of a checkpoint, while the trace, the final model or the report is
written, and at times of the clock.
Run: pytest tests/train/test_run_killed.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MOMENTS = 30


def test_killed_at_30_moments(tmp_path: Path) -> None:
    script = Path(__file__).with_name("train_and_kill.py")
    command = [sys.executable, "-W", "error", str(script), str(tmp_path), str(MOMENTS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == MOMENTS
    for one in found:
        assert one["resumed"], (one, done.stderr)
        assert one["differences"] == [], one
        assert one["rubbish"] == [], one
    killed = [one for one in found if one["killed"]]
    assert len(killed) >= MOMENTS - 4, "too many had ended before they were killed"
    assert sum(one["in_save"] for one in killed) >= 9  # those that are chosen for it; others by chance
    assert any(not one["is_run"] for one in killed), "none was killed before its folder stood"
    assert any(one["is_run"] and not one["checkpoints"] for one in killed), "none was killed before a checkpoint"
