"""Clip-higher: the upper bound widened from 0.2 to 0.28, 0.4 and 0.8, and which tokens that releases.

python studies/clip_higher.py [--seeds N] [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common.figures import draw_curve, draw_seeds, legend_on_top, line_keys, since_start, step_axis
from common.measures import (
    accuracy_measures,
    entropy_by_step,
    groups_by_step,
    last_mean,
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
from common.statistics import paired
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.lens.regions import REGIONS
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader
from dinghai.view.figure_style import WIDE, new_figure, percent_axis
from dinghai.view.palette import LIGHT

LOW = 0.2
USUAL, WIDER = 0.2, (0.28, 0.4, 0.8)
LAST = 5  # steps over which what is said of the end is averaged
UNLIKELY, PAPERS_LIMIT = 0.1, 0.2  # probabilities: ours, and what DAPO's figure 3 shows of clipped tokens


def key(eps_high: float) -> str:
    return f"high-{eps_high:g}"


def measure(run: Path) -> Measures:
    rows, entropy, groups = rows_of(run), entropy_by_step(run), groups_by_step(run)
    return (
        accuracy_measures(rows)
        | {
            "entropy": entropy,
            "entropy_end": last_mean(entropy, LAST),
            "distinct_end": last_mean([group["distinct"] for group in groups], LAST),
            "any_right_end": last_mean([group["any_right"] for group in groups], LAST),
            "overshoot": mean_over_signal(rows, "clip/region/overshoot_fraction"),
            "gradient_overshoot": mean_share_of_gradient(rows, "clip/gradient_removed/overshoot"),
        }
        | attribution(run)
    )


def attribution(run: Path) -> dict[str, float | None]:
    """How likely tokens are: those with A > 0, those that the upper bound stops, and those beyond 1.2 that it lets go.

    Shares with π_old < UNLIKELY, and the mean π_new of the stopped ones; None where there are none. A token is counted
    at each update that sees it.
    """
    reader = TraceReader(run / "trace")
    overshoot, inside = REGIONS.index("overshoot"), REGIONS.index("inside")
    good, stopped, released, stopped_new = [], [], [], []
    for step in reader.steps():
        columns = ["ratio", "logp_new", "logp_old", "advantage", "region"]
        tokens = read_tokens(reader, step, None, columns)
        old_N, new_N = np.exp(tokens.logp_old), np.exp(tokens.logp_new)
        good_N = tokens.advantage > 0
        stopped_N = tokens.region == overshoot
        good.append(old_N[good_N])
        stopped.append(old_N[stopped_N])
        stopped_new.append(new_N[stopped_N])
        released.append(old_N[good_N & (tokens.region == inside) & (tokens.ratio > 1 + USUAL)])
    return {
        "good_unlikely": _below(np.concatenate(good)),
        "stopped_unlikely": _below(np.concatenate(stopped)),
        "released_unlikely": _below(np.concatenate(released)),
        "stopped_probability": _mean(np.concatenate(stopped_new)),
        "released": sum(map(len, released)) / max(1, sum(map(len, good))),
    }


def _below(probability_N: np.ndarray) -> float | None:
    """The share of improbable tokens."""
    return _mean((probability_N < UNLIKELY).astype(np.float64))


def _mean(values_N: np.ndarray) -> float | None:
    return float(np.mean(values_N, dtype=np.float64)) if len(values_N) else None


# --- what is said of the numbers -------------------------------------------------------------------------------------


def wider_less_usual(results: Results, measure_name: str, form: Format) -> tuple[str, list[str]]:
    """Each wider bound less 0.2, paired: what was measured, and whether it is higher."""
    measured, outcomes = [], []
    for eps_high in WIDER:
        difference = results.difference(key(eps_high), key(USUAL), measure_name)
        measured.append(f"{eps_high:g}: {with_interval(difference, form)}")
        outcomes.append(judge(difference, 1))
    return lines(measured), outcomes


def findings(results: Results) -> list[Finding]:
    entropy, entropy_outcomes = wider_less_usual(results, "entropy_end", significant(2, sign=True))
    distinct, distinct_outcomes = wider_less_usual(results, "distinct_end", significant(2, sign=True))
    right, right_outcomes = wider_less_usual(results, "any_right_end", points)
    accuracy, accuracy_outcomes = wider_less_usual(results, "accuracy_end", points)
    at_one = f"each wider ε_high less {USUAL:g}, paired: interval above 0 at one or more, below 0 at none"
    over = f"mean of the last {LAST} steps; {at_one}"
    stopped = results.interval(key(USUAL), "stopped_probability")
    more_unlikely, likelihood = _released(results)
    return [
        Finding("a wider upper bound keeps the entropy up", over, f"nats: {entropy}", together(entropy_outcomes)),
        Finding(
            "it keeps the completions of a prompt more diverse",
            f"distinct ones among the 8 of a group, {over}",
            distinct,
            together(distinct_outcomes),
        ),
        Finding(
            "more prompts have a right completion among their 8",
            f"share of groups, {over}",
            right,
            together(right_outcomes),
        ),
        Finding("it ends at a higher accuracy", f"held-out, greedy; {at_one}", accuracy, together(accuracy_outcomes)),
        Finding(
            f"the tokens that the bound at {USUAL:g} stops are unlikely ones",
            f"mean π_new of tokens stopped in overshoot, ε_high {USUAL:g}: interval below {PAPERS_LIMIT:g}",
            with_interval(stopped, significant(2)),
            CAME_OUT
            if stopped and stopped.high < PAPERS_LIMIT
            else REVERSED
            if stopped and stopped.low > PAPERS_LIMIT
            else NOT_TOLD_APART,
        ),
        Finding(
            "what the wider bound releases are unlikely tokens",
            f"share with π_old < {UNLIKELY:g} among tokens with A > 0 from r = {1 + USUAL:g} to the wider bound, less "
            "that among all tokens with A > 0, within each run: interval above 0 at one or more, below 0 at none",
            likelihood,
            more_unlikely,
        ),
    ]


def _released(results: Results) -> tuple[str, str]:
    """Whether released tokens are unlikely more often than all good ones: the outcome, and what was measured."""
    outcomes, measured = [], []
    for eps_high in WIDER:
        one, other = (results.numbers(key(eps_high), name) for name in ("released_unlikely", "good_unlikely"))
        difference = paired(one, other) if one.keys() & other.keys() else None
        outcomes.append(judge(difference, 1))
        measured.append(f"{eps_high:g}: {with_interval(difference, points)}")
    return together(outcomes), lines(measured)


def page(results: Results) -> Page:
    found = findings(results)
    return Page(
        title="Clip-higher",
        question="What does a wider upper bound do to entropy, diversity and accuracy, and which tokens does it "
        "release?",
        summary=by_outcome(found),
        findings=found,
        figure="Left: entropy of the sampling policy by step, less that of step 1, mean and interval. "
        "Middle: distinct completions among "
        "the 8 of a prompt, last steps, each seed a point. Right: share of unlikely tokens (π_old < "
        f"{UNLIKELY:g}) among all with A > 0, among those stopped in overshoot, and among those released.",
        tables=[_table(results)],
        literature=[
            "DAPO (arXiv 2503.14476, section 3.1): with ε_high = 0.2 the entropy collapses, since the upper bound "
            "holds down unlikely tokens; 0.28 keeps it up. Its figure 3a has clipped tokens below 0.2.",
            "For a token with π_old > 1/(1+ε_high) the upper bound can never act, since π_new is at most 1: the bound "
            "is one on unlikely tokens by arithmetic.",
        ],
        setting=[
            f"PPO's clip, token mean, ε_low {LOW:g}, ε_high {', '.join(f'{e:g}' for e in (USUAL, *WIDER))}; 16 updates "
            "a batch (4 epochs x 4 minibatches), so that ratios leave the band.",
            "Entropy is that of the sampling policy, nats a token, over all tokens of the minibatch of each step's "
            "first update.",
            f"Released: tokens with A > 0 whose ratio lies between {1 + USUAL:g} and 1+ε_high: they keep their "
            f"gradient, and would have lost it at {USUAL:g}.",
        ],
        notes=[
            "Each of the first four rows holds three intervals: at 95 % about one such row in thirteen has one that "
            "excludes 0 on a given side by chance.",
            "The task has one right answer and few ways to write it: there is little diversity to be kept, and losing "
            "it costs less than in mathematics with long chains of thought.",
            "The teacher forgets seven carries in ten, so the right digit has a probability of about 0.3 from the "
            "start: what is to be learned here is less unlikely than the rare tokens that clip-higher is meant for.",
            "20 steps are short: DAPO's curves part over hundreds.",
        ],
    )


def _table(results: Results) -> Table:
    rows = []
    for arm, label in results.arms.items():
        cells = [
            ("entropy_end", significant(3)),
            ("distinct_end", significant(3)),
            ("any_right_end", percent),
            ("accuracy_end", percent),
            ("overshoot", percent),
            ("gradient_overshoot", percent),
            ("stopped_probability", significant(2)),
            ("stopped_unlikely", percent),
            ("released_unlikely", percent),
            ("good_unlikely", percent),
        ]
        rows.append([label, *(with_interval(results.interval(arm, name), form) for name, form in cells)])
    head = ["", "entropy, nats", "distinct of 8", "a right one among 8", "accuracy at the end", "stopped in overshoot"]
    likely = "mean π_new of the stopped"
    unlikely = [f"{which}, π_old < {UNLIKELY:g}" for which in ("stopped", "released", "A > 0")]
    return Table("Every upper bound", [*head, "gradient removed there", likely, *unlikely], rows)


def figure(results: Results) -> Figure:
    found = new_figure(WIDE, 2.9)
    curves, diversity, likelihood = found.subplots(1, 3, width_ratios=(1.3, 1, 1.3))
    arms = list(results.arms)
    for place, arm in enumerate(arms):
        by_seed = since_start(results.series(arm, "entropy"))
        draw_curve(curves, range(1, 1 + max(map(len, by_seed.values()), default=0)), by_seed, place)
        draw_seeds(diversity, place, list(results.numbers(arm, "distinct_end").values()), place)
        for i, which in enumerate(("good_unlikely", "stopped_unlikely", "released_unlikely")):
            x = i + (place - (len(arms) - 1) / 2) * 0.18
            draw_seeds(likelihood, x, list(results.numbers(arm, which).values()), place)
    curves.axhline(0, color=LIGHT["soft"], linewidth=0.6)
    curves.set_ylabel("entropy since step 1, nats a token")
    step_axis(curves)
    diversity.set_xticks(range(len(arms)), [arm.removeprefix("high-") for arm in arms])
    diversity.set_xlabel("ε_high")
    diversity.set_ylabel("distinct completions of 8")
    likelihood.set_xticks(range(3), ["A > 0", "stopped", "released"])
    likelihood.set_ylabel(f"share with π_old < {UNLIKELY:g}")
    percent_axis(likelihood.yaxis)
    legend_on_top(found, line_keys(results, arms))
    return found


STUDY = Study(
    name="clip_higher",
    arms=[
        Arm(key(eps), f"ε_high {eps:g}", {"objective": {"eps_low": LOW, "eps_high": eps}}) for eps in (USUAL, *WIDER)
    ],
    measure=measure,
    page=page,
    figure=figure,
    shared={"update": {"epochs": 4, "minibatches": 4, "lr": 1e-4, "shortcuts": {"skip_no_signal": False}}},
    cold_start={},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
