"""Which bound moves the entropy: upper only, lower only, both and none, with rewards that mean something and without.

python studies/entropy_and_bounds.py [--seeds N] [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.figures import draw_curve, legend_on_top, line_keys, since_start, step_axis
from common.measures import (
    accuracy_measures,
    entropy_by_step,
    largest,
    last_mean,
    mean_over_signal,
    rows_of,
)
from common.page import Finding, Format, Page, Table, by_outcome, judge, percent, significant, with_interval
from common.results import Measures, Results
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.view.figure_style import WIDE, new_figure
from dinghai.view.palette import LIGHT

EPS = 0.2
# No lower bound where 1-ε_low is 0, since no ratio is below it; no upper bound where 1+ε_high is out of reach.
NO_LOWER, NO_UPPER = 1.0, 1e6
BOTH, UPPER, LOWER, NONE = "both", "upper", "lower", "none"
BOUNDS = {BOTH: (EPS, EPS), UPPER: (NO_LOWER, EPS), LOWER: (EPS, NO_UPPER), NONE: (NO_LOWER, NO_UPPER)}
LABELS = {BOTH: "both bounds", UPPER: "upper only", LOWER: "lower only", NONE: "no bound"}
TASK, COIN = "task", "coin"
REWARDS = {TASK: "the task's reward", COIN: "a coin's reward"}
COIN_SOURCE = f"{Path(__file__).resolve().parent / 'common' / 'coin.py'}:coin"
LAST = 5  # steps over which the entropy at the end is averaged


def key(bounds: str, reward: str) -> str:
    return f"{bounds}-{reward}"


def _arm(bounds: str, reward: str) -> Arm:
    low, high = BOUNDS[bounds]
    changes: dict[str, object] = {"objective": {"eps_low": low, "eps_high": high}}
    if reward == COIN:
        changes["rewards"] = [{"source": COIN_SOURCE, "weight": 1.0}]
    return Arm(key(bounds, reward), f"{LABELS[bounds]}, {REWARDS[reward]}", changes)


def measure(run: Path) -> Measures:
    rows, entropy = rows_of(run), entropy_by_step(run)
    return accuracy_measures(rows) | {
        "entropy": entropy,
        "entropy_start": entropy[0],
        "entropy_end": last_mean(entropy, LAST),
        "entropy_gain": last_mean(entropy, LAST) - entropy[0],
        "overshoot": mean_over_signal(rows, "clip/region/overshoot_fraction"),
        "escaped": mean_over_signal(rows, "clip/region/escaped_fraction"),
        "kl_largest": largest(rows, "kl_old_new_k3"),
    }


# --- what is said of the numbers -------------------------------------------------------------------------------------

# claim, its arm, the arm it is held against, whether entropy is to be higher (1) or lower (-1)
CLAIMS = [
    ("the upper bound lowers the entropy", UPPER, NONE, -1),
    ("the upper bound beside the lower one lowers it", BOTH, LOWER, -1),
    ("the lower bound raises the entropy", LOWER, NONE, 1),
    ("the lower bound beside the upper one raises it", BOTH, UPPER, 1),
]


def findings(results: Results) -> list[Finding]:
    found = []
    for reward, words in REWARDS.items():
        for claim, arm, other, expected in CLAIMS:
            difference = results.difference(key(arm, reward), key(other, reward), "entropy_end")
            criterion = (
                f"entropy of the last {LAST} steps, {LABELS[arm]} less {LABELS[other]}, paired: interval "
                f"{'above' if expected > 0 else 'below'} 0"
            )
            measured = with_interval(difference, significant(2, sign=True))
            found.append(Finding(f"with {words} {claim}", criterion, f"{measured} nats", judge(difference, expected)))
        gain = results.interval(key(BOTH, reward), "entropy_gain")
        found.append(
            Finding(
                f"with {words} the entropy falls, both bounds at {EPS:g}",
                f"with both bounds, the last {LAST} steps less the first: interval below 0",
                f"{with_interval(gain, significant(2, sign=True))} nats",
                judge(gain, -1),
            )
        )
    return found


def page(results: Results) -> Page:
    found = findings(results)
    return Page(
        title="Entropy and the two bounds",
        question="Does the upper bound of the clip lower the policy's entropy and the lower bound raise it, even where "
        "the rewards mean nothing?",
        summary=by_outcome(found),
        findings=found,
        figure="Entropy of the sampling policy by step, less that of step 1: mean over the seeds and its interval.",
        tables=[_table(results)],
        literature=[
            "Clip-low raises the entropy and clip-high lowers it; with the usual symmetric bounds the second prevails, "
            "so that the entropy falls even with random rewards (arXiv 2509.26114).",
            "DAPO widens the upper bound against the entropy's collapse (arXiv 2503.14476, section 3.1).",
        ],
        setting=[
            f"PPO's clip with ε = {EPS} where there is a bound. No lower bound: ε_low = {NO_LOWER:g}, below which no "
            f"ratio can be; no upper bound: ε_high = {NO_UPPER:g}.",
            "16 updates a batch (4 epochs x 4 minibatches), so that ratios leave the band.",
            "Entropy is that of the policy that samples, in nats a token, over all tokens of the minibatch of each "
            "step's first update, with and without signal, so that a changing mix of solved prompts does not move it.",
            "The coin's reward is 1 or 0 with probability one half, whatever the completion is "
            "([coin.py](../common/coin.py)). Held-out accuracy is measured by the task's own verifier in all runs.",
        ],
        notes=[
            "A bound also slows the policy down (see the largest KL), and a policy that moves less loses or gains less "
            "entropy for that reason alone. Two arms whose KL differs much are not compared by direction only.",
            "Random rewards teach nothing, so the accuracy of these runs falls: each step is noise.",
        ],
    )


def _table(results: Results) -> Table:
    def cell(arm: str, measured: str, form: Format) -> str:
        return with_interval(results.interval(arm, measured), form)

    rows = []
    for reward in REWARDS:
        for bounds in BOUNDS:
            arm = key(bounds, reward)
            rows.append(
                [
                    results.arms[arm],
                    cell(arm, "entropy_start", significant(3)),
                    cell(arm, "entropy_end", significant(3)),
                    cell(arm, "accuracy_end", percent),
                    with_interval(results.interval(arm, "overshoot"), percent)
                    if bounds in (BOTH, UPPER)
                    else "no bound",
                    cell(arm, "escaped", percent) if bounds in (BOTH, LOWER) else "no bound",
                    cell(arm, "kl_largest", significant(2)),
                ]
            )
    head = ["", "entropy, first step", "entropy, last steps", "accuracy at the end"]
    return Table("Every setting", [*head, "stopped in overshoot", "stopped in escaped", "largest KL"], rows)


def figure(results: Results) -> Figure:
    found = new_figure(WIDE, 2.8)
    axes = found.subplots(1, len(REWARDS), sharey=True)
    for panel, reward in zip(axes, REWARDS, strict=True):
        arms = [key(bounds, reward) for bounds in BOUNDS]
        for place, arm in enumerate(arms):
            by_seed = since_start(results.series(arm, "entropy"))
            steps = range(1, 1 + max(map(len, by_seed.values()), default=0))
            draw_curve(panel, steps, by_seed, place)
        panel.axhline(0, color=LIGHT["soft"], linewidth=0.6)
        panel.set_title(REWARDS[reward])
        step_axis(panel)
    axes[0].set_ylabel("entropy since step 1, nats a token")
    keys = line_keys(results, [key(bounds, TASK) for bounds in BOUNDS])
    for line, bounds in zip(keys, BOUNDS, strict=True):
        line.set_label(LABELS[bounds])
    legend_on_top(found, keys)
    return found


STUDY = Study(
    name="entropy_and_bounds",
    arms=[_arm(bounds, reward) for reward in REWARDS for bounds in BOUNDS],
    measure=measure,
    page=page,
    figure=figure,
    shared={"update": {"epochs": 4, "minibatches": 4, "lr": 1e-4, "shortcuts": {"skip_no_signal": False}}},
    cold_start={},
    rewards=[COIN_SOURCE],
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
