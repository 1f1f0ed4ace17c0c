"""How the run went: numbers that are not finite, an early end, held-out accuracy, and rewards against it."""

from __future__ import annotations

import math

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.doctor.trend import FEWEST, accuracy_noise, change_of_means
from dinghai.lens.series import is_finite, last_tenth, steps_and_values, weighted_mean
from dinghai.lens.words import counted, percent

FELL = Threshold(3.0, "standard errors of the difference: three, since the best of many is partly luck", "statistics")
PART_SIGMAS = Threshold(4.0, "standard errors of the difference of two means over steps", "statistics")
PART_STEPS = Threshold(FEWEST, "fewer give no mean of three first and three last steps", "arithmetic")
NOT_FINITE = Threshold(0, "there is no harmless one", "arithmetic")


# --- not finite --------------------------------------------------------------------------------------------------


def _not_finite(case: Case) -> Finding | None:
    evidence = _in_failure(case) or _in_metrics(case)
    if not evidence:
        return None
    return Finding(
        check="not-finite",
        grade=Grade.INVALID,
        share=1.0,
        title="A number is not finite",
        evidence=tuple(evidence),
        cause="It may come of a reward that divides by zero, log-probs of -inf, or weights that have overflowed. What "
        "follows rests on it, so this comes before everything else",
        fix="look there first; where the weights have overflowed, a lower update.lr, update.max_grad_norm and "
        "float32 in "
        "model.dtype help",
        view="tokens",
    )


def _in_failure(case: Case) -> list[Evidence]:
    failure = case.failure
    if failure is None or failure.tensor is None:
        return []
    place = Place(failure.step, failure.update, failure.group, failure.sample, failure.position)
    return [Evidence(f"the run stopped because {failure.message}", place)]


def _in_metrics(case: Case) -> list[Evidence]:
    found = []
    for row in case.training:
        bad = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        place = Place(step=row["step"])
        if bad:
            found.append(Evidence(f"at step {row['step']} {bad[0]} is {row[bad[0]]}", place))
        if is_finite(row, "clip/nonfinite_tokens") and row["clip/nonfinite_tokens"] > 0:
            tokens = counted(int(row["clip/nonfinite_tokens"]), "token")
            found.append(
                Evidence(
                    f"at step {row['step']} {tokens} had a log-prob, an advantage or a weight that is not finite", place
                )
            )
        if found:
            break
    return found


# --- ended -------------------------------------------------------------------------------------------------------


def _ended_early(case: Case) -> Finding | None:
    if case.state != "stopped" or not (case.training or case.failure):
        return None
    done = case.training[-1]["step"] if case.training else 0
    planned = case.setting("run.steps")
    of = f" of {planned:,} planned ones" if isinstance(planned, int) and planned else ""
    left = 1 - done / planned if isinstance(planned, int) and planned > done else 1.0
    evidence = [Evidence(f"after step {done:,}{of}", Place(step=done))]
    if case.failure is not None and case.failure.tensor is None:  # else it has a finding of its own
        evidence.insert(0, Evidence(f"after step {done:,}{of}: {case.failure.message}", Place(step=done)))
    return Finding(
        check="ended-early",
        grade=Grade.HARMFUL,
        share=1.0 if case.failure else left,  # what killed a run comes before what was wrong with it
        title="The run ended early",
        evidence=tuple(evidence),
        cause="It failed, or it was interrupted or killed" if case.failure else "It was interrupted or killed",
        fix=f"`dinghai resume {case.folder}` continues it from its last checkpoint",
        view="curves",
    )


# --- held-out accuracy and rewards -------------------------------------------------------------------------------


def _held_out_fall(case: Case) -> tuple[int, float, int, float] | None:
    """(step, best, last step, last) where it fell from its best beyond noise."""
    problems = case.setting("task.held_out")
    if len(case.evaluations) < 2 or not isinstance(problems, int) or problems < 1:
        return None
    step, best = max(case.evaluations, key=lambda pair: pair[1])
    last_step, last = case.evaluations[-1]
    if best - last <= FELL.value * accuracy_noise(best, last, problems):
        return None
    return step, best, last_step, last


