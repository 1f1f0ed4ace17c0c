"""A run from beginning to end: `train` and `resume`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinghai.config.load import CONFIG_FILE, settings_from_json
from dinghai.config.settings import RewardSettings, TrainSettings
from dinghai.errors import InputError
from dinghai.lens.summary import load_run_metrics, summarize
from dinghai.lens.verdict import closing_lines
from dinghai.objective.probe import probe
from dinghai.text import safe
from dinghai.trace.writer import discard_steps_from
from dinghai.train.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    tidy_checkpoints,
)
from dinghai.train.cold_start import cold_start
from dinghai.train.early_warnings import EarlyWarnings
from dinghai.train.evaluate import held_out_accuracy
from dinghai.train.finite import failure_kept_in
from dinghai.train.folder import MetricsFile, choose_folder, create_folder
from dinghai.train.loop import train_step
from dinghai.train.run_parts import RunParts
from dinghai.train.setup import Beginning, seed_everything
from dinghai.train.sinks import Sinks, check_sinks
from dinghai.view.progress import TrainProgress
from dinghai.view.report import write_report
from dinghai.view.token_text import TOKENIZER_FILE


def train(settings: TrainSettings, allowed_rewards: Collection[str], rule_code: Collection[str] = ()) -> None:
    """Trains a model and leaves a run folder.

    allowed_rewards: FILE.py:FUNCTION sources that the command line named, and so allowed to be run
    rule_code: SHA-256 of each file of rules that was loaded
    """
    folder = choose_folder(settings)
    check_sinks(settings.run.sinks)
    beginning = Beginning(settings, allowed_rewards, rule_code)
    with _named_in_errors(folder), contextlib.closing(beginning.task):
        create_folder(folder, beginning.settings, probe(beginning.policy_loss))
        with failure_kept_in(folder):
            _run(folder, beginning, None)


def resume(
    run_folder: Path,
    allowed_rewards: Collection[str],
    rewards: list[RewardSettings] | None,
    rule_code: Collection[str] = (),
) -> None:
    """Continues a run from its last checkpoint as if it had never stopped; from its start, if there is none yet.

    rewards: the rewards as the command line names them again; they must be the run's own
    """
    settings = settings_from_json((run_folder / CONFIG_FILE).read_text(encoding="utf-8"), str(run_folder / CONFIG_FILE))
    if rewards is not None and [r.model_dump() for r in rewards] != [r.model_dump() for r in settings.rewards]:
        own = " ".join(f"--reward '{r.source}*{r.weight:g}'" for r in settings.rewards)
        raise InputError(f"the rewards differ from those the run began with; they were {safe(own)}")
    check_sinks(settings.run.sinks)
    checkpoint = None
    if has_checkpoint(run_folder):
        checkpoint = load_latest_checkpoint(run_folder, lambda line: print(f"passed over {safe(line)}"))
    beginning = Beginning(settings, allowed_rewards, rule_code)
    with _named_in_errors(run_folder), contextlib.closing(beginning.task):
        _check_own_code(beginning, checkpoint)
        with failure_kept_in(run_folder):
            _run(run_folder, beginning, checkpoint)


@contextlib.contextmanager
def _named_in_errors(folder: Path) -> Iterator[None]:
    """Leaves the run's folder with whatever goes wrong, for the command line to name."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"run: {folder}")
        raise


