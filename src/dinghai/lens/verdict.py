"""A run in plain sentences: did it learn, did the rule act, what did it mostly do, does anything look wrong.

Every sentence holds for every rule: it speaks of effects (stopped, weakened, ...), of which the clip has one only.
"""

from __future__ import annotations

from dinghai.lens.doctor.finding import Finding
from dinghai.lens.doctor.trend import accuracy_noise
from dinghai.lens.regions import REGION_MEANING
from dinghai.lens.summary import RunSummary
from dinghai.lens.words import counted, joined, ordinal, percent

CLOSING_FINDINGS = 3  # in the terminal; the report has all
ACCURACY_SIGMAS = 2.0  # standard errors of the difference of two accuracies: 1 in 20 by chance

# effect -> what the rule did to the token
_DID = {"stopped": "stopped", "attenuated": "weakened", "amplified": "strengthened", "reversed": "reversed"}

# region -> what it means that the rule takes gradient there; {} are tokens, or completions where the rule sees
# the ratio of those
_TAKEN_THERE = {
    "inside": "{} beyond no bound, which this rule weakens gradually or chooses by something else than their ratio",
    "overshoot": "good {} that have already become likelier are held back",
    "relapse": "bad {} that have become likelier are corrected less than without the rule",
    "forgotten": "good {} that have become rarer are brought back less than without the rule",
    "escaped": "bad {} that have already become rarer are spared further punishment",
    "dual": "bad {} that have become far likelier are corrected less, so that none of them carries an update",
    "dropped": "the rollout correction leaves out tokens about which the engine and the trainer disagree",
}


def sentences(summary: RunSummary) -> list[str]:
    """The verdict as the report shows it."""
    wrong = [finding.sentence for finding in _wrong(summary)]
    if summary.steps == 0:
        return [_learned(summary), *wrong]
    found = [_learned(summary), _took(summary), _when(summary), _meaning(summary), *wrong]
    if not wrong:
        found.append("Nothing looks wrong.")
    return [sentence for sentence in found if sentence]


def closing_lines(summary: RunSummary) -> list[str]:
    """The verdict as `dinghai train` ends with it: what was learned and taken away, what looks wrong, the report."""
    wrong = [finding.sentence for finding in _wrong(summary)]
    lines = [_learned(summary), _took(summary, short=True), *wrong[:CLOSING_FINDINGS]]
    left = len(wrong) - CLOSING_FINDINGS
    more = f" It names {counted(left, 'more thing')} that {'looks' if left == 1 else 'look'} wrong." if left > 0 else ""
    return [line for line in [*lines, f"The report is {summary.run / 'report.html'}.{more}"] if line]


def _wrong(summary: RunSummary) -> list[Finding]:
    """What was found, but for the one update a batch that `_took` tells of already."""
    one_update = summary.updates_per_batch == 1
    return [one for one in summary.findings if not (one_update and one.check == "epsilon-cannot-act")]


# --- did it learn ----------------------------------------------------------------------------------------------------


def _learned(summary: RunSummary) -> str:
    if summary.steps == 0:
        return "No training step was recorded."
    steps = counted(summary.steps, "step")
    if summary.steps_planned and summary.steps < summary.steps_planned:
        steps = f"{summary.steps:,} of {summary.steps_planned:,} planned steps"
    if len(summary.evaluations) < 2:
        return _learned_by_reward(summary, steps)
    (_, first), (_, last) = summary.evaluations[0], summary.evaluations[-1]
    reward = ""
    if summary.reward_first is not None and summary.reward_last is not None:
        reward = f"reward from {summary.reward_first:.3g} to {summary.reward_last:.3g}"
    few = "two evaluations" if len(summary.evaluations) == 2 else ""
    besides = "; ".join(part for part in (reward, few) if part)
    besides = f" ({besides})" if besides else ""
    if first == last:
        return f"Held-out accuracy stayed at {percent(first)} over {steps}{besides}."
    if summary.held_out_problems:
        noise = ACCURACY_SIGMAS * accuracy_noise(first, last, summary.held_out_problems)
        if abs(last - first) <= noise:
            return (
                f"Held-out accuracy shows no change beyond noise over {steps}: {percent(first)} at first and "
                f"{percent(last)} at last, where {counted(summary.held_out_problems, 'problem')} can tell a change of "
                f"{100 * noise:.1f} points{besides}."
            )
    verb = "rose" if last > first else "fell"
    return f"Held-out accuracy {verb} from {percent(first)} to {percent(last)} over {steps}{besides}."


