"""From what each value of a bound would take to the range that a run supports, and to a suggestion in it.

Within the range nothing is shown to be wrong with a value: there the one that was set is kept.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dinghai.lens.epsilon_advice import CRITERIA, BoundAdvice, NoAdvice, ValueRow
from dinghai.lens.epsilon_bounds import Bound, Published, published
from dinghai.lens.epsilon_evidence import Evidence, kl_at
from dinghai.lens.noise import Apart
from dinghai.lens.series import Row, first_tenth, last_tenth, steps_and_values
from dinghai.lens.words import percent
from dinghai.objective import PolicyLoss

CLIP_HIGHER = Published(0.28, "DAPO's clip-higher", "arXiv 2503.14476")


def advise_on(bounds: Sequence[Bound], evidence: Evidence, noise: Apart) -> list[BoundAdvice]:
    """The advice on each of a rule's bounds, by a noise."""
    ranges = [_range(bound, evidence, noise) for bound in bounds]
    of_one_paper = _paper_for_all(bounds, ranges, evidence.policy_loss)
    found: list[BoundAdvice] = []
    for bound, known in zip(bounds, ranges, strict=True):
        papers = published(bound, evidence.policy_loss.rule)
        suggestion: float | None = None
        reason = ""
        if known.nothing is None:
            suggestion, reason = _suggest(known, papers, of_one_paper.get(bound.name))
        shown = {bound.value, *(paper.value for paper in papers), known.low, known.high, suggestion} - {None}
        values = {
            value: ValueRow(evidence.taken(bound, value), evidence.mistaken(bound, value, noise), kl_at(bound, value))
            for value in sorted(value for value in shown if value is not None)
        }
        found.append(
            BoundAdvice(
                bound=bound,
                papers=papers,
                unreachable=evidence.unreachable(bound),
                kl_share_beyond=evidence.kl_share_beyond(bound),
                values=values,
                low=known.low,
                high=known.high,
                low_is_noise=known.low_is_noise,
                suggestion=suggestion,
                reason=reason,
                nothing=known.nothing,
            )
        )
    return found


@dataclass(frozen=True)
class _Range:
    bound: Bound
    low: float | None
    high: float | None
    low_is_noise: bool
    nothing: NoAdvice | None = None

    def holds(self, value: float) -> bool:
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def _range(bound: Bound, evidence: Evidence, noise: Apart) -> _Range:
    """From the first round value that is out of the noise and leaves most of the gradient to the last that acts."""
    values = bound.values
    quiet = _first(values, lambda value: evidence.mistaken(bound, value, noise) < CRITERIA["mistaken"].value)
    spares = _first(values, lambda value: evidence.taken(bound, value).gradient <= CRITERIA["takes_most"].value)
    idle = _first(values, lambda value: evidence.taken(bound, value).gradient < CRITERIA["takes_little"].value)
    nothing = _why_nothing(bound, values, quiet, spares, idle)
    if nothing is not None or quiet is None or spares is None:
        return _Range(bound, None, None, False, nothing)
    low = max(quiet, spares)
    return _Range(
        bound,
        None if low == values[0] else low,
        None if idle is None else values[values.index(idle) - 1],
        low_is_noise=quiet > spares,
    )


def _why_nothing(
    bound: Bound, values: Sequence[float], quiet: float | None, spares: float | None, idle: float | None
) -> NoAdvice | None:
    if spares is None:
        return NoAdvice(
            "beyond-all-values",
            f"Ratios run so far that {bound.name} takes more than half of the gradient of {bound.whose} at every "
            "value: no value mends that. Lower update.lr, or take fewer updates on each batch.",
        )
    if idle == values[0]:
        return NoAdvice(
            "idle",
            f"Ratios hardly leave 1: at no value does {bound.name} take {CRITERIA['takes_little'].value:.0%} of the "
            f"gradient of {bound.whose}, so none is better than another. Raise update.lr or the number of updates on "
            "each batch if the run learns too slowly; else leave it.",
        )
    if quiet is None or (idle is not None and quiet >= idle):
        return NoAdvice(
            "within-noise",
            f"Ratios move hardly further than two evaluations of the same weights differ: wherever {bound.name} takes "
            f"{CRITERIA['takes_little'].value:.0%} of the gradient of {bound.whose}, noise has it stop more than "
            f"{CRITERIA['mistaken'].value:.0%} of them by mistake. Mend the noise first, e.g. by model.dtype float32.",
        )
    return None


