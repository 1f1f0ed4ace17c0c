"""Many runs: trials in processes of their own, grids and searches of settings, and what came of them over the seeds."""

from __future__ import annotations

from dinghai.sweep.trials import Outcome, Trial, run_trials

__all__ = ["Outcome", "Trial", "run_trials"]