def _learned_by_reward(summary: RunSummary, steps: str) -> str:
    """For a run that was not evaluated, or once."""
    once = ""
    if summary.evaluations:
        step, accuracy = summary.evaluations[0]
        once = f" Held-out accuracy was evaluated once, at step {step}: {percent(accuracy)}."
    change = summary.reward_change
    if change is None:
        if summary.reward_first is None:
            return f"The run made {steps}.{once}"
        if summary.steps == 1:
            return f"The run made one step, whose mean reward was {summary.reward_first:.3g}.{once}"
        return (
            f"The reward went from {summary.reward_first:.3g} to {summary.reward_last:.3g} over {steps}, which are too "
            f"few to tell a change from noise.{once}"
        )
    averaged = f"means of the first and last {counted(change.steps, 'step')}"
    means = f"{change.first:.3g} to {change.last:.3g} over {steps} ({averaged})"
    if not change.beyond_noise:
        return f"The reward shows no change beyond noise: {means}.{once}"
    return f"The reward {'rose' if change.last > change.first else 'fell'} from {means}.{once}"


# --- did the rule act, when, and on what -----------------------------------------------------------------------------


def _took(summary: RunSummary, short: bool = False) -> str:
    """What the rule did to how many tokens, and to how much of the gradient. Short: with the region in a clause."""
    if summary.stopped_fraction is None:
        return ""
    one_update = summary.updates_per_batch == 1 and not summary.band_fraction
    did = [f"{_DID[effect]} {percent(share)}" for effect, share in summary.effects.items() if share > 0]
    untouched = not did and not summary.gradient_removed
    opening = ""
    if one_update:
        opening = "Each batch of rollouts got one update, so the ratio r was 1 throughout and bounds on it did nothing"
        if untouched:
            return f"{opening}; set update.epochs or update.minibatches above 1 for them to act."
        opening += ". All the same "
    who = "the rule and the rollout correction" if summary.removed_by_region.get("dropped") else "the rule"
    if untouched:
        return f"{_capital(who)} left the gradient of every token as it was."
    tokens = f"{joined(did)} of the tokens that had a signal" if did else "stopped no token"
    sentence = f"{opening}{who if opening else _capital(who)} {tokens}"
    if summary.gradient_removed is not None:
        sentence += (
            f"{', and' if len(did) > 1 else ' and'} took away {percent(summary.gradient_removed)} of the gradient"
        )
    most = summary.removed_most
    if short and most is not None:
        meaning = REGION_MEANING[most].replace("tokens", _those(summary))
        sentence += f"; {_of_removed(summary, most)} of that in the region {most} ({meaning})"
    return sentence + "."


def _when(summary: RunSummary) -> str:
    """From which update of a batch on: at the first one every ratio is 1."""
    number = len(summary.updates)
    if number < 2:
        return ""
    by_tokens = any(update.stopped_fraction > 0 for update in summary.updates)
    amounts = [update.stopped_fraction if by_tokens else update.gradient_removed for update in summary.updates]
    acting = [index for index, amount in enumerate(amounts) if amount > 0]
    if not acting:
        return ""
    peak = max(acting, key=lambda index: amounts[index])
    what = "of the tokens with a signal" if by_tokens else "of the gradient"
    most = f", most at the {ordinal(peak + 1)} ({percent(amounts[peak])} {what})"
    verb = "stops tokens" if by_tokens else "takes gradient"
    if acting[0] == 0:
        return f"It {verb} from the first update of each batch on{most}."
    if acting[0] == number - 1:
        return f"It {verb} at the last of the {number} updates of each batch only; at the first every r is 1."
    return (
        f"It {verb} from the {ordinal(acting[0] + 1)} of the {number} updates of each batch on{most}; at the first "
        "every r is 1."
    )


def _meaning(summary: RunSummary) -> str:
    """Where most of the gradient was taken, and what that means."""
    most = summary.removed_most
    if most is None or most not in _TAKEN_THERE:
        return ""
    what = _TAKEN_THERE[most].format(_those(summary))
    return f"{_capital(_of_removed(summary, most))} of the gradient it took lay in {most}: {what}."


def _those(summary: RunSummary) -> str:
    return "completions" if summary.of_sequences else "tokens"


def _of_removed(summary: RunSummary, region: str) -> str:
    share = summary.removed_by_region[region] / sum(summary.removed_by_region.values())
    return "all" if share == 1 else f"{share:.0%}" if share < 0.995 else "nearly all"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
