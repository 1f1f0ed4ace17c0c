"""With one update on each batch of rollouts every rule trains the same weights: the ratio is 1 and no bound acts.

python studies/one_update.py [--seeds N]      # about 3 minutes on 2 cores
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.figures import draw_seeds, look
from common.page import Finding, Page, Table, significant, with_interval
from common.results import Measures, Results
from common.study import Arm, Study, main
from matplotlib.figure import Figure

from dinghai.objective import RULES, Rule, find_rule
from dinghai.view.figure_style import WIDE, legend_above, new_figure

REFERENCE = "reinforce"  # w = A always: what every rule is said to be at r = 1
UPDATES = {1: {"epochs": 1, "minibatches": 1}, 4: {"epochs": 2, "minibatches": 2}}
STEPS = 4
EXACT = 0.0
TO_THE_BIT, TO_ROUNDING = "to the last bit", "to rounding"
ROUNDING = 1e-3  # of the way that the weights went: Adam divides by a gradient's size, so a last digit may grow

# A model of 70 thousand weights, on sums of two digits: 340 runs fit in minutes.
SMALL = {
    "model": {"hidden_size": 64, "heads": 4, "context": 64},
    "task": {"kind": "addition", "digits": 2, "held_out": 16},
}


def arms() -> list[Arm]:
    """Each registered rule with one update a batch, and with four."""
    return [
        Arm(
            arm_of(rule.name, updates),
            f"{rule.name}, {updates} update{'s' * (updates > 1)}",
            {"objective": {"rule": rule.name}, "update": UPDATES[updates]},
        )
        for updates in UPDATES
        for rule in RULES.values()
        if not is_of_a_study(rule)
    ]


def is_of_a_study(rule: Rule) -> bool:
    """Rules of our own that another study has registered in this process."""
    return rule.paper.startswith("a comparison")


def arm_of(rule: str, updates: int) -> str:
    return f"{rule}-{updates}"


# --- what is measured ------------------------------------------------------------------------------------------------


def measure(folder: Path) -> Measures:
    """How far the final weights lie from those of REINFORCE with the same seed, relative to how far these have moved.

    `fingerprint`: 48 bits of the final weights' SHA-256, equal where all weights are equal to the last bit.
    """
    from safetensors.torch import load_file

    arm, _, seed = folder.name.rpartition("-")
    _, _, updates = arm.rpartition("-")
    reference = folder.parent / f"{arm_of(REFERENCE, int(updates))}-{seed}"
    if not (reference / "model").exists():  # it failed
        return {}
    begun = Path(_model_path(folder))
    end, base, start = (
        load_file(path / "model.safetensors") for path in (folder / "model", reference / "model", begun)
    )
    apart = math.sqrt(sum(float((end[name].double() - base[name].double()).square().sum()) for name in base))
    moved = math.sqrt(sum(float((base[name].double() - start[name].double()).square().sum()) for name in base))
    digest = hashlib.sha256(b"".join(end[name].numpy().tobytes() for name in sorted(end))).hexdigest()
    return {"distance": apart / moved, "moved": moved, "fingerprint": int(digest[:12], 16)}


def _model_path(folder: Path) -> str:
    from dinghai.config.load import CONFIG_FILE, settings_from_json

    settings = settings_from_json((folder / CONFIG_FILE).read_text("utf-8"), str(folder / CONFIG_FILE))
    assert settings.model.path is not None
    return settings.model.path


# --- what is said of it ----------------------------------------------------------------------------------------------


def rules_of(results: Results) -> list[str]:
    return [arm.rpartition("-")[0] for arm in results.arms if arm.endswith("-1")]


def farthest(results: Results, rule: str, updates: int) -> float | None:
    """The largest distance over the seeds; None where a run of the rule, or of the reference, has failed."""
    found = results.numbers(arm_of(rule, updates), "distance")
    return max(found.values()) if len(found) == len(results.seeds) else None


def is_apart(distance: float | None) -> bool:
    return distance is not None and distance > ROUNDING


def how_equal(distance: float | None) -> str:
    if distance is None:
        return "failed"
    if distance == EXACT:
        return TO_THE_BIT
    return TO_ROUNDING if distance <= ROUNDING else "no"


def same_weights(results: Results, updates: int) -> list[list[str]]:
    """Rules whose final weights are equal to the last bit with every seed, in groups of two or more."""
    groups = defaultdict(list)
    for rule in rules_of(results):
        prints = results.numbers(arm_of(rule, updates), "fingerprint")
        groups[tuple(sorted(prints.items()))].append(rule)
    return [group for key, group in groups.items() if key and len(group) > 1]


def reason(rule: str) -> str:
    """Why a rule may differ at r = 1, from the registry."""
    found = find_rule(rule)
    return found.breaks.get("on-policy-reinforce", "none that the registry knows: this needs an explanation")


def page(results: Results) -> Page:
    rules = rules_of(results)
    apart_at_1 = [rule for rule in rules if is_apart(farthest(results, rule, 1))]
    equal = [rule for rule in rules if how_equal(farthest(results, rule, 1)) in (TO_THE_BIT, TO_ROUNDING)]
    exact = [rule for rule in rules if how_equal(farthest(results, rule, 1)) == TO_THE_BIT]
    unexplained = [rule for rule in apart_at_1 if "on-policy-reinforce" not in find_rule(rule).breaks]
    apart_at_4 = [rule for rule in rules if is_apart(farthest(results, rule, 4))]
    equal_holds = not unexplained and len(equal) + len(apart_at_1) == len(rules)
    parts_holds = len(apart_at_4) > len(rules) / 2
    differ = "; ".join(f"{rule}: {reason(rule)}" for rule in apart_at_1) or "none"
    summary = (
        f"With one update a batch {len(equal)} of {len(rules)} rules end with the weights of plain "
        f"REINFORCE, {len(exact)} of them to the last bit. "
        + (f"Not equal: {differ}. " if apart_at_1 else "")
        + f"With four updates {len(apart_at_4)} of {len(rules)} part from it. With one update a "
        "batch a clip fraction of 0 is no sign of health, and a comparison of rules compares nothing."
    )
    return Page(
        title="One update a batch makes all rules equal",
        question="If each batch of rollouts gets a single optimiser step, does it matter which rule is chosen?",
        summary=summary,
        findings=[
            Finding(
                "with one update a batch every rule is REINFORCE",
                f"final weights within {ROUNDING:g} of the way that REINFORCE's have gone, with every seed; a rule "
                "that declares in the registry that it breaks this is excepted by name",
                f"{len(equal)} of {len(rules)} equal, {len(exact)} of them to the last bit; differ: {differ}",
                "came out" if equal_holds else "did not come out",
            ),
            Finding(
                "with four updates a batch rules part",
                "more than half of the rules end farther than that with some seed",
                f"{len(apart_at_4)} of {len(rules)} part",
                "came out" if parts_holds else "did not come out",
            ),
        ],
        figure="How far the final weights of each rule lie from those of REINFORCE, in units of the way that REINFORCE "
        "went, by seed with mean and interval; four updates a batch. With one update they lie at 0, or where the table "
        "says.",
        tables=[_table(results), _groups(results)],
        literature=[
            "TRL's `GRPOConfig` has `num_iterations = 1`: one update for each batch of generations is its default, and "
            "its documentation writes the loss for that case without a clip "
            "(https://huggingface.co/docs/trl/grpo_trainer).",
            "GRPO's own experiments make a single update after each exploration stage (arXiv 2402.03300, section 4.2), "
            "so the ε of that paper, which it does not state, would have done nothing there.",
        ],
        setting=[
            "Every rule of the registry with the parameters and the kind of ratio of its paper, and one reduction, "
            "`token-mean`, for all: with their papers' own reductions they would differ by that.",
            "Shortcuts that add up in another order for some rules than for others are off, so that equal can mean to "
            "the last bit.",
        ],
        notes=[
            "Four steps, so that weights that part have not yet drifted to somewhere else altogether; rewards and "
            "prompts are the same for all rules of a seed in the first step, and later as long as the weights are.",
            "Rules of the second table are not equal in general: their settings are, or what tells them apart was not "
            "met by any token of these runs.",
        ],
    )


def _table(results: Results) -> Table:
    rows = []
    for rule in rules_of(results):
        at_1, at_4 = farthest(results, rule, 1), results.interval(arm_of(rule, 4), "distance")
        level = find_rule(rule).ratio_levels[0]
        rows.append(
            [
                f"`{rule}`",
                level,
                how_equal(at_1),
                "–" if at_1 is None else f"{at_1:.1e}",
                with_interval(at_4, significant(2)),
            ]
        )
    return Table(
        "Distance of the final weights from REINFORCE's, relative to how far those have moved",
        ["rule", "ratio", "equal with 1 update", "largest, 1 update", "4 updates"],
        rows,
    )


def _groups(results: Results) -> Table:
    rows = [
        [f"{updates} update{'s' * (updates > 1)} a batch", ", ".join(f"`{rule}`" for rule in group)]
        for updates in UPDATES
        for group in same_weights(results, updates)
    ]
    return Table("Rules with the same final weights to the last bit, with every seed", ["", "rules"], rows)


def figure(results: Results) -> Figure:
    rules = sorted(rules_of(results), key=lambda rule: _mean(results, rule))
    drawing = new_figure(WIDE, 3.2)
    axes = drawing.subplots()
    for x, rule in enumerate(rules):
        draw_seeds(axes, x, list(results.numbers(arm_of(rule, 4), "distance").values()), 0)
        at_1 = farthest(results, rule, 1)
        axes.plot([x], [math.nan if at_1 is None else at_1], "x", color=look(1)["color"], markersize=4)
    axes.set_xticks(range(len(rules)), rules, rotation=90)
    axes.set_ylabel("distance from REINFORCE's weights")
    axes.set_ylim(bottom=-0.05)
    axes.grid(axis="y")
    axes.plot([], [], "o", color=look(0)["color"], markersize=4, label="4 updates a batch")
    axes.plot([], [], "x", color=look(1)["color"], markersize=4, label="1 update a batch, largest of the seeds")
    legend_above(axes, axes.get_legend_handles_labels()[0])
    return drawing


def _mean(results: Results, rule: str) -> float:
    values: Sequence[float] = list(results.numbers(arm_of(rule, 4), "distance").values())
    return math.fsum(values) / len(values) if values else math.inf


STUDY = Study(
    name="one_update",
    arms=arms(),
    measure=measure,
    page=page,
    figure=figure,
    cold_start=SMALL,
    shared={
        "run": {"steps": STEPS},
        "task": SMALL["task"],
        "rollout": {"prompts": 8, "max_new_tokens": 16},
        "objective": {"reduction": "token-mean"},
        "update": {"warmup": 0, "shortcuts": {"one_pass_head": False, "skip_no_signal": False}},
        "evaluation": {"every": 100},
        "trace": {"enabled": False},
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
