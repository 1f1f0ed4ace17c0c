"""PPO with a critic against GRPO, at equal rollouts: what the critic costs, and what it brings.

python studies/critic.py [--seeds N]      # about 2 minutes on 2 cores
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from common.figures import draw_curve, line_keys
from common.measures import accuracy_measures, mean_over_signal, mean_share_of_gradient, rows_of, series
from common.page import CAME_OUT, NOT_TOLD_APART, Finding, Page, Table, judge, percent, points, significant
from common.page import with_interval as shown
from common.results import Measures, Results
from common.statistics import Interval, paired
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.view.figure_style import WIDE, legend_above, new_figure, percent_axis

GRPO, PPO, BATCH = "grpo", "ppo", "batch"
SKILL = 0.05  # of the variance of returns: below that a critic is no better than a constant


def measure(folder: Path) -> Measures:
    rows = rows_of(folder)
    explained = series(rows, "critic/explained_variance")
    last = [value for value in explained[len(explained) // 2 :] if value is not None]
    accuracy = accuracy_measures(rows)
    return accuracy | {
        "accuracy_mean": math.fsum(accuracy["accuracy"][1:]) / max(1, len(accuracy["accuracy"]) - 1),
        "stopped": mean_over_signal(rows, "clip/stopped_fraction"),
        "gradient_removed": mean_share_of_gradient(rows, "clip/gradient_removed/total"),
        "signal": _mean([row["tokens/signal"] / row["tokens/loss"] for row in rows if row.get("tokens/loss")]),
        "seconds_update": _mean([row["seconds/update"] for row in rows if "seconds/update" in row]),
        "seconds_step": _mean([row["seconds/step"] for row in rows if "seconds/step" in row]),
        "explained": explained,
        "explained_late": _mean(last),
    }


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# --- what is said of it ----------------------------------------------------------------------------------------------


def findings(results: Results) -> list[Finding]:
    end, over = (results.difference(PPO, GRPO, what) for what in ("accuracy_end", "accuracy_mean"))
    explained = results.interval(PPO, "explained_late")
    return [
        Finding(
            "a critic makes training better at equal rollouts",
            "accuracy at the end, PPO with a critic less GRPO: the interval above 0",
            f"{shown(end, points)}; mean over all evaluations {shown(over, points)}",
            judge(end, 1),
        ),
        Finding(
            "the critic learns to tell good states from bad ones",
            f"explained variance of the returns over the second half of the steps: the interval above {SKILL:g}",
            shown(explained, significant(2)),
            skill(explained),
        ),
        Finding(
            "a critic costs time",
            "how many times as long an update phase takes (geometric mean, paired): the interval above 1",
            f"{shown(results.interval(PPO, 'seconds_update'), significant(2))} seconds against "
            f"{shown(results.interval(GRPO, 'seconds_update'), significant(2))}: {longer(results)}",
            judge(log_times(results), 1),
        ),
    ]


def log_times(results: Results) -> Interval | None:
    """Of the seconds of an update phase, PPO with a critic over GRPO, paired over the seeds: the logarithm."""
    one, other = (
        {seed: math.log(seconds) for seed, seconds in results.numbers(arm, "seconds_update").items()}
        for arm in (PPO, GRPO)
    )
    return paired(one, other) if one.keys() & other.keys() else None


def longer(results: Results) -> str:
    """How many times as long an update phase takes with a critic."""
    log = log_times(results)
    if log is None:
        return "–"
    return f"{shown(Interval(math.exp(log.mean), math.exp(log.low), math.exp(log.high), log.n), significant(3))} times"


def skill(explained: Interval | None) -> str:
    """The outcome of "the critic explains more than a constant does"."""
    if explained is None or explained.n < 2:
        return NOT_TOLD_APART
    return CAME_OUT if explained.low > SKILL else "did not come out: it is no better than a constant"


def page(results: Results) -> Page:
    found = findings(results)
    batch = results.difference(PPO, BATCH, "accuracy_end")
    end = results.difference(PPO, GRPO, "accuracy_end")
    return Page(
        title="PPO with a critic against GRPO",
        question="GRPO replaces PPO's critic by the mean reward of a group. At equal rollouts, which learns faster, "
        "and at what cost?",
        summary=f"That a critic makes training better {found[0].outcome}: {shown(end, points)} of accuracy at the end. "
        f"That it learns to tell states apart {found[1].outcome} (explained variance {found[1].measured}). That it "
        f"costs time {found[2].outcome}: an update phase takes {longer(results)} as long.",
        findings=found,
        figure="Held-out accuracy over the steps, and how much of the variance of returns the critic explains; mean "
        "and interval over the seeds.",
        tables=[_table(results)],
        literature=[
            "GRPO drops the critic because it is as large as the policy and hard to train where only the last token is "
            "rewarded (arXiv 2402.03300, section 4.1.1).",
            "VC-PPO and VAPO find that with pretraining of the critic and decoupled GAE, PPO with a critic beats "
            "critic-free training on long chains of thought (arXiv 2503.01491, arXiv 2504.05118).",
        ],
        setting=[
            "The same clip (ε 0.2, 0.2), reduction, prompts, completions and updates for all. PPO: GAE with γ 1, λ "
            "0.95, whitened advantages, a critic that starts as a copy of the policy, learning rate 2e-3, no warm-up "
            "without the policy.",
            "The third kind of run divides by the standard deviation of the batch in place of the group's, which is "
            "nearer to whitening: it tells the baseline from the scale.",
        ],
        notes=[
            "A critic whose explained variance is about 0 gives GAE a constant baseline; what is left is REINFORCE "
            "with whitened rewards, discounted by λ per token. Then the comparison is one of baselines: of the batch, "
            "against of each prompt's group.",
            f"PPO with a critic less the group's mean with the batch's scale: {shown(batch, points)}.",
            "With a critic every completion has a signal; with groups those whose rewards agree have none, and are not "
            "even scored, which is part of the difference in time.",
            "The critic was neither tuned nor pretrained. This says what PPO's critic does as it comes, in few steps, "
            "on one small task, where every prompt is new.",
        ],
    )


def _table(results: Results) -> Table:
    kinds = {
        "accuracy at the start": ("accuracy_start", percent),
        "accuracy, mean over the evaluations": ("accuracy_mean", percent),
        "accuracy at the end": ("accuracy_end", percent),
        "tokens with a signal": ("signal", percent),
        "tokens stopped, of these": ("stopped", percent),
        "gradient removed": ("gradient_removed", percent),
        "explained variance, second half": ("explained_late", significant(2)),
        "seconds of an update phase": ("seconds_update", significant(2)),
        "seconds of a step": ("seconds_step", significant(2)),
    }
    rows = [
        [label, *(shown(results.interval(arm, what), form) for arm in results.arms)]
        for label, (what, form) in kinds.items()
    ]
    return Table("All kinds of run", ["", *results.arms.values()], rows)


def figure(results: Results) -> Figure:
    drawing = new_figure(WIDE, 2.4)
    accuracy, explained = drawing.subplots(1, 2)
    for place, arm in enumerate(results.arms):
        steps = next(iter(results.series(arm, "evaluation_steps").values()), [0.0])
        draw_curve(accuracy, steps, results.series(arm, "accuracy"), place)
        accuracy.set_xticks(steps)
    found = results.series(PPO, "explained")
    longest = max(map(len, found.values()), default=0)
    draw_curve(explained, range(1, longest + 1), found, list(results.arms).index(PPO))
    explained.axhline(0, color="0.6", linewidth=0.6)
    percent_axis(accuracy.yaxis)
    accuracy.set_ylim(0, 1.03)
    accuracy.set_ylabel("held-out accuracy")
    explained.set_ylabel("explained variance of returns")
    explained.set_ylim(-0.5, 1)
    explained.set_xticks(accuracy.get_xticks())
    for axes in (accuracy, explained):
        axes.set_xlabel("step")
        axes.grid(axis="y")
    legend_above(accuracy, line_keys(results, list(results.arms)), columns=1)
    return drawing


STUDY = Study(
    name="critic",
    arms=[
        Arm(GRPO, "GRPO's advantage", {"advantage": {"kind": "group"}}),
        Arm(BATCH, "group mean, batch scale", {"advantage": {"kind": "group", "scale": "batch"}}),
        Arm(PPO, "PPO with a critic", {"advantage": {"kind": "gae", "critic_lr": 2e-3, "critic_warmup": 0}}),
    ],
    measure=measure,
    page=page,
    figure=figure,
    shared={"trace": {"enabled": False}},
    cold_start={},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