def _run(folder: Path, beginning: Beginning, checkpoint: Checkpoint | None) -> None:
    """Cold start (or checkpoint), training steps, final model, report."""
    settings = beginning.settings
    for line in opening_lines(folder, beginning):
        print(line)
    beginning.policy.save_tokenizer(folder / TOKENIZER_FILE)
    metrics_file = MetricsFile(folder)
    with TrainProgress(settings.run.steps) as progress:
        if checkpoint is None:
            parts, next_prompt = _begin(folder, beginning, metrics_file, progress), 0
            done = 0
        else:
            parts, next_prompt = _restore(folder, beginning, metrics_file, checkpoint)
            done = checkpoint.step
            print(f"resumed after step {done}")
        warnings = EarlyWarnings(folder, settings.model_dump(mode="json"), load_run_metrics(folder).rows, progress.warn)
        with contextlib.closing(Sinks(settings, folder, done + 1)) as sinks, parts.trace or contextlib.nullcontext():
            for step in range(done + 1, settings.run.steps + 1):
                metrics, next_prompt = _step(parts, step, next_prompt)
                metrics_file.append(metrics)
                sinks.log(metrics)
                progress.step(metrics)
                warnings.step(metrics)
                if step % settings.checkpoint.every == 0 or step == settings.run.steps:
                    _save(folder, parts, beginning, metrics_file, step, next_prompt)
        progress.phase("writing the model and the report")
        parts.policy.save(folder / "model")
    write_report(folder)
    print()
    for line in closing_lines(summarize(folder)):
        print(line)


def _begin(folder: Path, beginning: Beginning, metrics_file: MetricsFile, progress: TrainProgress) -> RunParts:
    """The cold start, the accuracy it leads to, and the first checkpoint."""
    settings = beginning.settings
    metrics_file.cut(0)
    discard_steps_from(folder / "trace", 0)
    if settings.cold_start.steps:
        progress.phase("cold start")
        cold_start(beginning.policy, beginning.task, settings, progress.cold_start)
    parts = beginning.parts(folder)
    progress.phase("held-out problems")
    accuracy = held_out_accuracy(parts.policy, parts.engine, parts.task, settings)
    first_line = {"step": 0, "held_out/accuracy": accuracy}
    metrics_file.append(first_line)
    progress.step(first_line)
    _save(folder, parts, beginning, metrics_file, 0, 0)
    return parts


def _step(parts: RunParts, step: int, next_prompt: int) -> tuple[dict[str, Any], int]:
    """One training step and its line of metrics, with the held-out accuracy where it is due."""
    settings = parts.settings
    seed_everything(settings.run.seed, "step", step)
    begun = time.perf_counter()
    record, next_prompt = train_step(parts, step, next_prompt)
    metrics = record.finish()
    trained = time.perf_counter()
    if step % settings.evaluation.every == 0 or step == settings.run.steps:
        metrics["held_out/accuracy"] = held_out_accuracy(parts.policy, parts.engine, parts.task, settings)
    metrics["seconds/update"] = round(trained - begun - metrics["seconds/rollout"], 4)
    metrics["seconds/step"] = round(trained - begun, 4)
    metrics["seconds/evaluation"] = round(time.perf_counter() - trained, 4)
    return metrics, next_prompt


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _save(
    folder: Path, parts: RunParts, beginning: Beginning, metrics_file: MetricsFile, step: int, next_prompt: int
) -> None:
    if parts.trace is not None:
        parts.trace.wait()  # a resumed run keeps the trace of the steps that its checkpoint has seen
    tensors: dict[str, dict[str, Tensor]] = {}
    optimizers: dict[str, Any] = {}
    for learner in parts.learners:
        groups, optimizers[learner.name] = learner.tensors()
        tensors |= groups
    if _reference_is_stored(parts):
        assert parts.reference is not None
        tensors["reference"] = {name: p.detach() for name, p in parts.reference.policy.model.named_parameters()}
    state = {
        "next_prompt": next_prompt,
        "metrics_bytes": metrics_file.size(),
        "optimizers": optimizers,
        "kl_beta": parts.kl_penalty.beta,
        "reward_code": beginning.rewards.fingerprints,
        "rule_code": sorted(beginning.rule_code),
    }
    save_checkpoint(folder, step, tensors, state, parts.settings.checkpoint.keep)


