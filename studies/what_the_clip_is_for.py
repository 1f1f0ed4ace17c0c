"""What the clip is for: training with it, without it, and clipped on both sides whatever the sign of the advantage.

python studies/what_the_clip_is_for.py [--seeds N] [--quick]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from common.figures import draw_seeds, legend_on_top, point_keys, power_axis
from common.measures import (
    accuracy_measures,
    largest,
    mean_over_signal,
    mean_share_of_gradient,
    rows_of,
)
from common.page import (
    CAME_OUT,
    NOT_TOLD_APART,
    REVERSED,
    Finding,
    Format,
    Page,
    Table,
    by_outcome,
    judge,
    lines,
    percent,
    points,
    significant,
    together,
    with_interval,
)
from common.results import Measures, Results
from common.statistics import CONFIDENCE, Interval, sign_test
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.view.figure_style import WIDE, new_figure, percent_axis
from dinghai.view.palette import LIGHT

CLIP, NONE, BOTH = "clip", "none", "both"
RULES = {CLIP: "ppo", NONE: "importance_sampling", BOTH: "both_sides"}
LABELS = {CLIP: "the clip", NONE: "no clip", BOTH: "both sides"}
RATES = (1e-4, 3e-4, 1e-3)
UPDATES = {4: (2, 2), 16: (4, 4)}  # updates a batch: epochs, minibatches
EPS = 0.2  # of both the clip and the comparison, below and above
SETTINGS = [(updates, rate) for updates in UPDATES for rate in RATES]


def key(rule: str, updates: int, rate: float) -> str:
    return f"{rule}-mu{updates}-lr{rate:g}"


def name(updates: int, rate: float) -> str:
    return f"{updates} updates, lr {rate:g}"


def _arm(rule: str, updates: int, rate: float) -> Arm:
    epochs, minibatches = UPDATES[updates]
    changes = {
        "objective": {"rule": RULES[rule]},
        "update": {"epochs": epochs, "minibatches": minibatches, "lr": rate},
    }
    return Arm(key(rule, updates, rate), f"{LABELS[rule]}, {name(updates, rate)}", changes)


def measure(run: Path) -> Measures:
    rows = rows_of(run)
    found = accuracy_measures(rows)
    kl = largest(rows, "kl_old_new_k3")
    return found | {
        "collapsed": float(found["accuracy_end"] < found["accuracy_start"]),
        "log10_kl_largest": math.log10(kl) if kl else None,
        "log_ratio_largest": largest(rows, "log_ratio_abs_max"),
        "relapse": mean_over_signal(rows, "clip/region/relapse_fraction"),
        "stopped": mean_over_signal(rows, "clip/stopped_fraction"),
        "gradient_removed": mean_share_of_gradient(rows, "clip/gradient_removed/total"),
    }


# --- what is said of the numbers -------------------------------------------------------------------------------------


def collapsed(results: Results, rule: str, updates: int, rate: float) -> set[int]:
    """Seeds whose run ended below its start, or failed."""
    arm = key(rule, updates, rate)
    ended_below = {seed for seed, value in results.numbers(arm, "collapsed").items() if value}
    return ended_below | {run.seed for run in results.runs if run.arm == arm and run.error is not None}


def all_collapsed(results: Results, rule: str) -> set[tuple[int, float, int]]:
    """Updates, learning rate and seed of every such run."""
    return {(*setting, seed) for setting in SETTINGS for seed in collapsed(results, rule, *setting)}


def comparison(results: Results, measure: str, other: str, expected: int, form: Format) -> tuple[str, str]:
    """The clip less another rule at every setting: what was measured, and the outcome over the settings together."""
    outcomes, measured = [], []
    for updates, rate in SETTINGS:
        difference = results.difference(key(CLIP, updates, rate), key(other, updates, rate), measure)
        outcomes.append(judge(difference, expected))
        measured.append(f"{name(updates, rate)}: {with_interval(difference, form)}")
    return lines(measured), together(outcomes)


def findings(results: Results) -> list[Finding]:
    accuracy, accuracy_outcome = comparison(results, "accuracy_end", NONE, 1, points)
    both, both_outcome = comparison(results, "accuracy_end", BOTH, 1, points)
    kl, kl_outcome = comparison(results, "log10_kl_largest", NONE, -1, significant(2, sign=True))
    farthest = math.exp(max(moved(results), default=0.0))
    bounded, total = sum(value <= -math.log(1 - EPS) for value in moved(results)), len(moved(results))
    lost, lost_without = all_collapsed(results, CLIP), all_collapsed(results, NONE)
    runs = len(SETTINGS) * len(results.seeds)
    chance = sign_test(len(lost_without - lost), len(lost - lost_without))
    if chance >= 1 - CONFIDENCE:
        saved = NOT_TOLD_APART
    elif len(lost) > len(lost_without):
        saved = REVERSED
    else:
        saved = f"{CAME_OUT} in part" if lost else CAME_OUT
    at_one = "the interval on that side of 0 at one setting or more, and on the other side at none"
    return [
        Finding(
            "the clip keeps training from collapsing",
            "fewer runs than without it end below their start or fail: sign test over the pairs that differ, "
            "p < 0.05; in full if none does with it",
            f"{len(lost)} of {runs} with the clip, {len(lost_without)} of {runs} without (p = {chance:.2g}), "
            f"{len(all_collapsed(results, BOTH))} of {runs} clipped on both sides",
            saved,
        ),
        Finding("training ends better with it than without", f"accuracy, higher: {at_one}", accuracy, accuracy_outcome),
        Finding(
            "it keeps the policy nearer to the one that sampled",
            f"log10 of the largest KL(old‖new) of an update, lower: {at_one}",
            kl,
            kl_outcome,
        ),
        Finding(
            "it bounds the ratio",
            f"no token of a run with the clip moves by more than a factor of {1 / (1 - EPS):.3g}, the farther bound",
            f"{bounded} of {total} runs stay within; one token moved by a factor of {farthest:.3g}: the clip stops "
            "gradients and moves nothing back",
            CAME_OUT if bounded == total else "false",
        ),
        Finding(
            "stopping relapse and forgotten tokens too is worse than leaving them their gradient",
            f"accuracy of the clip less that of both sides, higher: {at_one}",
            both,
            both_outcome,
        ),
    ]


def moved(results: Results) -> list[float]:
    """The largest |log r| of each run with the clip, nats."""
    arms = [key(CLIP, updates, rate) for updates, rate in SETTINGS]
    return [value for arm in arms for value in results.numbers(arm, "log_ratio_largest").values()]


def powers_of_ten(found: Interval | None) -> Interval | None:
    """From an interval of decimal logarithms: the geometric mean with its interval."""
    return found and Interval(10**found.mean, 10**found.low, 10**found.high, found.n)


def page(results: Results) -> Page:
    found = findings(results)
    return Page(
        title="What the clip is for",
        question="Does the clip keep training from collapsing, at which learning rates and how many updates a batch, "
        "and does it matter that it leaves relapse and forgotten tokens their gradient?",
        summary=f"Runs that ended below their start: {found[0].measured}. {by_outcome(found)}",
        findings=found,
        figure="Held-out accuracy at the end (each seed a point; mean and interval) and the largest KL(old‖new) of "
        "an update, by learning rate, for 4 and for 16 updates a batch. Dashed: the accuracy after the cold start.",
        tables=[_table(results)],
        literature=[
            "PPO's clip is meant to remove the incentive for moving r outside of 1-ε … 1+ε (arXiv 1707.06347, "
            "section 3); in its section 6.1 the objective without clip or penalty scores far below the clipped one, "
            "and below the initial policy on one environment.",
            "It is a heuristic: ratios are not bounded by it (arXiv 1903.07940; arXiv 2005.12729 finds that much of "
            "PPO's advantage comes from other parts of its code).",
        ],
        setting=[
            f"GRPO's group advantage; PPO's clip with ε = {EPS} on both sides, importance sampling without any clip, "
            "and a rule that stops every token outside the same band ([both_sides.py](../common/both_sides.py)).",
            f"Learning rates {', '.join(f'{rate:g}' for rate in RATES)}, constant; "
            f"{' and '.join(map(str, UPDATES))} updates a batch (epochs x minibatches 2 x 2 and 4 x 4).",
            "The norm of the gradient is clipped to 1 in all runs, as is usual: that is a brake of its own.",
        ],
        notes=[
            "The means of the largest KL are geometric.",
            "A run has collapsed if its accuracy at the end lies below that after the cold start.",
            f"{len(SETTINGS)} settings are compared in each row: of so many intervals at 95 % about one in seven such "
            "rows holds one that excludes 0 on a given side by chance.",
            "With one update a batch every ratio is 1 and the clip cannot act at all; that is a study of its own.",
            "A model of 297 thousand parameters on one task: what holds here is an existence proof, not a law.",
        ],
    )


def _table(results: Results) -> Table:
    rows = []
    for updates, rate in SETTINGS:
        for rule in RULES:
            arm = key(rule, updates, rate)
            lost = len(collapsed(results, rule, updates, rate))
            rows.append(
                [
                    f"{name(updates, rate)}: {LABELS[rule]}",
                    with_interval(results.interval(arm, "accuracy_end"), percent),
                    f"{lost} of {len(results.seeds)}",
                    with_interval(results.interval(arm, "worst_fall"), percent),
                    with_interval(powers_of_ten(results.interval(arm, "log10_kl_largest")), significant(2)),
                    "no band" if rule == NONE else with_interval(results.interval(arm, "relapse"), percent),
                    "none" if rule == NONE else with_interval(results.interval(arm, "gradient_removed"), percent),
                ]
            )
    head = ["", "accuracy at the end", "collapsed", "worst fall", "largest KL", "relapse tokens", "gradient removed"]
    return Table("Every setting", head, rows)


def figure(results: Results) -> Figure:
    found = new_figure(WIDE, 4.2)
    axes = found.subplots(2, len(UPDATES), sharex=True, sharey="row")
    for column, updates in enumerate(UPDATES):
        for row, measure_name in enumerate(("accuracy_end", "log10_kl_largest")):
            for place, rule in enumerate(RULES):
                for i, rate in enumerate(RATES):
                    values = list(results.numbers(key(rule, updates, rate), measure_name).values())
                    draw_seeds(axes[row][column], i + (place - 1) * 0.2, values, place)
        start = results.interval(key(CLIP, updates, RATES[0]), "accuracy_start")
        if start is not None:
            axes[0][column].axhline(start.mean, color=LIGHT["soft"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes[0][column].set_title(f"{updates} updates a batch")
        axes[1][column].set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
        axes[1][column].set_xlabel("learning rate")
        power_axis(axes[1][column].yaxis)
        axes[0][column].set_ylim(-0.03, 1.03)
    percent_axis(axes[0][0].yaxis)
    axes[0][0].set_ylabel("held-out accuracy")
    axes[1][0].set_ylabel("largest KL(old‖new), nats")
    legend_on_top(found, point_keys([LABELS[rule] for rule in RULES]))
    return found


STUDY = Study(
    name="what_the_clip_is_for",
    arms=[_arm(rule, updates, rate) for updates, rate in SETTINGS for rule in RULES],
    measure=measure,
    page=page,
    figure=figure,
    shared={"trace": {"enabled": False}},
    cold_start={},
    rule_files=[Path(__file__).parent / "common" / "both_sides.py"],
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
