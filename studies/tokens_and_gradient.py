"""The fraction of tokens that the clip stops is not the share of the gradient that it removes.

python studies/tokens_and_gradient.py [--seeds N]      # about a minute on 2 cores
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common.figures import draw_seeds, point_keys
from common.measures import accuracy_measures, rows_of
from common.page import CAME_OUT, NOT_TOLD_APART, Finding, Page, Table, percent, significant, with_interval
from common.results import Measures, Results
from common.statistics import Interval, paired
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.lens.regions import REGIONS
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader
from dinghai.view.figure_style import WIDE, new_figure, percent_axis

PPO, DAPO = "ppo", "dapo"
UPDATES = 4
STOPPING = ("overshoot", "escaped")  # the regions in which the clip stops
FACTOR = 2.0  # by which the two have to differ for the claim to be false
COLUMNS = ("region", "weight_unclipped", "gradient", "removed", "signal", "stopped", "logp_new")


# --- what is measured ------------------------------------------------------------------------------------------------


def measure(folder: Path) -> Measures:
    """Sums over all steps of the trace, by update and by region, and what becomes of them."""
    sums = _Sums()
    reader = TraceReader(folder / "trace")
    for step in reader.steps():
        for update in reader.updates(step):
            tokens = read_tokens(reader, step, update, COLUMNS)
            signal_N = tokens.signal
            weight_N = np.abs(tokens.weight_unclipped).astype(np.float64)
            gradient_N, removed_N = tokens.gradient.astype(np.float64), tokens.removed.astype(np.float64)
            probability_N = np.exp(tokens.logp_new)
            groups = {"signal": signal_N, "stopped": tokens.stopped}
            groups |= {region: tokens.stopped & (tokens.region == REGIONS.index(region)) for region in STOPPING}
            for name, which_N in groups.items():
                for place in (name, f"{name}/{update}"):
                    sums.add(place, which_N, weight_N, gradient_N, removed_N, probability_N)
    return accuracy_measures(rows_of(folder)) | sums.measures()


class _Sums:
    """Of groups of tokens: how many, Σ|w0|, Σ|w0|·(1-p), what was removed of it, and each token's p."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._probability: dict[str, list[np.ndarray]] = {}

    def add(
        self,
        name: str,
        which_N: np.ndarray,
        weight_N: np.ndarray,
        gradient_N: np.ndarray,
        removed_N: np.ndarray,
        probability_N: np.ndarray,
    ) -> None:
        found = np.array([which_N.sum(), *(column[which_N].sum() for column in (weight_N, gradient_N, removed_N))])
        self._sums[name] = self._sums.get(name, np.zeros(4)) + found
        self._probability.setdefault(name, []).append(probability_N[which_N])

    def measures(self) -> Measures:
        """By group and update: `fraction` of the tokens with a signal, `share` of their gradient that was removed, and
        what their ratio is made of: mean |w0| and the mean of 1-p weighted by |w0|, each relative to all tokens."""
        found: Measures = {}
        for name, (tokens, weight, gradient, removed) in self._sums.items():
            group, _, update = name.partition("/")
            all_tokens, all_weight, all_gradient, _ = self._sums[f"signal/{update}" if update else "signal"]
            found[f"fraction/{name}"] = _divided(tokens, all_tokens)
            found[f"share/{name}"] = _divided(removed, all_gradient)
            if group == "signal" or update:
                continue
            found[f"log_share_to_fraction/{name}"] = _log(_divided(removed / max(tokens, 1), all_gradient / all_tokens))
            found[f"log_weight/{name}"] = _log(_divided(weight / max(tokens, 1), all_weight / all_tokens))
            surprise = _divided(gradient / max(weight, 1e-300), all_gradient / all_weight)
            found[f"log_surprise/{name}"] = _log(surprise)
        for name in ("signal", "stopped", *STOPPING):
            values = np.concatenate(self._probability[name])
            found[f"probability_median/{name}"] = float(np.median(values)) if len(values) else None
        return found


