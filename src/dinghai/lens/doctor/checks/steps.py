"""The size of the steps: the gradient's norm, how far ratios spread, and whether the policy moves at all."""

from __future__ import annotations

import math
import statistics

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.series import is_finite, steps_and_values
from dinghai.lens.words import counted, percent

SPIKE = Threshold(10.0, "times the median norm: a gradient of another kind than the others", "measured here")
SPIKE_STEPS = Threshold(5, "the median of fewer says little", "statistics")
UNEVEN = Threshold(
    0.5, "of the tokens with a signal: the others count for nothing beside a few with large ratios", "arithmetic"
)
UNEVEN_STEPS = Threshold(
    0.1, "of the steps, and two at least: single ones happen in runs that learn well", "measured here"
)
SPREAD = Threshold(
    0.3,
    "nats (root mean square of log r) after one update of a batch: a typical token's probability is off by a third; "
    "healthy runs of the built-in task have 0.03 to 0.05, and 0.25 in a single step at most",
    "measured here",
)
SPREAD_STEPS = Threshold(0.5, "of the steps, and two at least", "statistics")
SPREAD_ONCE = Threshold(1.0, "nats in a single step: a typical probability is off by a factor e", "arithmetic")
STILL = Threshold(1e-3, "nats: no token's probability changes by a thousandth within any batch", "arithmetic")
STILL_STEPS = Threshold(8, "steps after the warm-up of the learning rate", "arithmetic")

_MEND = "try a lower update.lr, fewer updates a batch, or update.target_kl"


def _norm_spiked(case: Case) -> Finding | None:
    """Only where the gradient's norm was clipped too: a small one is harmless, however rare."""
    norms = [
        (row["step"], max(values))
        for row in case.training
        if (values := [entry["grad_norm"] for entry in row.get("by_update") or [] if is_finite(entry, "grad_norm")])
    ] or steps_and_values(case.training, "grad_norm_mean")
    usual = [norm for _, norm in norms if norm > 0]
    if len(usual) < SPIKE_STEPS.value:
        return None
    median = statistics.median(usual)
    highest = case.setting("update.max_grad_norm")
    limit = max(SPIKE.value * median, highest if isinstance(highest, int | float) else 0.0)
    spikes = [pair for pair in norms if pair[1] > limit]
    if not spikes:
        return None
    step, worst = max(spikes, key=lambda pair: pair[1])
    steps = f"in {counted(len(spikes), 'step')}" if len(spikes) > 1 else "once"
    return Finding(
        check="gradient-norm-spike",
        grade=Grade.NOTE,
        share=len(spikes) / len(norms),
        title="The gradient's norm leapt",
        evidence=(Evidence(f"{steps}, to {worst:.3g} at step {step} (median {median:.2g})", Place(step=step)),),
        cause="A few tokens with a huge weight, a rare kind of completion, or a step too large before it",
        fix="look at that step's completions; a lower update.max_grad_norm bounds what one step can do",
        view="curves",
    )


def _uneven(case: Case) -> Finding | None:
    series = steps_and_values(case.training, "clip/ess_fraction")
    low = [pair for pair in series if pair[1] < UNEVEN.value]
    if len(low) < max(2, UNEVEN_STEPS.value * len(series)):
        return None
    step, least = min(low, key=lambda pair: pair[1])
    return Finding(
        check="uneven-ratios",
        grade=Grade.HARMFUL,
        share=len(low) / len(series),
        title="A few tokens outweigh the others",
        evidence=(
            Evidence(
                f"at step {step} ratios were so uneven that the tokens with a signal counted like {percent(least)} of "
                f"them (less than {percent(UNEVEN.value)} in {len(low):,} of {counted(len(series), 'step')})",
                Place(step=step),
            ),
        ),
        cause="The policy moves so far within a batch that importance sampling no longer works (effective sample size)",
        fix=_MEND,
        view="tokens",
    )


