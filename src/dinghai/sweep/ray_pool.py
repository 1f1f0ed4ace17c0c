"""Trains trials on Ray Tune: the same work as in the pool of processes, wherever Ray puts it.

Tune decides where and when, and tries a trial again whose process died; settings, seeds, resuming and the table are
ours. On several machines the folder of the sweep must be one that all of them see under the same path.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dinghai.errors import InputError, RunFailed
from dinghai.sweep.perform import Job, Report, load_rules, perform
from dinghai.text import safe

_RETRIES = 1  # of a trial whose process died
# No figures to Ray's makers, no files of loggers that nobody asked for; Ctrl-C is ours, since every run is resumable.
# Workers use this very environment: under `uv run` Ray would pack the working directory and build each one anew.
RAY_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def check_ray() -> None:
    """InputError where Ray Tune is not installed."""
    if find_spec("ray") is None or find_spec("pandas") is None:  # pandas comes with ray[tune] only
        raise InputError("--on ray needs Ray Tune, which is not installed: pip install 'dinghai[ray]'")


def perform_on_ray(
    jobs: Sequence[Job],
    workers: int,
    allowed_rewards: Collection[str],
    rule_files: Sequence[str],
    ended: Callable[[Report], None],
    keep_open: Collection[int] = (),
) -> None:
    """As `perform_in_processes`. Connects to the cluster of RAY_ADDRESS, else starts Ray on this machine for the call.

    workers:   trials at a time; each has one CPU, and its share of the GPUs where there are any
    keep_open: is not used: Ray ends its workers when their driver is gone

    Raises InputError if Ray Tune is not installed, and RunFailed if Ray does not start.
    """
    if not jobs:
        return
    check_ray()
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import tune

    starts_ray = not ray.is_initialized()
    if starts_ray:
        try:
            own = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}  # a server that nobody asked for
            ray.init(log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # Ray raises plain ones
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RunFailed(f"Ray could not be started, or reached: {safe(lines[0][:300])}") from error
    left = {job.name for job in jobs}
    raised: list[BaseException] = []  # Tune would wrap what a callback raises, and try to end its trial again

    def hear(report: Report) -> None:
        if raised or report.name not in left:
            return
        left.remove(report.name)
        try:
            ended(report)
        except BaseException as error:
            raised.append(error)

    class Ended(tune.Callback):
        """Hears of each trial's end."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if "report" in trial.last_result:  # there is none where all were stopped
                hear(Report(**trial.last_result["report"]))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            name = jobs[trial.config["job"]].name
            hear(Report(name, f"its process died {_RETRIES + 1} times; {_in_words(trial)}", 0.0))

    class StopsAll(tune.Stopper):
        """Ends every trial once whoever heard of one has raised."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(raised)

    here = Path(jobs[0].folder).resolve() / ".ray"
    share = min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
    work = {
        "jobs": [dataclasses.asdict(job) for job in jobs],
        "allowed_rewards": sorted(allowed_rewards),
        "rule_files": [os.path.abspath(os.path.expanduser(file)) for file in rule_files],
        "folder": os.getcwd(),
    }
    trainable = tune.with_parameters(_trainable(tune), work=work)
    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": share}),
            param_space={"job": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=workers,
                reuse_actors=True,  # so that imports are paid for once
                trial_name_creator=lambda trial: jobs[trial.config["job"]].name,
                trial_dirname_creator=lambda trial: str(trial.config["job"]),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(here),
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[Ended()],
                stop=StopsAll(),
                verbose=0,
            ),
        ).fit()
    finally:
        if starts_ray:
            ray.shutdown()
        shutil.rmtree(here, ignore_errors=True)
    if raised:
        raise raised[0]
    for name in sorted(left):
        ended(Report(name, "Ray ended without a word on it", 0.0))


def _trainable(tune: Any) -> Any:
    """The class that Tune makes an actor of; it needs Ray, and so is made here."""

    class TrialOnRay(tune.Trainable):
        """Trains one trial after another."""

        def setup(self, config: dict[str, Any], work: dict[str, Any]) -> None:
            os.chdir(work["folder"])  # names of files in the settings are relative to it
            self._work, self._job = work, config["job"]
            self._rule_code = load_rules(work["rule_files"])

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._job = new_config["job"]
            return True

        def step(self) -> dict[str, Any]:
            job = Job(**self._work["jobs"][self._job])
            report = perform(job, self._work["allowed_rewards"], self._rule_code)
            return {"report": dataclasses.asdict(report), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # the run's folder holds all that it needs to go on

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

    return TrialOnRay


def _in_words(trial: Any) -> str:
    """The last line of what Tune knows of a trial's death."""
    lines = [line.strip() for line in str(trial.get_error()).splitlines() if line.strip()]
    return safe(lines[-1][:300]) if lines else "Ray says no more"
