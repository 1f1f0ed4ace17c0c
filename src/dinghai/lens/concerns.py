"""What looks wrong in a run's record: each with the step, the figure and what to try.

These are the coarse signs that nobody should miss at the top of a report. Each threshold stands in `THRESHOLDS` with
its reason.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dinghai.lens.noise import Noise
from dinghai.lens.regions import REGION_MEANING
from dinghai.lens.series import (
    Row,
    first_tenth,
    is_finite,
    last_tenth,
    mean_share,
    share_of_signal,
    steps_and_values,
    weighted_mean,
)
from dinghai.lens.settings import table
from dinghai.lens.words import counted, percent


@dataclass(frozen=True)
class Threshold:
    """Where a value begins to be worth a sentence, and why there."""

    value: float
    why: str


THRESHOLDS = {
    "accuracy_sigmas": Threshold(2.0, "two standard errors of the difference of two accuracies: 1 in 20 by chance"),
    "accuracy_fell_sigmas": Threshold(3.0, "three, since the best of many evaluations is partly luck"),
    "reward_sigmas": Threshold(2.0, "two standard errors of the difference of two means over steps"),
    "no_signal": Threshold(0.5, "more than half of the sampling is paid for and teaches nothing"),
    "solved": Threshold(0.95, "accuracy from which groups agree and entropy falls because the task is done"),
    "cut": Threshold(0.1, "one completion in ten is scored without its end; well set runs have a few in a hundred"),
    "removed": Threshold(0.5, "the rule is meant to trim the gradient; here it takes the larger part"),
    "stopped": Threshold(0.3, "twice what GSPO reports of its own bounds, which stop more than any other rule's"),
    "relapse": Threshold(
        0.05, "updates should make bad tokens rarer; on the built-in task under 1 in 100 go the other way"
    ),
    "kl_step": Threshold(0.1, "nats within one batch; PPO implementations leave a batch at 0.015 to 0.05"),
    "ess": Threshold(0.5, "half of the tokens with a signal count for nothing beside a few with large ratios"),
    "kl_reference": Threshold(
        1.0, "nats a token: each token is about e times likelier than before; usual is 0.01 to 0.3"
    ),
    "entropy": Threshold(0.1, "a tenth of the entropy it began with: few completions of a prompt still differ"),
    "norm_spike": Threshold(10.0, "times the median norm: a gradient of another kind than the others"),
}


@dataclass(frozen=True)
class Record:
    """What the concerns are looked for in."""

    config: dict[str, Any]
    training: Sequence[Row]  # rows of the metrics, without step 0
    evaluations: list[tuple[int, float]]  # step, held-out accuracy
    held_out_problems: int | None
    noise: Noise | None
    nearest_bound: float | None  # |log r| of the rule's bound that lies nearest to r = 1
    steps_planned: int | None
    resume: str | None  # the run's name for `dinghai resume`, where it ended before its planned steps

    def table(self, name: str) -> dict[str, Any]:
        """A table of the settings; empty where it is missing or damaged."""
        return table(self.config, name)

    @property
    def solved(self) -> bool:
        """Whether the task is as good as done, so that little is left to learn."""
        return bool(self.evaluations) and self.evaluations[-1][1] >= THRESHOLDS["solved"].value


def concerns(record: Record) -> list[str]:
    """A sentence for each thing that looks wrong, the gravest first."""
    found = [look(record) for look in _LOOKS] if record.training else []
    return [sentence for sentence in found if sentence]


def accuracy_noise(first: float, last: float, problems: int) -> float:
    """Standard error of the difference of two accuracies, as if each had been measured on problems of its own.

    They are measured on the same ones, where it is smaller: so what is called a change is one.
    """
    return math.sqrt((_variance(first) + _variance(last)) / problems)


def _variance(share: float) -> float:
    return max(share * (1 - share), 0.0)


# --- what is looked for ----------------------------------------------------------------------------------------------


def _not_finite(record: Record) -> str:
    for row in record.training:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"At step {row['step']} {key} is {value}: look there first, since what follows rests on it."
        if is_finite(row, "clip/nonfinite_tokens") and row["clip/nonfinite_tokens"] > 0:
            tokens = counted(int(row["clip/nonfinite_tokens"]), "token")
            return (
                f"At step {row['step']} {tokens} had a log-prob, an advantage or a weight that is not finite: look "
                "there first."
            )
    return ""


def _ended_early(record: Record) -> str:
    if record.resume is None:
        return ""
    planned = f" of {record.steps_planned:,} planned ones" if record.steps_planned else ""
    done = record.training[-1]["step"]
    return f"The run ended after step {done:,}{planned}: `dinghai resume {record.resume}` continues it."


def _held_out_fell(record: Record) -> str:
    """From its best, beyond noise."""
    if len(record.evaluations) < 2 or not record.held_out_problems:
        return ""
    step, best = max(record.evaluations, key=lambda pair: pair[1])
    last_step, last = record.evaluations[-1]
    noise = accuracy_noise(best, last, record.held_out_problems)
    if best - last <= THRESHOLDS["accuracy_fell_sigmas"].value * noise:
        return ""
    before = weighted_mean(
        last_tenth([row for row in record.training if row["step"] <= max(step, 1)]), "reward/mean", None
    )
    after = weighted_mean(last_tenth(record.training), "reward/mean", None)
    fell = (
        f"Held-out accuracy fell from its best, {percent(best)} at step {step}, to {percent(last)} at step {last_step}"
    )
    if before is not None and after is not None and after > before:
        return (
            f"{fell} while the reward rose from {before:.3g} to {after:.3g}: what pays in training does not carry "
            "over; more varied prompts, or a KL to the reference, may help."
        )
    return f"{fell}: a lower update.lr or fewer updates a batch may hold it."


def _entropy_collapsed(record: Record) -> str:
    if record.solved:
        return ""
    series = steps_and_values(record.training, "entropy")
    if not series or len(series) < 2 * len(first_tenth(series)):
        return ""  # too short to tell a beginning from an end
    begin = statistics.fmean(value for _, value in first_tenth(series))
    end = statistics.fmean(value for _, value in last_tenth(series))
    floor = THRESHOLDS["entropy"].value * begin
    if begin <= 0 or end >= floor:
        return ""
    since = _since(series, lambda value: value < floor)
    return (
        f"Entropy fell from {begin:.2g} to {end:.2g} nats a token, below a tenth of its start from step {since} on: "
        "the policy hardly explores any more; an objective.entropy_bonus, a wider upper bound or a lower update.lr may "
        "help."
    )


def _since(series: Sequence[tuple[int, float]], holds: Callable[[float], bool]) -> int:
    """The first step from which on it holds to the end; the last one where it does not hold there."""
    since = series[-1][0]
    for step, value in reversed(series):
        if not holds(value):
            break
        since = step
    return since


def _far_from_reference(record: Record) -> str:
    limit = THRESHOLDS["kl_reference"].value
    for key in ("kl_ref_k3", "kl_ref_k1", "kl_ref_k2", "kl_ref_k3+", "kl_ref_k1+"):
        series = steps_and_values(record.training, key)
        if series and statistics.median(value for _, value in last_tenth(series)) > limit:
            since = next(step for step, value in series if value > limit)
            step, worst = max(series, key=lambda pair: pair[1])
            return (
                f"KL to the reference passed {limit:g} nat a token at step {since} and reached {worst:.3g} at step "
                f"{step}: the policy has run away from where it began; try a higher objective.kl.beta or a lower "
                "update.lr."
            )
    return ""


def _moved_too_far(record: Record) -> str:
    """Within a batch: by the KL, else by ratios so uneven that few tokens count."""
    limit = THRESHOLDS["kl_step"].value
    series = steps_and_values(record.training, "clip/kl_old_new_k3")
    far = [pair for pair in series if pair[1] > limit]
    mend = "try a lower update.lr, fewer updates a batch, or update.target_kl"
    if far:
        step, worst = max(far, key=lambda pair: pair[1])
        return (
            f"Within the batch of step {step} the policy moved {worst:.2g} nats a token away from the one that sampled "
            f"(more than {limit:g} in {len(far):,} of {counted(len(series), 'step')}): {mend}."
        )
    series = steps_and_values(record.training, "clip/ess_fraction")
    step, least = min(series, key=lambda pair: pair[1], default=(0, 1.0))
    if least < THRESHOLDS["ess"].value:
        return (
            f"At step {step} ratios were so uneven that the tokens with a signal counted like {percent(least)} of "
            f"them: {mend}."
        )
    return ""


def _relapse(record: Record) -> str:
    """Of tokens only: the ratios of sequences leave their narrow bounds on either side as a matter of course."""
    if str(record.table("objective").get("ratio")).startswith("sequence"):
        return ""
    share = share_of_signal(record.training, "clip/region/relapse_fraction")
    if share is None or share <= THRESHOLDS["relapse"].value:
        return ""
    step, _ = max(steps_and_values(record.training, "clip/region/relapse_fraction"), key=lambda pair: pair[1])
    parameters = table(record.table("objective"), "parameters")
    dual = ", or a dual_clip" if "dual_clip" in parameters and parameters["dual_clip"] is None else ""
    return (
        f"{percent(share)} of the tokens with a signal lay in relapse ({REGION_MEANING['relapse']}), most of them at "
        f"step {step}: the updates overshoot; try a lower update.lr{dual}."
    )


def _took_too_much(record: Record) -> str:
    removed = mean_share(record.training, "clip/gradient_removed/total")
    stopped = weighted_mean(record.training, "clip/stopped_fraction")
    dropped = mean_share(record.training, "clip/gradient_removed/dropped") or 0.0
    if removed is not None and removed > THRESHOLDS["removed"].value:
        what = f"More than half of the gradient was taken away ({percent(removed)})"
    elif stopped is not None and stopped > THRESHOLDS["stopped"].value:
        what = f"{percent(stopped)} of the tokens with a signal were stopped"
    else:
        return ""
    if removed is not None and dropped > removed / 2:
        return (
            f"{what}, most of it by the rollout correction: the engine and the trainer disagree about many tokens; "
            "look at correction/ in metrics.jsonl before anything else."
        )
    return (
        f"{what}: much of each batch is computed for nothing; try fewer updates a batch, a lower update.lr or wider "
        "bounds."
    )


def _bound_in_noise(record: Record) -> str:
    if record.noise is None or record.nearest_bound is None or record.nearest_bound > record.noise.q95:
        return ""
    return (
        f"The nearest bound of the rule, {record.nearest_bound:.2g} from r = 1 in log r, lies within the noise: with "
        f"the same weights the engine and the trainer differ by up to {record.noise.q95:.2g} on 95% of the "
        f"{record.noise.of}, so what passes the bound is partly chance; try a wider one, or float32 "
        "in model.dtype and rollout.dtype."
    )


def _norm_spiked(record: Record) -> str:
    """Only where the gradient's norm was clipped too: a small one is harmless, however rare."""
    norms = [
        (row["step"], max(values))
        for row in record.training
        if (values := [entry["grad_norm"] for entry in row.get("by_update") or [] if is_finite(entry, "grad_norm")])
    ] or steps_and_values(record.training, "grad_norm_mean")
    usual = [norm for _, norm in norms if norm > 0]
    if len(usual) < 5:
        return ""
    median = statistics.median(usual)
    highest = record.table("update").get("max_grad_norm")
    limit = max(THRESHOLDS["norm_spike"].value * median, highest if isinstance(highest, int | float) else 0.0)
    spikes = [pair for pair in norms if pair[1] > limit]
    if not spikes:
        return ""
    step, worst = max(spikes, key=lambda pair: pair[1])
    steps = f"in {counted(len(spikes), 'step')}" if len(spikes) > 1 else "once"
    return (
        f"The gradient's norm leapt {steps}, to {worst:.3g} at step {step} (median {median:.2g}): look at that step's "
        "completions; a lower update.max_grad_norm bounds what one step can do."
    )