def _rewards_since(case: Case, step: int) -> dict[str, tuple[float, float]]:
    """Reward -> its mean about that step and at the end: of the total, and of each part."""
    names = {"reward/mean": "the reward"} | {
        key: f"the reward {key.split('/')[1]}"
        for key in (case.training[-1] if case.training else {})
        if key.startswith("reward/") and key.endswith("/mean") and key != "reward/shaped/mean"
    }
    if len(names) == 2:  # one part is the whole
        names = {"reward/mean": "the reward"}
    found = {}
    for key, name in names.items():
        until = [row for row in case.training if row["step"] <= max(step, 1)]
        before = weighted_mean(last_tenth(until), key, None)
        after = weighted_mean(last_tenth(case.training), key, None)
        if before is not None and after is not None:
            found[name] = before, after
    return found


def _held_out_fell(case: Case) -> Finding | None:
    """Without a reward that rose meanwhile, which is another fault."""
    fall = _held_out_fall(case)
    if fall is None or any(after > before for before, after in _rewards_since(case, fall[0]).values()):
        return None
    step, best, last_step, last = fall
    return Finding(
        check="held-out-fell",
        grade=Grade.HARMFUL,
        share=best - last,
        title="Held-out accuracy fell",
        evidence=(
            Evidence(
                f"from its best, {percent(best)} at step {step}, to {percent(last)} at step {last_step}",
                Place(step=last_step),
            ),
        ),
        cause="The updates took the policy away from what it could do",
        fix="a lower update.lr or fewer updates a batch may hold it; the checkpoint near the best step may still be "
        "there",
        view="curves",
    )


def _reward_hacking(case: Case) -> Finding | None:
    fall = _held_out_fall(case)
    if fall is not None:
        step, best, last_step, last = fall
        rose = {n: pair for n, pair in _rewards_since(case, step).items() if pair[1] > pair[0]}
        if not rose:
            return None
        name, (before, after) = next(iter(rose.items()))
        evidence = (
            Evidence(
                f"held-out accuracy fell from its best, {percent(best)} at step {step}, to {percent(last)} at step "
                f"{last_step} while {name} rose from {before:.3g} to {after:.3g}",
                Place(step=last_step),
            ),
        )
        return _hacked(evidence, "What pays in training does not carry over to the held-out problems", best - last)
    return _parts_apart(case)


def _parts_apart(case: Case) -> Finding | None:
    """The task's own reward falls while another part of the total rises."""
    parts = {
        key.split("/")[1]: steps_and_values(case.training, key)
        for key in (case.training[-1] if case.training else {})
        if key.startswith("reward/") and key.endswith("/mean") and key not in ("reward/mean", "reward/shaped/mean")
    }
    if "task" not in parts or len(parts) < 2:
        return None
    moved = {name: change_of_means([value for _, value in series]) for name, series in parts.items()}
    fell = moved.pop("task")
    up = {name: move for name, move in moved.items() if move is not None and move.sigmas > PART_SIGMAS.value}
    if fell is None or fell.sigmas >= -PART_SIGMAS.value or not up:
        return None
    name, (before, after, _) = max(up.items(), key=lambda item: item[1].sigmas)
    evidence = (
        Evidence(
            f"the reward {name} rose from {before:.3g} to {after:.3g} while that of the task fell from "
            f"{fell.first:.3g} to "
            f"{fell.last:.3g} (means of the first and last fifth of the steps)",
            Place(step=case.training[-1]["step"]),
        ),
    )
    return _hacked(evidence, f"{name} is easier to earn than the task, and the two exclude each other", 1.0)


def _hacked(evidence: tuple[Evidence, ...], cause: str, share: float) -> Finding:
    return Finding(
        check="reward-hacking",
        grade=Grade.HARMFUL,
        share=share,
        title="A reward rises while the task gets worse",
        evidence=evidence,
        cause=f"{cause}: a sign that the reward is being gamed",
        fix="read completions of the last steps that score high; more varied prompts, another weight of the reward, "
        "or a "
        "KL to the reference (objective.kl.beta) may help",
        view="curves",
    )


CHECKS = (
    Check("not-finite", "A number is NaN or infinite.", {"tokens": NOT_FINITE}, _not_finite),
    Check("ended-early", "The run ended before its planned steps.", {}, _ended_early, early=False),
    Check("held-out-fell", "Held-out accuracy fell from its best.", {"sigmas": FELL}, _held_out_fell),
    Check(
        "reward-hacking",
        "A reward rises while held-out accuracy, or the task's own reward, falls.",
        {"sigmas": FELL, "sigmas of a part": PART_SIGMAS, "steps": PART_STEPS},
        _reward_hacking,
    ),
)
