"""How many more tokens GSPO stops than GRPO, each at its own bounds, and what that does to training.

python studies/gspo_fraction.py [--seeds N]      # about a minute on 2 cores
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.figures import draw_curve, draw_seeds, line_keys, point_keys
from common.measures import accuracy_measures, by_update, mean_over_signal, mean_share_of_gradient, rows_of
from common.page import CAME_OUT, NOT_TOLD_APART, Finding, Page, Table, judge, percent, points, significant
from common.page import with_interval as shown
from common.results import Measures, Results
from common.statistics import Interval, paired
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.view.figure_style import WIDE, legend_above, new_figure, percent_axis

GRPO, GSPO = "grpo", "gspo"
UPDATES = 4
REPORTED = 100.0  # times as many tokens: arXiv 2507.18071, section 5.2, "two orders of magnitude"
NEAR = math.sqrt(10)  # a factor of √10 on each side of it still rounds to that order


def measure(folder: Path) -> Measures:
    rows = rows_of(folder)
    stopped = mean_over_signal(rows, "clip/stopped_fraction")
    found = accuracy_measures(rows) | {
        "stopped": stopped,
        "log_stopped": math.log(stopped) if stopped else None,
        "gradient_removed": mean_share_of_gradient(rows, "clip/gradient_removed/total"),
        "kl": _mean(by_update(rows, "kl_old_new_k3")),
        "length": _mean(row["completion/length_mean"] for row in rows if "completion/length_mean" in row),
    }
    return found | {f"stopped/{update}": _of_update(rows, update) for update in range(UPDATES)}


def _of_update(rows: list[dict[str, Any]], update: int) -> float | None:
    """Stopped tokens of one update index over the whole run, as a fraction of those with a signal."""
    pairs = [
        (one["stopped_fraction"], one["signal_tokens"])
        for row in rows
        for one in row.get("by_update", ())
        if one["update"] == update and "stopped_fraction" in one
    ]
    tokens = sum(signal for _, signal in pairs)
    return sum(fraction * signal for fraction, signal in pairs) / tokens if tokens else None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


# --- what is said of it ----------------------------------------------------------------------------------------------


def times(results: Results) -> Interval | None:
    """How many times as many tokens GSPO stops: geometric mean over the seeds, paired."""
    one, other = results.numbers(GSPO, "log_stopped"), results.numbers(GRPO, "log_stopped")
    if not one.keys() & other.keys():
        return None
    found = paired(one, other)
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)


def how_many(found: Interval | None) -> str:
    """The outcome of the claim about a hundred times."""
    if found is None or not found.low > 1:
        return NOT_TOLD_APART
    if found.low >= REPORTED / NEAR and found.high <= REPORTED * NEAR:
        return CAME_OUT
    return "came out in direction, not in size"


def findings(results: Results) -> list[Finding]:
    factor, apart = times(results), results.difference(GSPO, GRPO, "accuracy_end")
    return [
        Finding(
            "GSPO stops two orders of magnitude more tokens than GRPO, each at its own bounds",
            f"the interval of the factor (geometric mean, paired) lies within {REPORTED / NEAR:.0f} to "
            f"{REPORTED * NEAR:.0f}; in direction only, if not, but above 1",
            f"{shown(results.interval(GSPO, 'stopped'), percent)} against "
            f"{shown(results.interval(GRPO, 'stopped'), percent)}: {shown(factor, significant(3))} times",
            how_many(factor),
        ),
        Finding(
            "and trains better all the same",
            "accuracy at the end, GSPO less GRPO: the interval above 0",
            shown(apart, points),
            judge(apart, 1),
        ),
    ]


def page(results: Results) -> Page:
    found = findings(results)
    factor = times(results)
    ratio = "–" if factor is None else f"{factor.mean:.3g}"
    return Page(
        title="GSPO's clip fraction against GRPO's",
        question="GSPO's bounds are hundreds of times narrower and act on the mean ratio of a whole completion. How "
        "many more tokens does it stop, and is training the worse for it?",
        summary=f"GSPO stops {ratio} times as many tokens as GRPO ({_of(GSPO, results)} against {_of(GRPO, results)}); "
        f"the two orders of magnitude of its paper {found[0].outcome}. That it trains better all the same "
        f"{found[1].outcome}: {found[1].measured}. A clip fraction says nothing without its rule and its ratio.",
        findings=found,
        figure="Tokens stopped, of those with a signal, by update index (each seed a point, mean and interval), and "
        "the held-out accuracy over the steps (mean and interval).",
        tables=[_table(results)],
        literature=[
            "GSPO reports “a difference of two orders of magnitude in the fractions of clipped tokens” between GSPO "
            "and GRPO, and higher training efficiency in spite of it, for Qwen3-30B-A3B (arXiv 2507.18071, "
            "section 5.2; bounds 3e-4 and 4e-4 against 0.2 and 0.27, four minibatches a batch, section 5.1).",
        ],
        setting=[
            "The paper's bounds for both, one epoch of four minibatches, GRPO's advantage, the reduction "
            "`seq-mean-token-mean` that both papers have.",
            "Fractions are of the tokens with a signal (A ≠ 0). GSPO stops a completion as a whole: all its tokens "
            "count.",
        ],
        notes=[
            f"The factor is a matter of scale. Completions here have {_length(results)} tokens, the paper's have "
            "thousands: the mean log-ratio of a completion shrinks as it gets longer, while a single token's does not. "
            "Ratios spread with the learning rate as well, and both fractions with them, not in proportion.",
            "GSPO's bounds were tuned for long completions of a large model. At the last update of a batch they stop "
            f"{_of(GSPO, results, f'stopped/{UPDATES - 1}')} of the tokens here, so what is learned comes mostly from "
            "the first ones.",
        ],
    )


def _of(arm: str, results: Results, measure: str = "stopped") -> str:
    """The mean of a fraction as text."""
    found = results.interval(arm, measure)
    return "–" if found is None else percent(found.mean)


def _length(results: Results) -> str:
    found = results.interval(GRPO, "length")
    return "some" if found is None else f"{found.mean:.0f}"


def _table(results: Results) -> Table:
    rows = [
        ["tokens stopped", *(shown(results.interval(arm, "stopped"), percent) for arm in results.arms)],
        *(
            [
                f"tokens stopped, update {update}",
                *(shown(results.interval(arm, f"stopped/{update}"), percent) for arm in results.arms),
            ]
            for update in range(UPDATES)
        ),
        ["gradient removed", *(shown(results.interval(arm, "gradient_removed"), percent) for arm in results.arms)],
        ["KL(old‖new), nats", *(shown(results.interval(arm, "kl"), significant(2)) for arm in results.arms)],
        ["accuracy at the start", *(shown(results.interval(arm, "accuracy_start"), percent) for arm in results.arms)],
        ["accuracy at the end", *(shown(results.interval(arm, "accuracy_end"), percent) for arm in results.arms)],
    ]
    return Table("Both rules", ["", *results.arms.values()], rows)


def figure(results: Results) -> Figure:
    drawing = new_figure(WIDE, 2.4)
    stopped, accuracy = drawing.subplots(1, 2)
    for place, arm in enumerate(results.arms):
        for update in range(1, UPDATES):
            values = [value for value in results.numbers(arm, f"stopped/{update}").values() if value > 0]
            draw_seeds(stopped, update + 0.15 * (place - 0.5), values, place)
        steps = next(iter(results.series(arm, "evaluation_steps").values()), [0.0])
        draw_curve(accuracy, steps, results.series(arm, "accuracy"), place)
        accuracy.set_xticks(steps)
    stopped.set_yscale("log")
    stopped.set_ylim(top=1)
    percent_axis(stopped.yaxis)
    stopped.set_xticks(range(1, UPDATES))
    stopped.set_xlabel("update index within a batch (0 stops nothing)")
    stopped.set_ylabel("tokens stopped")
    percent_axis(accuracy.yaxis)
    accuracy.set_ylim(0, 1.03)
    accuracy.set_xlabel("step")
    accuracy.set_ylabel("held-out accuracy")
    for axes in (stopped, accuracy):
        axes.grid(axis="y")
    legend_above(stopped, point_keys(list(results.arms.values())))
    legend_above(accuracy, line_keys(results, list(results.arms)))
    return drawing


STUDY = Study(
    name="gspo_fraction",
    arms=[
        Arm(GRPO, "GRPO", {"objective": {"rule": "grpo", "eps_low": 0.2, "eps_high": 0.27}}),
        Arm(GSPO, "GSPO", {"objective": {"rule": "gspo", "eps_low": 3e-4, "eps_high": 4e-4}}),
    ],
    measure=measure,
    page=page,
    figure=figure,
    shared={
        "objective": {"reduction": "seq-mean-token-mean"},
        "update": {"epochs": 1, "minibatches": UPDATES},
        "trace": {"enabled": False},
    },
    cold_start={},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
