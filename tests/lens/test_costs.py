"""What a run cost, against records made by hand; nothing is told that was not recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dinghai.lens.costs import MARKERS_READ, costs
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.words import duration, rounded, size

ROWS: list[dict[str, Any]] = [
    {"step": 0, "held_out/accuracy": 0.4},
    {
        "step": 1, "seconds/step": 3.0, "seconds/rollout": 1.0, "seconds/update": 2.0, "seconds/evaluation": 0.0,
        "tokens/loss": 1200, "completion/length_mean": 25.0,
    },
    {
        "step": 2, "seconds/step": 5.0, "seconds/rollout": 1.0, "seconds/update": 4.0, "seconds/evaluation": 2.0,
        "tokens/loss": 1800, "completion/length_mean": 37.5,
    },
]  # fmt: skip
CONFIG = {"run": {"seed": 7}, "rollout": {"prompts": 4, "group_size": 6, "dynamic_sampling": False}}


def make_run(folder: Path, config: Any = CONFIG) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text(json.dumps({"torch": "2", "device": "CPU"}))
    return folder


def make_step(run: Path, step: int, rows: int, stored: int) -> None:
    folder = run / "trace" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    names = {"update-000.rank0.parquet": rows, "samples.rank0.parquet": 5}
    files = {name: {"rows": count, "bytes": stored // 2, "sha256": "0" * 64} for name, count in names.items()}
    for name in files:
        (folder / name).write_bytes(b"x" * (stored // 2))
    groups = {"recorded": 1, "total": 1}
    tokens = {"recorded": rows, "total": rows, "budget": 9}
    marker = {"version": 2, "step": step, "files": files, "groups": groups, "tokens": tokens}
    (folder / "complete.json").write_text(json.dumps(marker))


def test_what_the_record_tells(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for step, stored in ((30, 100), (40, 900)):
        folder = run / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "policy.safetensors").write_bytes(b"x" * stored)
    assert costs(run, Metrics(ROWS)) == [
        ("time", "10.0 s in 2 steps, evaluations included"),
        ("of it rollouts and rewards", "2.00 s, 20.0%"),
        ("of it updates", "6.00 s, 60.0%"),
        ("of it evaluation", "2.00 s, 20.0%"),
        ("a step", "4.00 s (median), 5.00 s at most"),
        ("tokens sampled", "1,500; 750 a second of rollouts"),  # (25 + 37.5) · 24 in 2 s
        ("tokens in the loss", "3,000, counted in each update; 500 a second of updates"),
        ("checkpoints on disk", "1 kB, after steps 30 and 40"),
        ("device", "CPU"),
        ("seed", "7"),
    ]


def test_what_was_not_recorded_has_no_row(tmp_path: Path) -> None:
    assert costs(tmp_path, Metrics()) == []
    assert costs(tmp_path, Metrics([{"step": 1, "reward/mean": 0.5}])) == []


@pytest.mark.parametrize("damaged", ["{", "[]", '{"run": 3, "rollout": null}'])
def test_damaged_settings_cost_their_rows_only(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "config.json").write_text(damaged)
    (tmp_path / "versions.json").write_text(damaged)
    names = [name for name, _ in costs(tmp_path, Metrics(ROWS))]
    assert "time" in names
    assert not {"seed", "device", "tokens sampled"} & set(names)


def test_with_dynamic_sampling_the_tokens_sampled_are_not_known(tmp_path: Path) -> None:
    config = CONFIG | {"rollout": {"prompts": 4, "group_size": 6, "dynamic_sampling": True}}
    assert "tokens sampled" not in dict(costs(make_run(tmp_path, config), Metrics(ROWS)))


def test_the_trace_is_weighed_by_its_markers(tmp_path: Path) -> None:
    make_step(tmp_path, 1, rows=100, stored=1000)
    make_step(tmp_path, 2, rows=300, stored=3000)
    markers = sum((tmp_path / "trace" / f"step-{step:06d}" / "complete.json").stat().st_size for step in (1, 2))
    per_token = (4000 + markers) / 400
    expected = f"{size(4000 + markers)}, {per_token:.1f} bytes a recorded token"
    assert dict(costs(tmp_path, Metrics(ROWS)))["trace on disk"] == expected


def test_a_long_trace_is_reckoned_from_some_of_its_steps(tmp_path: Path) -> None:
    count = 2 * MARKERS_READ
    for step in range(1, count + 1, 2):
        make_step(tmp_path, step, rows=10, stored=2000)
    rows = [{"step": step} for step in range(1, count + 1)]
    marker = (tmp_path / "trace" / "step-000001" / "complete.json").stat().st_size
    text = dict(costs(tmp_path, Metrics(rows)))["trace on disk"]
    assert text.startswith("about 2.")
    assert text.endswith("bytes a recorded token")
    assert float(text.split()[3]) == pytest.approx((2000 + marker) / 10, rel=0.01)


def test_a_step_that_is_half_written_is_not_weighed(tmp_path: Path) -> None:
    make_step(tmp_path, 1, rows=100, stored=1000)
    make_step(tmp_path, 2, rows=100, stored=1000)
    (tmp_path / "trace" / "step-000002" / "samples.rank0.parquet").write_bytes(b"")
    marker = (tmp_path / "trace" / "step-000001" / "complete.json").stat().st_size
    assert f"{(1000 + marker) / 100:.1f} bytes" in dict(costs(tmp_path, Metrics(ROWS)))["trace on disk"]


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    rows = [{"step": 1, "seconds/step": float("nan"), "tokens/loss": float("inf")}, {"step": 2, "seconds/step": 1.5}]
    assert dict(costs(tmp_path, Metrics(rows))) == {
        "time": "1.50 s in 1 step, evaluations included",
        "a step": "1.50 s (median), 1.50 s at most",
    }


def test_units() -> None:
    assert [duration(s) for s in (0.004, 9.99, 9.996, 59.9, 59.96, 245, 3600, 3720, 360_000)] == [
        "0.00 s", "9.99 s", "10.0 s", "59.9 s", "1 min 0 s", "4 min 5 s", "1 h 0 min", "1 h 2 min", "100 h 0 min",
    ]  # fmt: skip
    assert [size(n) for n in (1, 512, 999, 1000, 4560, 999_600, 1_300_000_000, 2e15)] == [
        "1 byte", "512 bytes", "999 bytes", "1 kB", "4.56 kB", "1 MB", "1.3 GB", "2,000 TB",
    ]  # fmt: skip
    assert [rounded(n) for n in (0.123, 12.34, 123.4, 53_249, 1_234_567)] == [
        "0.123",
        "12.3",
        "123",
        "53,200",
        "1,230,000",
    ]
