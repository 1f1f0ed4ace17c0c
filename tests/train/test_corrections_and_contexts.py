"""In a run: rollout corrections drop and weigh tokens, and rules that look at the whole minibatch see all of it.

Run: pytest tests/train/test_corrections_and_contexts.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tiny_runs import QUIET, metrics_of, run_tiny

from dinghai.errors import InputError
from dinghai.objective import Region
from dinghai.trace.reader import TraceReader

pytestmark = QUIET

# The engine draws from the smallest set of tokens that holds 0.7 of the probability, so k is 0.7 and a little more.
MISMATCH = {"rollout": {"top_p": 0.7}}
LOW = 0.7015


def test_tokens_that_a_correction_drops_have_their_own_region_and_no_weight(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", MISMATCH, {"objective": {"corrections": {"mis": {"low": LOW}}}})
    lines = metrics_of(run)[1:]
    assert any(0 < line["correction/dropped_fraction"] < 1 for line in lines)
    for line in lines:
        assert line["correction/kl_sampler_old_k3"] > 0
        assert line["clip/region/dropped_fraction"] > 0
        assert line["by_update"][0]["correction/dropped_fraction"] > 0
    tokens = TraceReader(run / "trace").tokens(1, 0).to_pydict()
    seen = set()
    for old, sampler, advantage, region, weight in zip(
        *(tokens[name] for name in ("logp_old", "logp_sampler", "advantage", "region", "weight")), strict=True
    ):
        if old is None:
            assert advantage == weight == 0  # without a signal, and never scored
            continue
        k = math.exp(old - sampler)
        outside = k < LOW
        if abs(k - LOW) < 1e-6:
            continue  # the trace holds float32
        seen.add(outside)
        assert (region == Region.DROPPED) == (outside and advantage != 0)
        assert (weight == 0) == (outside or advantage == 0 or region in (Region.OVERSHOOT, Region.ESCAPED))
        if not outside and region == Region.INSIDE:  # the first update: r = 1
            assert weight == pytest.approx(k * advantage, rel=1e-4)  # the trace rounds
    assert seen == {True, False}


def test_the_record_names_every_parameter_of_the_corrections(tmp_path: Path) -> None:
    both = {"objective": {"corrections": {"tis": {}, "geometric-rejection": {"high": 1.5}}}}
    run = run_tiny(tmp_path, "run", {"run": {"steps": 1}}, both)
    kept = json.loads((run / "config.json").read_text())["objective"]["corrections"]
    assert kept == {"tis": {"cap": 2.0}, "geometric-rejection": {"low": 0.99, "high": 1.5}}


def test_an_unknown_correction_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown rollout correction 'tiss'; did you mean 'tis'"):
        run_tiny(tmp_path, "run", {"objective": {"corrections": {"tiss": {}}}})
    assert not (tmp_path / "run").exists()


def test_an_engine_that_agrees_is_left_alone(tmp_path: Path) -> None:
    """Sampling from the policy's own distribution: k is 1 up to rounding, and nothing is dropped."""
    run = run_tiny(tmp_path, "run", {"run": {"steps": 1}, "objective": {"corrections": {"mis": {}}}})
    line = metrics_of(run)[1]
    assert line["correction/dropped_fraction"] == 0.0
    assert line["correction/ratio_mean"] == pytest.approx(1, abs=1e-4)
