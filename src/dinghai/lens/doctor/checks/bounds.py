"""Whether the bounds of the rule act at all, or on nearly everything, and whether they are in the unit of the ratio."""

from __future__ import annotations

from dinghai.errors import DinghaiError
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.series import is_finite, mean_share, steps_and_values, weighted_mean
from dinghai.lens.words import counted, percent

STEPS = Threshold(8, "fewer steps may all lie within the learning rate's warm-up", "arithmetic")
REMOVED = Threshold(
    0.5, "the rule is meant to trim the gradient; here it takes the larger part of what was computed", "arithmetic"
)
REMOVED_NEARLY_ALL = Threshold(0.9, "what is left of the gradient is less than a tenth", "arithmetic")
STOPPED = Threshold(
    0.3,
    "of the tokens with a signal: more than twenty times what is reported of GRPO on stale data (1.22%, arXiv "
    "2510.01161), and seven times what any step of the built-in task stops",
    "paper",
)
SCALE = Threshold(
    10.0, "times below or above the range in which published runs with that ratio lie (`dinghai rules NAME`)", "paper"
)


# --- they never act ----------------------------------------------------------------------------------------------


def _cannot_act(case: Case) -> Finding | None:
    if not _has_bounds(case) or _acted(case):
        return None
    rows = [row for row in case.training if is_finite(row, "clip/log_ratio_abs_max")]
    largest = max(((row["clip/log_ratio_abs_max"], row["step"]) for row in rows), default=(0.0, 0))
    if case.updates_per_batch == 1 and largest[0] == 0:
        return _one_update(case)
    if len([row for row in rows if row["step"] > _warm_up(case)]) < STEPS.value:
        return None
    bound = case.nearest_bound
    near = f"; the nearest bound lies at {bound:.2g}" if bound is not None and not case.of_sequences else ""
    return Finding(
        check="epsilon-cannot-act",
        grade=Grade.NOTE,
        share=1.0,
        title="The rule's bounds never acted",
        evidence=(
            Evidence(
                f"in {counted(len(rows), 'step')} no ratio passed one; the largest |log r| of a token was "
                f"{largest[0]:.2g}{near}",
                Place(step=largest[1]),
            ),
        ),
        cause="Within a batch the policy moves less than the bounds allow, so they may as well not be there",
        fix="leave it so, or let each batch do more: more update.epochs or minibatches, a higher update.lr; "
        "`dinghai epsilon` tells which bounds would act",
        view="clip",
    )


def _one_update(case: Case) -> Finding:
    steps = counted(len(case.training), "step")
    return Finding(
        check="epsilon-cannot-act",
        grade=Grade.NOTE,
        share=1.0,
        title="The rule's bounds cannot act",
        evidence=(Evidence(f"each batch of rollouts got one update, so that r was 1 at every token of {steps}"),),
        cause="r compares the policy with itself before the first update of the batch; until that is made, they are "
        "one",
        fix="set update.epochs or update.minibatches above 1 for epsilon to matter; else this is the plain policy "
        "gradient on fresh samples, which needs no bounds",
        view="clip",
    )


def _has_bounds(case: Case) -> bool:
    facts = case.rule_facts
    if facts is not None:
        return bool(facts["boundaries"])
    return case.nearest_bound is not None


def _acted(case: Case) -> bool:
    """Whether any ratio passed a bound, or the rule took any gradient; also where the record does not say."""
    keys = ("clip/band_fraction", "clip/stopped_fraction", "clip/gradient_removed/total")
    told = [row for row in case.training if any(key in row for key in keys)]
    return not told or any(row.get(key) for row in told for key in keys)


def _warm_up(case: Case) -> int:
    """The last step of the learning rate's warm-up, or of the critic's."""
    steps = (case.setting("update.warmup"), case.setting("advantage.critic_warmup"))
    return max([step for step in steps if isinstance(step, int)], default=0)


# --- they are in another unit ------------------------------------------------------------------------------------