def _divided(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _log(value: float | None) -> float | None:
    return math.log(value) if value else None


# --- what is said of it ----------------------------------------------------------------------------------------------


def findings(results: Results) -> list[Finding]:
    found = []
    for rule, label in results.arms.items():
        times = times_over(results.interval(rule, "log_share_to_fraction/stopped"))
        outcome = NOT_TOLD_APART
        if times is not None and times.n > 1:
            differs = times.low > FACTOR or times.high < 1 / FACTOR
            outcome = "false" if differs else "not refuted at this scale"
        measured = (
            f"{with_interval(results.interval(rule, 'fraction/stopped'), percent)} of the tokens, "
            f"{with_interval(results.interval(rule, 'share/stopped'), percent)} of the gradient: "
            f"{with_interval(times, significant(3))} times"
        )
        found.append(
            Finding(
                f"{label}: the fraction of clipped tokens is the share of gradient that was clipped",
                f"false if the interval of share / fraction (geometric mean) lies wholly above {FACTOR:g} "
                f"or below {1 / FACTOR:g}",
                measured,
                outcome,
            )
        )
        surprise, weight = (f"log_{factor}/stopped" for factor in ("surprise", "weight"))
        apart = differences(results.numbers(rule, surprise), results.numbers(rule, weight))
        logs = [results.interval(rule, what) for what in (surprise, weight)]
        factors = [with_interval(times_over(log), significant(3)) for log in logs]
        medians = [
            with_interval(results.interval(rule, f"probability_median/{group}"), significant(digits))
            for group, digits in (("stopped", 2), ("signal", 4))
        ]
        found.append(
            Finding(
                f"{label}: what makes the two differ is that stopped tokens are unlikely, not that their r·A is large",
                "the factor from 1-p is larger than the factor from |r·A|: interval of the difference of their "
                "logarithms above 0",
                f"1-p makes it {factors[0]} times, |r·A| {factors[1]} times; median π_new of stopped tokens "
                f"{medians[0]}, of all {medians[1]}",
                CAME_OUT if apart is not None and apart.above_zero else NOT_TOLD_APART,
            )
        )
    return found


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """The interval of one - other over the seeds that both have; None where there are none."""
    return paired(one, other) if one.keys() & other.keys() else None


def times_over(log_interval: Interval | None) -> Interval | None:
    """From an interval of logarithms to one of factors, about the geometric mean."""
    if log_interval is None:
        return None
    return Interval(
        math.exp(log_interval.mean), math.exp(log_interval.low), math.exp(log_interval.high), log_interval.n
    )


def page(results: Results) -> Page:
    found = findings(results)
    told = [
        f"{label} stops {_mean(results, rule, 'fraction/stopped')} of the tokens, and with them "
        f"{_mean(results, rule, 'share/stopped')} of the gradient"
        for rule, label in results.arms.items()
    ]
    outcomes = {f.outcome for f in found[::2]}
    verdict = "False" if outcomes == {"false"} else "; ".join(sorted(outcomes))
    return Page(
        title="The token fraction is not the share of the gradient",
        question="A clip fraction of 2 % is read as “the clip hardly does anything”. Is the share of the gradient "
        "that it removes as small?",
        summary=f"{verdict}. {'; '.join(told)}. Stopped tokens are mostly unlikely ones, whose gradient is large, "
        "while most tokens of a completion are nearly certain and have hardly any.",
        findings=found,
        figure="Tokens stopped (of those with a signal) and gradient removed by them, by update index within a batch "
        "and by region; each seed a point, mean and interval. At update 0 every ratio is 1.",
        tables=[_by_update(results), _by_region(results)],
        literature=[
            "Published clip fractions of language models are fractions of tokens, and small for a clip of token "
            "ratios: 1.22 % for GRPO even at a staleness of 256 updates (arXiv 2510.01161). They are read as how much "
            "the clip does.",
            "That the clipped tokens are unlikely ones that carry much of what is to be learned is why CISPO keeps "
            "their gradient (arXiv 2506.13585, section 3.1), and DAPO widens the upper bound (arXiv 2503.14476, "
            "section 3.1).",
        ],
        setting=[
            "PPO's clip (ε 0.2, 0.2) and DAPO's (ε 0.2, 0.28), GRPO's advantage, 2 epochs x 2 minibatches.",
            "Gradient of a token: |w0|·(1-p), w0 = r·A, p = π_new(token): within a factor √2 its norm at the logits. "
            "Removed: that of the tokens whose weight is 0.",
            "Sums over all tokens of the trace, all steps of a run together; of 1-p the mean weighted by |w0|, so that "
            "the two factors multiply to share / fraction exactly.",
        ],
        notes=[
            "Sizes of gradients of single tokens are added up here. In the sum over a batch they cancel in part, so "
            "this is no statement about the norm of the batch's gradient.",
            "The task's completions are short and mostly certain after the cold start (the median token has a "
            "probability near 1), which makes the two fractions differ more than where entropy is high.",
        ],
    )


def _mean(results: Results, rule: str, measure: str) -> str:
    found = results.interval(rule, measure)
    return "–" if found is None else percent(found.mean)


def _by_update(results: Results) -> Table:
    rows = [
        [
            f"{label}, update {update}",
            with_interval(results.interval(rule, f"fraction/stopped/{update}"), percent),
            with_interval(results.interval(rule, f"share/stopped/{update}"), percent),
        ]
        for rule, label in results.arms.items()
        for update in range(UPDATES)
    ]
    return Table("By update index within a batch", ["", "tokens stopped", "gradient removed"], rows)


def _by_region(results: Results) -> Table:
    rows = [
        [
            f"{label}, {region}",
            with_interval(results.interval(rule, f"fraction/{region}"), percent),
            with_interval(results.interval(rule, f"share/{region}"), percent),
            with_interval(times_over(results.interval(rule, f"log_surprise/{region}")), significant(3)),
            with_interval(times_over(results.interval(rule, f"log_weight/{region}")), significant(3)),
            with_interval(results.interval(rule, f"probability_median/{region}"), significant(2)),
        ]
        for rule, label in results.arms.items()
        for region in STOPPING
    ]
    head = ["", "tokens stopped", "gradient removed", "factor of 1-p", "factor of abs(r·A)", "median π_new"]
    return Table("By region, over all updates", head, rows)


def figure(results: Results) -> Figure:
    drawing = new_figure(WIDE, 2.5)
    panels = drawing.subplots(1, 2 * len(results.arms), sharey=True, width_ratios=[UPDATES, 2] * len(results.arms))
    for column, (rule, label) in enumerate(results.arms.items()):
        over_updates, over_regions = panels[2 * column], panels[2 * column + 1]
        for place, what in enumerate(("fraction", "share")):
            shift = 0.24 * (place - 0.5)
            for update in range(UPDATES):
                values: Mapping[int, float] = results.numbers(rule, f"{what}/stopped/{update}")
                draw_seeds(over_updates, update + shift, list(values.values()), place)
            for x, region in enumerate(STOPPING):
                draw_seeds(over_regions, x + shift, list(results.numbers(rule, f"{what}/{region}").values()), place)
        over_updates.set_xticks(range(UPDATES))
        over_updates.set_xlabel(f"{label}: update index")
        over_regions.set_xticks(range(len(STOPPING)), STOPPING, rotation=30, ha="right")
        over_regions.set_xlim(-0.5, len(STOPPING) - 0.5)
    percent_axis(panels[0].yaxis)
    panels[0].set_ylim(bottom=0)
    for axes in panels:
        axes.grid(axis="y")
    drawing.legend(handles=point_keys(["tokens stopped", "gradient removed"]), loc="outside upper left", ncols=2)
    return drawing


STUDY = Study(
    name="tokens_and_gradient",
    arms=[
        Arm(PPO, "PPO", {"objective": {"rule": PPO}}),
        Arm(DAPO, "DAPO", {"objective": {"rule": DAPO}}),
    ],
    measure=measure,
    page=page,
    figure=figure,
    shared={},
    cold_start={},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
