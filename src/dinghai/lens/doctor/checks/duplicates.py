"""Checks of completions that are the same: more often than their probabilities say, or with other log-probs.

Shapes: N tokens, S completions, G groups.

Of short answers many are equal by right: two draws of one prompt are equal with the probability Σ p(y)², which the mean
of p(y) over the draws estimates without bias. What exceeds it by far is not drawn independently.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.checks.places import first_rows
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.tokens import Tokens
from dinghai.lens.words import counted, percent

_SIGMAS = Threshold(
    5.0, "standard errors over groups by which equal pairs exceed what their probabilities predict", "statistics"
)
_EXCESS = Threshold(
    0.05,
    "of all pairs of a group, beyond what is predicted: less does not change a group's advantages much",
    "arithmetic",
)
_LEAST_GROUPS = Threshold(8, "groups that are needed for a standard error over them", "statistics")
_SAME = Threshold(0.9, "of the groups have one completion only: nothing is left to compare", "arithmetic")
_LIKELY = Threshold(
    0.5, "probability that two draws are equal: below it, equal ones are not for want of entropy", "arithmetic"
)
_LOGP = Threshold(
    0.1, "nats on a token of two equal completions of one prompt; bfloat16 scatters by a tenth of it", "measured here"
)


@dataclass(frozen=True)
class _Group:
    """The completions of one prompt, as far as they are recorded whole."""

    step: int
    group: int
    equal: tuple[int, int] | None  # two samples that are equal
    size: int
    equal_pairs: int
    predicted: float  # share of pairs, 0 to 1
    kinds: int  # different completions
    furthest: float  # nats, largest difference of a token's log-prob between equal completions
    furthest_at: tuple[int, int] | None  # sample and position

    @property
    def pairs(self) -> int:
        return self.size * (self.size - 1) // 2


_found: WeakKeyDictionary[Case, list[_Group]] = WeakKeyDictionary()  # three checks ask for the same


def _groups(case: Case) -> list[_Group]:
    if case not in _found:
        _found[case] = _read_groups(case)
    return _found[case]


def _read_groups(case: Case) -> list[_Group]:
    found: list[_Group] = []
    for step in case.steps:
        tokens = case.tokens(step)
        samples = case.samples(step, ["sample", "group", "tokens"])
        if tokens is None or samples is None:
            continue
        texts, logps = _completions(
            tokens, dict(zip(*(samples[n].to_pylist() for n in ("sample", "tokens")), strict=True))
        )
        members: dict[int, list[int]] = defaultdict(list)
        for sample, group in zip(samples["sample"].to_pylist(), samples["group"].to_pylist(), strict=True):
            if sample in texts:
                members[group].append(sample)
        found += [_of_group(step, group, mine, texts, logps) for group, mine in members.items() if len(mine) > 1]
    return found


def _completions(tokens: Tokens, lengths: dict[int, int]) -> tuple[dict[int, bytes], dict[int, np.ndarray]]:
    """Token ids and log π_sampler of each completion that is recorded whole, by sample."""
    tokens = tokens.rows(first_rows(tokens))
    sample_N, token_N, logp_N = tokens.sample, tokens.token, tokens.logp_sampler.astype(np.float64)
    ids, starts = np.unique(sample_N, return_index=True)
    ends = [*starts[1:].tolist(), len(sample_N)]
    texts, logps = {}, {}
    for sample, start, end in zip(ids.tolist(), starts.tolist(), ends, strict=True):
        if end - start == lengths.get(sample):
            texts[sample], logps[sample] = token_N[start:end].tobytes(), logp_N[start:end]
    return texts, logps


def _of_group(step: int, group: int, ids: list[int], texts: dict[int, bytes], logps: dict[int, np.ndarray]) -> _Group:
    kinds: dict[bytes, list[int]] = defaultdict(list)
    for sample in ids:
        kinds[texts[sample]].append(sample)
    predicted = [min(1.0, math.exp(total)) for sample in ids if not math.isnan(total := float(logps[sample].sum()))]
    furthest, at = 0.0, None
    for same in kinds.values():
        for sample in same[1:]:
            with np.errstate(invalid="ignore"):  # of two log-probs of -inf the difference is NaN
                apart = np.abs(logps[sample] - logps[same[0]])
            if len(apart) and np.nanmax(apart, initial=0.0) > furthest:
                furthest, at = float(np.nanmax(apart)), (sample, int(np.nanargmax(apart)))
    twins = next(((same[0], same[1]) for same in kinds.values() if len(same) > 1), None)
    return _Group(
        step,
        group,
        twins,
        len(ids),
        sum(len(same) * (len(same) - 1) // 2 for same in kinds.values()),
        sum(predicted) / len(predicted) if predicted else math.nan,
        len(kinds),
        furthest,
        at,
    )


def _more_than_drawn(case: Case) -> Finding | None:
    """Equal completions that independent draws would not give."""
    groups = [one for one in _groups(case) if math.isfinite(one.predicted)]
    if len(groups) < _LEAST_GROUPS.value:
        return None
    # Of each group: its share of equal pairs less the predicted one; 0 in the mean for independent draws.
    excess_G = np.array([one.equal_pairs / one.pairs - one.predicted for one in groups])
    excess, noise = float(excess_G.mean()), float(excess_G.std(ddof=1)) / math.sqrt(len(groups))
    if excess < _EXCESS.value or excess < _SIGMAS.value * noise:
        return None
    equal = sum(one.equal_pairs for one in groups) / sum(one.pairs for one in groups)
    worst = groups[int(np.argmax(excess_G))]
    return Finding(
        check="duplicates",
        grade=Grade.INVALID,
        share=min(1.0, excess),
        title="Completions of a prompt are copies of each other",
        evidence=(
            Evidence(
                f"{percent(equal)} of the pairs of completions of one prompt are equal token for token, and their "
                f"probabilities predict {percent(max(0.0, equal - excess))}"
            ),
            Evidence(
                f"the {worst.size} completions of prompt {worst.group} at step {worst.step} are "
                f"{'all the same' if worst.kinds == 1 else f'{worst.kinds} different ones'}, with a predicted share of "
                f"equal pairs of {percent(worst.predicted)}",
                Place(worst.step, group=worst.group, sample=worst.equal[1] if worst.equal else None),
            ),
        ),
        cause="They are not drawn independently (one seed for several, a cache of answers), or log π_sampler is not of "
        "the distribution that was drawn from",
        fix="give each completion random numbers of its own, such as a seed for each request to the engine, and check "
        "that its log-probs are those after temperature, top-p and top-k",
        view="tokens",
    )


def _all_the_same(case: Case) -> Finding | None:
    """Nearly every group has one completion only, as its probabilities say: nothing is left to explore."""
    late = _last_steps(_groups(case))
    if len(late) < _LEAST_GROUPS.value or case.solved:
        return None
    same = [one for one in late if one.kinds == 1 and one.predicted > _LIKELY.value]
    if len(same) < _SAME.value * len(late):
        return None
    return Finding(
        check="identical-groups",
        grade=Grade.HARMFUL,
        share=len(same) / len(late),
        title="Nearly all prompts are answered in one way only",
        evidence=(
            Evidence(
                f"in {counted(len(same), 'group')} of {len(late):,} of the last steps looked at all completions are "
                "equal token for token",
                Place(same[-1].step, group=same[-1].group),
            ),
        ),
        cause="The policy has no entropy left at these prompts, so a group has nothing to compare",
        fix="try a higher rollout.temperature, an objective.entropy_bonus, other prompts, or an earlier checkpoint",
        view="tokens",
    )


def _last_steps(groups: list[_Group]) -> list[_Group]:
    """Of the last quarter of the steps that are looked at."""
    steps = sorted({one.step for one in groups})
    late = set(steps[-max(1, len(steps) // 4) :])
    return [one for one in groups if one.step in late]


def _same_text_other_logp(case: Case) -> Finding | None:
    """Equal completions of one prompt have equal log-probs."""
    groups = [one for one in _groups(case) if one.equal is not None]
    far = [one for one in groups if one.furthest > _LOGP.value]
    if not far:
        return None
    worst = max(far, key=lambda one: one.furthest)
    assert worst.furthest_at is not None
    sample, position = worst.furthest_at
    return Finding(
        check="same-text-other-log-probs",
        grade=Grade.INVALID,
        share=len(far) / len(groups),
        title="Equal completions of one prompt have other log-probs",
        evidence=(
            Evidence(
                f"in {len(far):,} of {counted(len(groups), 'group')} with equal completions the engine's log-probs of "
                f"the same token differ by more than {_LOGP.value:g}, at most by {worst.furthest:.2g} nats",
                Place(worst.step, group=worst.group, sample=sample, position=position),
            ),
        ),
        cause="The engine read another prompt or used other weights for one of them (as when weights change while it "
        "samples), or reported another completion's log-probs",
        fix="check which prompt and which weights each completion was sampled with, and which row its log-probs are of",
        view="tokens",
    )


CHECKS = (
    Check(
        "duplicates",
        "Completions of one prompt are equal more often than independent draws are.",
        {"sigmas": _SIGMAS, "excess": _EXCESS, "groups": _LEAST_GROUPS},
        _more_than_drawn,
        of_tokens=True,
    ),
    Check(
        "identical-groups",
        "Nearly all prompts are answered in one way only, though the task is not solved.",
        {"same": _SAME, "likely": _LIKELY, "groups": _LEAST_GROUPS},
        _all_the_same,
        of_tokens=True,
    ),
    Check(
        "same-text-other-log-probs",
        "The engine gives equal completions of one prompt other log-probs.",
        {"logp": _LOGP},
        _same_text_other_logp,
        of_tokens=True,
    ),
)
