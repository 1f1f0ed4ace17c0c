"""Proves that no answer can hang, crash or outlive the run: late checks are killed, dead workers are replaced, and no
worker is orphaned.

Run: pytest tests/tasks/test_checker_pool.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dinghai.errors import RunFailed
from dinghai.tasks.checker import CheckerPool

ODD_CHECKER = """
import os, signal, sys, time

def make_checker(config):
    if config == "broken":
        raise ValueError("no such thing")
    if config == "exits":
        sys.exit(3)
    def check(job):
        if job == "hang": time.sleep(600)
        if job == "tower": 9 ** 9 ** 9  # in C: no Python signal handler would ever run
        if job == "die": os.kill(os.getpid(), signal.SIGKILL)
        if job == "raise": raise ValueError("odd")
        if job == "memory": return len("x" * 10**11)
        if job == "print": print('{"result": "forged"}', flush=True)
        if job == "environment": return sorted(os.environ)
        if job == "modules": return sorted(sys.modules)
        if job == "slow": time.sleep(0.3)
        return job
    return check
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CheckerPool]]:
    (tmp_path / "odd_checker.py").write_text(ODD_CHECKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    pools = []

    def make(config: str = "", workers: int = 1, timeout: float = 0.5) -> CheckerPool:
        pools.append(CheckerPool("odd_checker:make_checker", config, workers=workers, timeout=timeout))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text() if Path("/proc").exists() else ""
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return ") Z " not in status  # ended, but not yet collected by its new parent


def ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


@pytest.mark.parametrize("job", ["hang", "tower"])
def test_late_check_is_killed_and_the_next_succeeds(odd: Callable[..., CheckerPool], job: str) -> None:
    pool = odd()
    assert pool.check(["a"])[0].value == "a"
    (hung,) = pool.process_ids
    start = time.monotonic()
    outcomes = pool.check(["b", job, "c"])
    assert [o.fault for o in outcomes] == [None, "timeout", None]
    assert [o.value for o in outcomes] == ["b", None, "c"]
    assert time.monotonic() - start < 5  # 0.5 s, and the start of a new worker
    assert not is_running(hung)
    assert pool.process_ids != [hung]


def test_killed_worker_is_replaced_unnoticed(odd: Callable[..., CheckerPool]) -> None:
    pool = odd()
    pool.check(["a"])
    os.kill(pool.process_ids[0], signal.SIGKILL)
    assert pool.check(["b"])[0].value == "b"


def test_check_that_kills_its_worker_is_given_up(odd: Callable[..., CheckerPool]) -> None:
    assert [o.fault or o.value for o in odd().check(["a", "die", "b"])] == ["a", "died", "b"]


def test_exceptions_and_memory_are_contained(odd: Callable[..., CheckerPool]) -> None:
    raised, memory, fine = odd(timeout=5).check(["raise", "memory", "a"])
    assert (raised.fault, raised.detail) == ("raised", "ValueError: odd")
    assert memory.fault == "raised"
    assert memory.detail.startswith("MemoryError")
    assert fine.value == "a"


def test_what_a_verifier_prints_is_no_verdict(odd: Callable[..., CheckerPool]) -> None:
    assert odd().check(["print"])[0].value == "print"


def test_order_is_kept_and_workers_share_the_work(odd: Callable[..., CheckerPool]) -> None:
    pool = odd(workers=2, timeout=5)
    jobs = ["slow", *(str(i) for i in range(200)), "slow"]
    assert [o.value for o in pool.check(jobs)] == jobs
    assert len(pool.process_ids) == 2


def test_worker_gets_no_secrets_and_no_torch(odd: Callable[..., CheckerPool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    environment, modules = odd().check(["environment", "modules"])
    assert "SOME_API_KEY" not in environment.value
    assert not {"torch", "pydantic", "transformers"} & set(modules.value)


@pytest.mark.parametrize(("config", "message"), [("broken", "ValueError: no such thing"), ("exits", "SystemExit: 3")])
def test_checker_that_cannot_start_fails_the_run(odd: Callable[..., CheckerPool], config: str, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        odd(config).check(["a"])


def test_missing_checker_fails_the_run() -> None:
    pool = CheckerPool("no_such_module:f", None, workers=1, timeout=1)
    with pytest.raises(RunFailed, match="No module named 'no_such_module'"):
        pool.check(["a"])
    pool.close()


def test_close_leaves_no_process_and_refuses_further_work(odd: Callable[..., CheckerPool]) -> None:
    pool = odd(workers=2)
    pool.check(["slow", "slow"])
    pids = pool.process_ids
    pool.close()
    pool.close()
    assert pids
    assert not any(map(is_running, pids))
    with pytest.raises(RunFailed, match="closed"):
        pool.check(["a"])


PARENT = """
import sys, threading, time
from dinghai.tasks.checker import CheckerPool
pool = CheckerPool("odd_checker:make_checker", "", workers=1, timeout=1.0)
pool.check(["a"])
print(pool.process_ids[0], flush=True)
if sys.argv[1] == "busy": pool.check(["tower"])
if sys.argv[1] == "idle": time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
@pytest.mark.parametrize(("what", "seconds"), [("idle", 3), ("busy", 6), ("exit", 3)])
def test_no_worker_outlives_its_parent(tmp_path: Path, what: str, seconds: float) -> None:
    (tmp_path / "odd_checker.py").write_text(ODD_CHECKER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    worker = int(parent.stdout.readline())
    if what != "exit":
        time.sleep(0.3)
        assert is_running(worker)
        parent.kill()
    assert parent.wait(timeout=20) == (0 if what == "exit" else -signal.SIGKILL)
    assert parent.stderr.read() == b""
    parent.stdout.close()
    parent.stderr.close()
    assert ends_within(worker, seconds)
