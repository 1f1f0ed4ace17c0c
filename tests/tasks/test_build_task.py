"""Proves that each kind of task is built from its settings, and that only what it needs is imported.

Run: pytest tests/tasks/test_build_task.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dinghai.config.settings import AdditionTaskSettings, JsonlTaskSettings
from dinghai.tasks import Task, build_task


def test_tasks_are_built_by_kind(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"question": "q", "answer": 1}, {"question": "r", "answer": 2}])
    tasks: list[Task] = [
        build_task(AdditionTaskSettings(held_out=4), 0),
        build_task(JsonlTaskSettings(path=str(path), held_out=1), 0),
    ]
    assert [task.name for task in tasks] == ["addition", "jsonl"]
    for task in tasks:
        assert task.train_prompt(0).text
        assert task.held_out
        task.close()


def test_builtin_task_imports_no_optional_package() -> None:
    code = (
        "import sys; from dinghai.tasks import build_task; "
        "from dinghai.config.settings import AdditionTaskSettings as S; "
        "import dinghai.tasks.rewards; build_task(S(), 0); "
        "print({'torch', 'math_verify', 'reasoning_gym', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