def _cut_completions(record: Record) -> str:
    share, end = _whole_or_end(record, "completion/truncated_fraction")
    if share <= THRESHOLDS["cut"].value:
        return ""
    when = f" in the {end}" if end else ""
    longest = record.table("rollout").get("max_new_tokens")
    limit = f"rollout.max_new_tokens ({longest})" if isinstance(longest, int) else "rollout.max_new_tokens"
    return (
        f"{percent(share)} of the completions{when} were cut at {limit} and scored without their end; try a higher one."
    )


def _no_signal(record: Record) -> str:
    share, end = _whole_or_end(record, "groups/no_signal_fraction")
    if share < THRESHOLDS["no_signal"].value:
        return ""
    when = f" of the {end}" if end else ""
    why = "every advantage was 0, as when all completions score alike"
    none = f"{percent(share)} of the groups{when} had no signal ({why})"
    if record.solved:
        return f"{none}: the task is as good as solved, so further steps teach little; harder prompts would."
    mend = "" if record.table("rollout").get("dynamic_sampling") else ", or rollout.dynamic_sampling"
    return f"{none}: the prompts are too easy or too hard for most samples to teach anything; try others{mend}."


def _whole_or_end(record: Record, key: str) -> tuple[float, str]:
    """The mean over the whole run, or over its last steps where it is higher; and what these are called."""
    end = last_tenth(record.training)
    whole, late = (weighted_mean(rows, key, weight=None) or 0.0 for rows in (record.training, end))
    return (whole, "") if whole >= late else (late, f"last {counted(len(end), 'step')}")


_LOOKS: list[Callable[[Record], str]] = [
    _not_finite,
    _ended_early,
    _held_out_fell,
    _far_from_reference,
    _moved_too_far,
    _relapse,
    _entropy_collapsed,
    _norm_spiked,
    _took_too_much,
    _bound_in_noise,
    _no_signal,
    _cut_completions,
]
