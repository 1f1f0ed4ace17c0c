"""What the dual clip bounds: the weight of bad tokens that became likelier. With it and without, where ratios spread.

python studies/dual_clip.py [--seeds N]      # about 3 minutes on 2 cores
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from common.figures import draw_seeds, point_keys
from common.measures import accuracy_measures, by_update, largest, mean_over_signal, rows_of
from common.page import (
    CAME_OUT,
    NOT_TOLD_APART,
    Finding,
    Format,
    Page,
    Table,
    judge,
    lines,
    percent,
    points,
    significant,
    together,
    with_interval,
)
from common.results import Measures, Results
from common.study import Arm, Study, main
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader
from dinghai.view.figure_style import WIDE, legend_above, new_figure, percent_axis
from dinghai.view.palette import LIGHT

C = 3.0
RATES = (2e-4, 4e-4)
EPOCHS, MINIBATCHES = 4, 2
WITHOUT, WITH = "without", "with"
LABELS = {WITHOUT: "without", WITH: f"c = {C:g}"}
ROUNDING = 1e-4  # the trace keeps 16 significant bits of a weight
MATTERS = 0.01  # share of the gradient beyond c from which it is more than an oddity
COLUMNS = ("weight", "weight_unclipped", "gradient", "advantage", "ratio", "signal")


def key(kind: str, rate: float) -> str:
    return f"{kind}-lr{rate:g}"


# --- what is measured ------------------------------------------------------------------------------------------------


def measure(folder: Path) -> Measures:
    """From the trace: how far bad tokens went and what they weighed; beyond: A < 0 and r > c."""
    beyond = signal = 0
    gradient_beyond = gradient = 0.0
    largest_ratio, largest_weight = 1.0, 0.0
    reader = TraceReader(folder / "trace")
    for step in reader.steps():
        for update in reader.updates(step):
            tokens = read_tokens(reader, step, update, COLUMNS)
            bad_N = tokens.signal & (tokens.advantage < 0)
            beyond_N = bad_N & (tokens.ratio > C)
            beyond, signal = beyond + int(beyond_N.sum()), signal + int(tokens.signal.sum())
            gradient += float(np.sum(tokens.gradient[tokens.signal], dtype=np.float64))
            gradient_beyond += float(np.sum(tokens.gradient[beyond_N], dtype=np.float64))
            if bad_N.any():
                largest_ratio = max(largest_ratio, float(tokens.ratio[bad_N].max()))
                size_N = np.abs(tokens.weight[bad_N].astype(np.float64) / tokens.advantage[bad_N])
                largest_weight = max(largest_weight, float(size_N.max()))
    rows = rows_of(folder)
    norms = [norm for norm in by_update(rows, "grad_norm") if math.isfinite(norm)]
    norm = largest(rows, "grad_norm")
    return accuracy_measures(rows) | {
        "beyond": beyond / signal if signal else None,
        "gradient_beyond": gradient_beyond / gradient if gradient else None,
        "ratio_largest": largest_ratio,
        "weight_largest": largest_weight,
        "log10_weight_largest": math.log10(largest_weight) if largest_weight else None,
        "norm_mean": math.fsum(norms) / len(norms) if norms else None,
        "norm_largest": norm,
        "log10_norm_largest": math.log10(norm) if norm else None,
        "relapse": mean_over_signal(rows, "clip/region/relapse_fraction"),
        "kl_largest": largest(rows, "kl_old_new_k3"),
    }


# --- what is said of it ----------------------------------------------------------------------------------------------


def findings(results: Results) -> list[Finding]:
    bounded = [value for rate in RATES for value in results.numbers(key(WITH, rate), "weight_largest").values()]
    free = [value for rate in RATES for value in results.numbers(key(WITHOUT, rate), "weight_largest").values()]
    shares = {rate: results.interval(key(WITHOUT, rate), "gradient_beyond") for rate in RATES}
    matters = [rate for rate, share in shares.items() if share is not None and share.low > MATTERS]
    norm, norm_outcome = compared(results, "log10_norm_largest", -1, significant(2, sign=True))
    accuracy, accuracy_outcome = compared(results, "accuracy_end", 1, points)
    at_one = "the interval on that side of 0 at one learning rate or more, and on the other side at none"
    return [
        Finding(
            "the dual clip bounds the weight of a token with A < 0",
            f"the largest |w|/|A| of such a token: at most c = {C:g} in every run with it, beyond it in some without",
            f"with it {_largest(bounded)}, without {_largest(free)}",
            bound(bounded, free),
        ),
        Finding(
            "what lies beyond c is a part of the gradient worth bounding",
            f"share of the gradient (without dual clip) with A < 0 and r > c: interval above {percent(MATTERS)} at one "
            "learning rate or more",
            lines(f"lr {rate:g}: {with_interval(share, percent)}" for rate, share in shares.items()),
            f"came out at {len(matters)} of {len(RATES)} learning rates" if matters else NOT_TOLD_APART,
        ),
        Finding(
            "the largest gradient norm of a run is smaller with it",
            f"log10 of the largest norm, before it is clipped, with less without: {at_one}",
            norm,
            norm_outcome,
        ),
        Finding("training ends better with it", f"accuracy, with less without: {at_one}", accuracy, accuracy_outcome),
    ]


def bound(bounded: list[float], free: list[float]) -> str:
    """The outcome of "with it no weight is beyond c, and without it some are"."""
    if not bounded or not free:
        return NOT_TOLD_APART
    if max(bounded) > C * (1 + ROUNDING):
        return "did not come out"
    return CAME_OUT if max(free) > C else "true, but nothing needed it here"


def compared(results: Results, what: str, expected: int, form: Format) -> tuple[str, str]:
    """With less without at each learning rate: what was measured, and the outcome over them together."""
    found = {rate: results.difference(key(WITH, rate), key(WITHOUT, rate), what) for rate in RATES}
    measured = lines(f"lr {rate:g}: {with_interval(difference, form)}" for rate, difference in found.items())
    return measured, together([judge(difference, expected) for difference in found.values()])


def _farther(results: Results) -> str:
    found = {rate: results.difference(key(WITH, rate), key(WITHOUT, rate), "ratio_largest") for rate in RATES}
    return ", ".join(
        f"{with_interval(apart, significant(2, sign=True))} at lr {rate:g}" for rate, apart in found.items()
    )


def _largest(values: list[float]) -> str:
    return f"{max(values):.4g}" if values else "–"


def page(results: Results) -> Page:
    found = findings(results)
    weight, matters, norm, accuracy = found
    return Page(
        title="What the dual clip bounds",
        question="PPO's clip leaves a bad token that became likelier its whole gradient, r·A, however large r is. The "
        "dual clip stops it beyond c. What does that bound, and does training gain by it?",
        summary=f"That it bounds the weight of bad tokens {weight.outcome} (largest |w|/|A|: {weight.measured}). That "
        f"what lies beyond c is worth bounding {matters.outcome}. That the largest gradient norm is smaller "
        f"{norm.outcome}; that training ends better {accuracy.outcome}.",
        findings=found,
        figure="By learning rate, without and with the dual clip: largest |w|/|A| of a token with A < 0 (dashed: c), "
        "largest gradient norm of an update, and held-out accuracy at the end (dashed: after the cold start).",
        tables=[_table(results)],
        literature=[
            "Dual-clip PPO was introduced for training on samples of many older policies, where r·A with A < 0 has a "
            "large and unbounded variance; c = 3 (arXiv 1912.09729, equation 5).",
            "verl has it on by default, at c = 3, and DAPO's recipes use 10; TRL's `delta` is off by default.",
        ],
        setting=[
            f"PPO's clip, ε 0.2 and 0.2, {EPOCHS} epochs x {MINIBATCHES} minibatches a batch, so that ratios spread; "
            f"learning rates {', '.join(f'{rate:g}' for rate in RATES)}.",
            "The norm of the gradient is clipped to 1 in all runs, which bounds a step whatever a token weighs; norms "
            "are measured before that.",
        ],
        notes=[
            "The dual clip bounds a weight, not a ratio: a token beyond c gets no gradient at all, so what would pull "
            f"it back is gone. Largest ratio of a bad token, with less without: {_farther(results)}. (Looked at after "
            "the runs; no criterion was stated beforehand.)",
            "Tokens with A > 0 do not need it: beyond 1+ε they are stopped anyway.",
            "Few tokens get beyond c here, because samples are at most eight updates old. With asynchronous rollouts "
            "there may be far more.",
        ],
    )


def _table(results: Results) -> Table:
    kinds: dict[str, tuple[str, Format]] = {
        "largest abs(w/A), A < 0": ("weight_largest", significant(3)),
        "largest r, A < 0": ("ratio_largest", significant(3)),
        "relapse tokens": ("relapse", percent),
        "tokens beyond c": ("beyond", Format(".3f", 100, " %")),
        "gradient beyond c": ("gradient_beyond", percent),
        "mean gradient norm": ("norm_mean", significant(3)),
        "largest gradient norm": ("norm_largest", significant(3)),
        "largest KL(old‖new)": ("kl_largest", significant(2)),
        "accuracy at the end": ("accuracy_end", percent),
    }
    arms = [key(kind, rate) for rate in RATES for kind in LABELS]
    rows = [
        [label, *(with_interval(results.interval(arm, what), form) for arm in arms)]
        for label, (what, form) in kinds.items()
    ]
    return Table("All runs", ["", *(results.arms[arm] for arm in arms)], rows)


def figure(results: Results) -> Figure:
    drawing = new_figure(WIDE, 2.4)
    panels = drawing.subplots(1, 3)
    titles = {
        "weight_largest": "largest |w|/|A|, A < 0",
        "norm_largest": "largest gradient norm",
        "accuracy_end": "held-out accuracy",
    }
    for axes, (what, title) in zip(panels, titles.items(), strict=True):
        for place, kind in enumerate(LABELS):
            for x, rate in enumerate(RATES):
                values = list(results.numbers(key(kind, rate), what).values())
                draw_seeds(axes, x + 0.2 * (place - 0.5), values, place)
        axes.set_xticks(range(len(RATES)), [f"{1e4 * rate:g}e-4" for rate in RATES])
        axes.set_xlim(-0.5, len(RATES) - 0.5)
        axes.set_xlabel("learning rate")
        axes.set_ylabel(title)
        axes.grid(axis="y")
    dashed = {"color": LIGHT["soft"], "linewidth": 0.8, "linestyle": (0, (4, 3))}
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(FixedLocator([1, 2, C, 5, 10, 20, 50, 100, 1000]))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].axhline(C, **dashed)
    panels[1].set_ylim(bottom=0)
    start = results.interval(key(WITHOUT, RATES[0]), "accuracy_start")
    if start is not None:
        panels[2].axhline(start.mean, **dashed)
    panels[2].set_ylim(0, 1.03)
    percent_axis(panels[2].yaxis)
    legend_above(panels[0], point_keys(list(LABELS.values())))
    return drawing


def _arm(kind: str, rate: float) -> Arm:
    rule = {"dual_clip": C} if kind == WITH else {}
    return Arm(key(kind, rate), f"{LABELS[kind]}, lr {rate:g}", {"objective": rule, "update": {"lr": rate}})


STUDY = Study(
    name="dual_clip",
    arms=[_arm(kind, rate) for rate in RATES for kind in LABELS],
    measure=measure,
    page=page,
    figure=figure,
    shared={"update": {"epochs": EPOCHS, "minibatches": MINIBATCHES}},
    cold_start={},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
