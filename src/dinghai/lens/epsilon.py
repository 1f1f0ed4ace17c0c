"""Advice on ε from a recorded run: for each bound of its rule a range, a suggestion in it, and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dinghai.config.settings import TrainSettings
from dinghai.lens.bins import evenly_spaced
from dinghai.lens.epsilon_advice import CRITERIA, Advice, KnownNoise, NoAdvice, NoiseRow
from dinghai.lens.epsilon_bounds import Bound, bounds_of, why_no_bounds
from dinghai.lens.epsilon_evidence import Evidence
from dinghai.lens.epsilon_range import advise_on, with_wider_upper
from dinghai.lens.noise import engine_apart
from dinghai.lens.replay import objective_of, recorded_settings
from dinghai.lens.summary import load_run_metrics
from dinghai.lens.words import counted
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

STEPS_READ = 12  # recorded steps whose tokens are read, at most: the first, the last and some between


def advise(run_folder: Path, measured: Sequence[KnownNoise] = ()) -> Advice:
    """The advice on a recorded run.

    Args:
        measured: noises as `dinghai.lens.reevaluate` measures them. The advice goes by the largest that the run's
            ratios may hold; without any, by that between engine and trainer, which the trace holds.

    Raises:
        InputError: the run has no readable settings, or its rule is not registered.
    """
    run_folder = Path(run_folder)
    settings = recorded_settings(run_folder)
    policy_loss = objective_of(settings)
    reader = TraceReader(run_folder / "trace")
    bounds = bounds_of(policy_loss)
    recorded = reader.steps()
    nothing = _nothing_to_read(policy_loss, settings, bounds, recorded)
    if nothing is not None:
        return Advice(run_folder, policy_loss, nothing, steps_recorded=len(recorded))
    steps = evenly_spaced(recorded, STEPS_READ)
    evidence = Evidence(reader, steps, policy_loss)
    noises = [*measured, *_from_trace(run_folder, settings, steps, stands_in=not measured)]
    noises.sort(key=lambda known: (known.of_ratio, known.apart.quantile(0.99)), reverse=True)
    advice = Advice(
        run_folder, policy_loss, _too_little(evidence, noises, settings), steps=evidence.steps,
        steps_recorded=len(recorded), one_in=evidence.one_in, updates_per_batch=evidence.updates_per_batch,
        tokens=evidence.tokens_with_signal, mean_length=evidence.mean_length,
    )  # fmt: skip
    if advice.nothing is not None:
        return advice
    found = advise_on(bounds, evidence, noises[0].apart)
    found, widened = with_wider_upper(found, load_run_metrics(run_folder).training)
    rows = [
        NoiseRow(known, {bound.name: evidence.mistaken(bound, bound.value, known.apart) for bound in bounds})
        for known in noises
    ]
    return replace(advice, bounds=found, noises=rows, kl_by_update=evidence.kl_by_update, widened=widened)


def _nothing_to_read(
    policy_loss: PolicyLoss, settings: TrainSettings, bounds: Sequence[Bound], recorded: Sequence[int]
) -> NoAdvice | None:
    """What can be said before any token is read."""
    if not bounds:
        return NoAdvice("no-bounds", why_no_bounds(policy_loss.rule))
    if settings.updates_per_batch == 1:
        names = " and ".join(bound.name for bound in bounds)
        return NoAdvice(
            "one-update",
            f"Each batch of rollouts gets a single update, so every ratio is 1 and {names} can never act: no value is "
            "better than another. For a bound to matter set update.epochs or update.minibatches to 2 or more.",
        )
    if not recorded:
        return NoAdvice(
            "no-trace",
            "The run has no trace, so nothing is known of its ratios. Train with trace.enabled true; ten steps are "
            "enough for advice.",
        )
    return None


def _too_little(evidence: Evidence, noises: Sequence[KnownNoise], settings: TrainSettings) -> NoAdvice | None:
    """What the tokens that were read do not support."""
    least_steps, least_tokens = CRITERIA["steps"].value, CRITERIA["tokens"].value
    if len(evidence.steps) < least_steps:
        return NoAdvice(
            "too-few-steps",
            f"Only {counted(len(evidence.steps), 'recorded step')} can be read, and advice needs {least_steps:.0f} at "
            "least: how far ratios go changes over a run. Let it go on.",
        )
    if evidence.tokens_with_signal < least_tokens:
        return NoAdvice(
            "too-few-tokens",
            f"After the first update of each batch the record holds {counted(evidence.tokens_with_signal, 'token')} "
            f"with a signal, and {least_tokens:,.0f} are needed to tell one in a hundred from chance. Train for more "
            "steps, on prompts that are neither all solved nor all failed, or raise trace.tokens.",
        )
    if any(known.of_ratio for known in noises):
        return None
    truncated = settings.rollout.top_p < 1 or settings.rollout.top_k > 0
    why = (
        "top-p or top-k sampling makes the engine's log-probs those of another distribution"
        if truncated
        else "the trace holds no log-probs of engine and trainer for the same weights"
    )
    return NoAdvice(
        "noise-unknown",
        f"The noise of the ratio is not known, since {why}: nobody can say from where on a bound acts on more than "
        "rounding. Give --measure, which evaluates the run's final model twice.",
    )


def _from_trace(run_folder: Path, settings: TrainSettings, steps: Sequence[int], stands_in: bool) -> list[KnownNoise]:
    """That between engine and trainer, which the run's ratios hold only if its log π_old are the engine's.

    stands_in: whether it is taken for that of the ratios where nothing better is known: more code differs between the
        engine and the trainer than between two evaluations by the trainer.
    """
    apart = engine_apart(run_folder, settings.model_dump(mode="json"), steps)
    if apart is None:
        return []
    # Rollouts in another precision than the trainer's tell of that precision, not of the trainer's ratios.
    same = settings.rollout.dtype in (None, settings.model.dtype)
    taken = settings.update.shortcuts.old_log_probs == "engine"
    return [KnownNoise(apart, "engine against trainer, as recorded", of_ratio=taken or (stands_in and same))]