def _steps_too_large(case: Case) -> Finding | None:
    """Measured at the second update of a batch, whose ratios one optimiser step has made."""
    spreads = [
        (row["step"], math.sqrt(2 * max(entry["kl_old_new_k3"], 0.0)))
        for row in case.training
        for entry in row.get("by_update") or []
        if entry.get("update") == 1 and is_finite(entry, "kl_old_new_k3")
    ]
    wide = [pair for pair in spreads if pair[1] > SPREAD.value]
    step, worst = max(wide, key=lambda pair: pair[1], default=(0, 0.0))
    if worst <= SPREAD_ONCE.value and len(wide) < max(2, SPREAD_STEPS.value * len(spreads)):
        return None
    lr = case.setting("update.lr")
    given = f" ({lr:g})" if isinstance(lr, int | float) else ""
    return Finding(
        check="learning-rate-too-high",
        grade=Grade.HARMFUL,
        share=len(wide) / len(spreads),
        title="The learning rate is too high for the bounds",
        evidence=(
            Evidence(
                f"one update moves log r by {worst:.2g} nats at step {step} (root mean square), and by more than "
                f"{SPREAD.value:g} in {len(wide):,} of {counted(len(spreads), 'step')}",
                Place(step=step, update=1),
            ),
        ),
        cause="The clip takes the gradient from tokens that are outside; it does not bring them back, and it cannot "
        "keep a "
        "single step from overshooting",
        fix=f"lower update.lr{given}, threefold to begin with, or lengthen update.warmup",
        view="clip",
    )


def _hardly_moves(case: Case) -> Finding | None:
    warm_up = case.setting("update.warmup")
    first = warm_up if isinstance(warm_up, int) else 0
    critic = case.setting("advantage.critic_warmup")
    first = max(first, critic) if isinstance(critic, int) else first
    rows = [row for row in case.training if row["step"] > first and is_finite(row, "clip/log_ratio_abs_max")]
    lr = case.setting("update.lr")
    decayed = [row for row in rows if isinstance(lr, int | float) and is_finite(row, "lr") and row["lr"] < lr / 2]
    if case.updates_per_batch == 1 or len(rows) < STILL_STEPS.value or len(decayed) == len(rows):
        return None
    step, largest = max(steps_and_values(rows, "clip/log_ratio_abs_max"), key=lambda pair: pair[1])
    if largest >= STILL.value or not any((row.get("tokens/signal") or 0) > 0 for row in rows):
        return None
    given = f" ({lr:g})" if isinstance(lr, int | float) else ""
    return Finding(
        check="learning-rate-too-low",
        grade=Grade.HARMFUL,
        share=1.0,
        title="The policy hardly moves",
        evidence=(
            Evidence(
                f"the largest |log r| of any token in {counted(len(rows), 'step')} is {largest:.1g} nats",
                Place(step=step),
            ),
        ),
        cause="The learning rate is too low, or the weights cannot hold such small changes"
        + (f" (model.dtype is {case.setting('model.dtype')})" if case.setting("model.dtype") else ""),
        fix=f"raise update.lr{given}, tenfold to begin with; in bfloat16 small updates round to nothing, so try "
        "model.dtype float32",
        view="clip",
    )


CHECKS = (
    Check("gradient-norm-spike", "The gradient's norm leaps.", {"norm": SPIKE, "steps": SPIKE_STEPS}, _norm_spiked),
    Check(
        "uneven-ratios",
        "A few tokens with large ratios outweigh all others.",
        {"effective sample": UNEVEN, "steps": UNEVEN_STEPS},
        _uneven,
    ),
    Check(
        "learning-rate-too-high",
        "One update moves ratios far.",
        {"spread": SPREAD, "steps": SPREAD_STEPS, "spread in one step": SPREAD_ONCE},
        _steps_too_large,
    ),
    Check(
        "learning-rate-too-low",
        "The policy hardly moves within a batch.",
        {"largest log r": STILL, "steps": STILL_STEPS},
        _hardly_moves,
    ),
)
