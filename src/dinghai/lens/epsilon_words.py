"""Advice on ε in sentences."""

from __future__ import annotations

from dinghai.lens.epsilon_advice import CRITERIA, Advice, BoundAdvice
from dinghai.lens.words import joined, percent

FIRST_ORDER = (
    "First-order: other bounds would have led later updates elsewhere. Train with the advice, then ask the new run."
)

_LONG = 500  # tokens of an answer, from which on GSPO's own values were found for such answers


def number(value: float) -> str:
    """A value of a bound: 0.0003, 0.2, 1.5, 10."""
    return f"{value:.12g}" if abs(value) >= 1e-4 else f"{value:.6g}"


def sentences(advice: Advice) -> list[str]:
    """What is advised, what would change at the ends of the ranges, and what else speaks for and against."""
    if advice.nothing is not None:
        return [advice.nothing.sentence]
    found = [verdict(advice)]
    found += [advice.widened] if advice.widened else []
    found += [text for one in advice.bounds for text in [ends(one)] if text]
    found += [text for text in (noise(advice), unreachable(advice), kl(advice), length(advice)) if text]
    return [*found, FIRST_ORDER]


def verdict(advice: Advice) -> str:
    """What to keep and what to set, each with its reason; or why a bound gets no advice."""
    parts = []
    for kind, verb in (("change", "Set"), ("keep", "Keep")):
        by_reason: dict[str, list[str]] = {}
        for one in advice.bounds:
            if one.kind == kind and one.suggestion is not None:
                by_reason.setdefault(one.reason, []).append(f"{one.bound.name} {number(one.suggestion)}")
        parts += [f"{verb} {joined(names)}: {reason}." for reason, names in by_reason.items()]
    parts += [one.nothing.sentence for one in advice.bounds if one.nothing is not None]
    return " ".join(parts)


def ends(one: BoundAdvice) -> str:
    """What would change at the ends of a range."""
    if one.nothing is not None:
        return ""
    whose = one.bound.whose
    little, many = CRITERIA["takes_little"].value, CRITERIA["mistaken"].value
    if one.low is None:
        low = f"no value is too tight, as none takes more than half of the gradient of {whose}"
    elif one.low_is_noise:
        low = f"below {number(one.low)} noise has it stop more than {many:.0%} of {whose} by mistake"
    else:
        low = f"below {number(one.low)} it takes more than half of the gradient of {whose}"
    high = (
        "no value is too wide to act" if one.high is None else f"above {number(one.high)} less than {little:.0%} of it"
    )
    if one.low_is_noise and one.high is not None:
        high = f"above {number(one.high)} it takes less than {little:.0%} of their gradient"
    return f"{one.bound.name}: {low}; {high}."


def noise(advice: Advice) -> str:
    """How far apart two evaluations lie, and what that has the bounds do."""
    row = advice.noises[0]
    worst, far = max(row.mistaken.values()), row.known.apart.quantile(0.99)
    apart = f"differ by less than {far:.1g} nats" if far > 0 else "are equal"
    mistakes = f"as set, {percent(worst)} are stopped by mistake" if worst > 0 else "as set, none is stopped by mistake"
    return (
        f"Two evaluations of the same weights ({row.known.source}) {apart} in 99 of 100 {row.known.apart.what}: "
        f"{mistakes}."
    )


def unreachable(advice: Advice) -> str:
    """The likely tokens that the upper bound never stops."""
    for one in advice.bounds:
        if one.unreachable is not None and one.unreachable[0] > 0:
            tokens, gradient = one.unreachable
            return (
                f"{percent(tokens)} of the good tokens, with {percent(gradient)} of their gradient, are so likely "
                f"already that {one.bound.name} {number(one.bound.value)} can never stop them, even at probability 1."
            )
    return ""


def kl(advice: Advice) -> str:
    """The KL that was measured, and how much of it the bounds do not see."""
    if not advice.kl_by_update:
        return ""
    last = max(advice.kl_by_update)
    beyond = [
        f"{percent(one.kl_share_beyond)} of it on tokens beyond {one.bound.name}"
        for one in advice.bounds
        if one.kl_share_beyond is not None and not one.bound.of_sequences
    ]
    text = f"KL(old || new) was {advice.kl_by_update[last]:.2g} nats a token in update {last + 1} of a batch"
    return f"{text}, {joined(beyond)}: a clip ends gradients, it does not bound the KL." if beyond else f"{text}."


def length(advice: Advice) -> str:
    """What papers found for the ratio of sequences, and why that does not carry over to answers of other lengths."""
    if advice.policy_loss.ratio not in ("sequence", "sequence-token"):
        return ""
    text = "Papers disagree tenfold on the ratio of sequences: GSPO has 0.0003 and 0.0004, ScaleRL 0.004 and 0.005."
    if advice.mean_length > _LONG:
        return text
    return (
        f"{text} Both are for answers of thousands of tokens; the mean over the {advice.mean_length:.0f} tokens of an "
        "answer here spreads further, so wider bounds come out here."
    )
