"""A process that is killed while it saves leaves a complete checkpoint, and loses none that was reported as saved.

Run: pytest tests/checkpoint/test_save_killed.py
"""

import json
import subprocess
import sys
from pathlib import Path

ROUNDS = 20


def test_killed_at_random_moments(tmp_path):
    """20 times a process saves without pause (every third save replaces the same step) and is killed with SIGKILL."""
    script = Path(__file__).with_name("save_and_kill.py")
    command = [sys.executable, "-W", "error", str(script), str(tmp_path), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert len(rounds) == ROUNDS
    for found in rounds:
        assert found["damaged"] == []
        assert found["consistent"]
        assert found["loaded"] >= found["reported"]
    assert sum(found["in_save"] for found in rounds) >= ROUNDS // 3, "too few were killed inside a save to prove it"
    assert rounds[-1]["loaded"] > rounds[0]["loaded"], "the run makes no progress"