def _restore(
    folder: Path, beginning: Beginning, metrics_file: MetricsFile, checkpoint: Checkpoint
) -> tuple[RunParts, int]:
    """The run as it was after the checkpoint's step; what was written later is forgotten."""
    tidy_checkpoints(folder)
    metrics_file.cut(checkpoint.state["metrics_bytes"])
    discard_steps_from(folder / "trace", checkpoint.step + 1)
    parts = beginning.parts(folder)
    for learner in parts.learners:
        learner.restore(checkpoint.tensors, checkpoint.state["optimizers"][learner.name])
    parts.kl_penalty.beta = checkpoint.state.get("kl_beta", parts.kl_penalty.beta)
    if _reference_is_stored(parts):
        assert parts.reference is not None
        with torch.no_grad():
            for name, parameter in parts.reference.policy.model.named_parameters():
                parameter.copy_(checkpoint.tensors["reference"][name])
    return parts, checkpoint.state["next_prompt"]


def _reference_is_stored(parts: RunParts) -> bool:
    """Whether the reference cannot be had again from model.path: after a cold start, or for the built-in model."""
    settings = parts.settings
    from_scratch = settings.model.path is None or settings.cold_start.steps > 0
    return parts.reference is not None and parts.reference.is_copy and from_scratch


def _check_own_code(beginning: Beginning, checkpoint: Checkpoint | None) -> None:
    """Says so when code of the user's is not what it was: the run goes on, but not as if nothing had happened."""
    if checkpoint is not None and sorted(beginning.rule_code) != checkpoint.state.get("rule_code", []):
        print("the files of rules (--rule-file) have changed since the checkpoint: the run may go on differently")
    before = checkpoint.state["reward_code"] if checkpoint is not None else {}
    for source, fingerprint in beginning.rewards.fingerprints.items():
        if before.get(source, fingerprint) != fingerprint:
            print(f"the code of reward {safe(source)} has changed since the checkpoint: the run will go on differently")


# --- what is said at the start ---------------------------------------------------------------------------------------


def opening_lines(folder: Path, beginning: Beginning) -> list[str]:
    """What a run is, in a few lines: model, batch, whether epsilon can act, whether sampling is the policy's own."""
    settings, policy = beginning.settings, beginning.policy
    trained = sum(p.numel() for p in policy.trainable().values())
    name = safe(settings.model.path or "the built-in model")
    rollout = settings.rollout
    lines = [
        f"run {safe(str(folder))}: {name}, {_count(trained)} trained parameters, {policy.device.type}, "
        f"task {safe(beginning.task.name)}",
        f"each step: {rollout.prompts} prompts x {rollout.group_size} completions, then {updates_line(settings)}",
        objective_line(settings),
    ]
    if not policy.factored:
        lines.append("this architecture does more than one linear layer after its hidden states: whole logits are made")
    lines += beginning.notes
    lines += [f"warning: {text}" for text in beginning.warnings]
    if rollout.top_p < 1 or rollout.top_k > 0:
        lines.append(
            "top-p or top-k sampling draws from a truncated distribution: logp_sampler differs from the policy's own "
            "log-probs, and the ratio of the clip (new/old) does not correct for it"
        )
    if rollout.dtype is not None and rollout.dtype != settings.model.dtype:
        lines.append(
            f"completions are sampled with weights in {rollout.dtype}: logp_sampler differs from the policy's own "
            "log-probs, and the ratio of the clip (new/old) does not correct for it (objective.corrections does)"
        )
    return lines


def updates_line(settings: TrainSettings) -> str:
    """How often each batch is used, and so whether the ratio moves at all, in words."""
    update = settings.update
    if settings.updates_per_batch == 1:
        return "1 update: the ratio is 1 at every token"
    made_of = f"{_times(update.epochs, 'epoch')} x {_times(update.minibatches, 'minibatch', 'es')}"
    return f"{settings.updates_per_batch} updates ({made_of}): from the second on ratios leave 1 and the rule can act"


def _times(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{plural if count != 1 else ''}"


def objective_line(settings: TrainSettings) -> str:
    """The rule with every parameter, its ratio and its reduction."""
    objective = settings.objective
    values = [f"{name} {value:g}" for name, value in objective.parameters.items() if value is not None]
    return ", ".join([f"rule {safe(objective.rule)}", *values, f"{objective.ratio} ratio", str(objective.reduction)])


def _count(parameters: int) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)