def _suggest(known: _Range, papers: Sequence[Published], of_one_paper: Published | None) -> tuple[float, str]:
    """A value in the range, or the one that was set where nothing is shown to be wrong with it; and why."""
    value = known.bound.value
    if known.holds(value):
        return value, "within the range, and nothing in this run speaks against that"
    who = next((paper.who for paper in papers if math.isclose(paper.value, value)), None)
    if who is not None and known.high is not None and value > known.high:
        return (
            value,
            f"beyond the range, so it takes little here; but it is known ({who}), and nothing speaks against it",
        )
    if of_one_paper is not None:
        return of_one_paper.value, f"{of_one_paper.who} ({of_one_paper.source}) lies within the range"
    inside = [value for value in known.bound.values if known.holds(value)]
    middle = math.sqrt(inside[0] * inside[-1])
    value = min(inside, key=lambda value: abs(math.log(value / middle)))
    return value, "the middle of its range, since no paper's values lie in the ranges"


def _paper_for_all(bounds: Sequence[Bound], ranges: Sequence[_Range], policy_loss: PolicyLoss) -> dict[str, Published]:
    """Bound -> its value in the first of the papers whose values all lie in their ranges: the rule's own, or another.

    Bounds belong together, so one half of a paper's pair is not taken without the other.
    """
    by_paper: dict[str, dict[str, Published]] = {}
    for bound in bounds:
        for paper in published(bound, policy_loss.rule):
            by_paper.setdefault(paper.who, {})[bound.name] = paper
    for papers in by_paper.values():
        if all(
            known.nothing is not None or (known.bound.name in papers and known.holds(papers[known.bound.name].value))
            for known in ranges
        ):
            return papers
    return {}


def with_wider_upper(found: list[BoundAdvice], rows: Sequence[Row]) -> tuple[list[BoundAdvice], str | None]:
    """The same, but for clip-higher's upper bound where the record speaks for it; and what of the record does.

    It does where entropy has fallen to less than half while the reward did not rise, and the upper bound, no wider than
    the lower one, takes the greater part of what the two take together.

    rows: of the metrics of the run's training steps.
    """
    by_side = {one.bound.side: one for one in found if one.bound.info.unit == "offset from 1"}
    upper, lower = by_side.get("upper"), by_side.get("lower")
    if upper is None or lower is None or upper.kind != "keep" or upper.bound.of_sequences:
        return found, None
    within = (upper.low or 0) <= CLIP_HIGHER.value <= (upper.high or math.inf)
    takes = [one.values[one.bound.value].taken.gradient_of_all for one in (upper, lower)]
    if not within or upper.bound.value > lower.bound.value or takes[0] <= takes[1]:
        return found, None
    entropy = [value for _, value in steps_and_values(rows, "entropy")]
    reward = [value for _, value in steps_and_values(rows, "reward/mean")]
    if len(entropy) < 10 or len(reward) < 10:
        return found, None
    (before, after), (reward_before, reward_after) = (
        (statistics.fmean(first_tenth(values)), statistics.fmean(last_tenth(values))) for values in (entropy, reward)
    )
    if after > CRITERIA["entropy"].value * before or reward_after > reward_before:
        return found, None
    wider = replace(upper, suggestion=CLIP_HIGHER.value, reason=f"{CLIP_HIGHER.who} ({CLIP_HIGHER.source})")
    sentence = (
        f"Entropy fell from {before:.2g} to {after:.2g} nats while the reward did not rise, and {upper.bound.name} "
        f"takes {percent(takes[0])} of the gradient against the {percent(takes[1])} of {lower.bound.name}. A tight "
        "upper bound lowers entropy (arXiv 2509.26114), so a wider one is worth a trial."
    )
    return [wider if one is upper else one for one in found], sentence


def _first(values: Sequence[float], holds: Callable[[float], bool]) -> float | None:
    """The first value from which on a condition holds that stays true once it is; None where it never does."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(values[middle]) else (middle + 1, high)
    return values[low] if low < len(values) else None