def _wrong_unit(case: Case) -> Finding | None:
    """What a run is told of its settings before it trains, and what came of it."""
    outside = weighted_mean(case.training, "clip/band_fraction")
    bound = case.nearest_bound
    if case.updates_per_batch == 1 or outside is None or bound is None or not _is_suspect(case, bound):
        return None
    sentences = _off_scale(case)
    if not sentences:
        return None
    shows = (
        f"in {counted(len(case.training), 'step')} {percent(outside)} of the tokens with a signal lay beyond a bound"
    )
    return Finding(
        check="wrong-unit",
        grade=Grade.WASTEFUL if case.of_sequences else Grade.HARMFUL,  # too wide to act, or too narrow to let learn
        share=1.0,
        title="A bound is in the unit of another ratio",
        evidence=tuple(Evidence(text) for text in (*sentences, shows)),
        cause="Bounds of tokens' ratios are tenths; the ratio of a sequence is a geometric mean over its tokens, and "
        "needs bounds that are a hundred times smaller (GSPO, arXiv 2507.18071, uses 3e-4 and 4e-4)",
        fix="set objective.eps_low and objective.eps_high in the unit of the rule; `dinghai rules NAME` names it",
        view="clip",
    )


def _is_suspect(case: Case, bound: float) -> bool:
    """Whether the rule's own account of its usual values is worth asking for: it brings torch, which takes a while."""
    return bound > 1e-3 if case.of_sequences else bound < 0.02


def _off_scale(case: Case) -> list[str]:
    from dinghai.objective import RULES
    from dinghai.objective.registry import guard_rails

    objective = case.table("objective")
    rule = RULES.get(str(objective.get("rule")))
    if rule is None or objective.get("ratio") not in rule.ratio_levels:
        return []
    try:
        parameters = rule.parse(case.table("objective", "parameters"))
    except (DinghaiError, TypeError):
        return []
    return [text for text in guard_rails(rule, parameters, objective["ratio"]) if text not in parameters.warnings()]


# --- they take nearly everything ---------------------------------------------------------------------------------


def _takes_too_much(case: Case) -> Finding | None:
    rows = case.training
    removed = mean_share(rows, "clip/gradient_removed/total")
    stopped = weighted_mean(rows, "clip/stopped_fraction")
    dropped = mean_share(rows, "clip/gradient_removed/dropped") or 0.0
    if len(rows) < STEPS.value and (removed or 0.0) <= REMOVED_NEARLY_ALL.value:
        return None
    if removed is not None and removed > REMOVED.value:
        share, most = removed, "clip/gradient_removed/total"
        title = "More than half of the gradient was taken away"
        what = f"{percent(removed)} of it, over all steps"
        if removed > REMOVED_NEARLY_ALL.value:
            title = "Nearly all of the gradient was taken away"
    elif stopped is not None and stopped > STOPPED.value:
        share, most = stopped, "clip/stopped_fraction"
        title, what = "Many tokens were stopped", f"{percent(stopped)} of those with a signal, over all steps"
    else:
        return None
    step, worst = max(steps_and_values(rows, most), key=lambda pair: pair[1])
    evidence = (Evidence(what), Evidence(f"most of it at step {step}: {percent(worst)}", Place(step=step)))
    if removed is not None and dropped > removed / 2:
        return Finding(
            check="takes-too-much",
            grade=Grade.INVALID,
            share=share,
            title=title,
            evidence=(
                Evidence(f"{what}; {percent(dropped)} by the rollout correction", Place(step=step)),
                *evidence[1:],
            ),
            cause="The rollout correction leaves out tokens about which the engine and the trainer disagree, and here "
            "they disagree about many",
            fix="look at correction/ in metrics.jsonl before anything else, and try rollout.dtype float32",
            view="regions",
        )
    grade = Grade.HARMFUL if share > REMOVED_NEARLY_ALL.value else Grade.WASTEFUL
    return Finding(
        check="takes-too-much",
        grade=Grade.NOTE if case.of_sequences and grade is Grade.WASTEFUL else grade,
        share=share,
        title=title,
        evidence=evidence,
        cause="Much of each batch is computed for nothing"
        + (
            "; with ratios of sequences a whole completion is stopped at once, and its authors report runs that learn "
            "well in spite of it (arXiv 2507.18071)"
            if case.of_sequences
            else ": the policy moves far within a batch, or the bounds are narrow"
        ),
        fix="try fewer updates a batch, a lower update.lr or wider bounds",
        view="regions",
    )


CHECKS = (
    Check("wrong-unit", "A bound is in the unit of another ratio.", {"scale": SCALE}, _wrong_unit),
    Check(
        "takes-too-much",
        "The rule or the rollout correction takes most of the gradient.",
        {"removed": REMOVED, "removed nearly all": REMOVED_NEARLY_ALL, "stopped": STOPPED, "steps": STEPS},
        _takes_too_much,
    ),
    Check("epsilon-cannot-act", "The rule's bounds never act, or cannot.", {"steps": STEPS}, _cannot_act),
)
