"""What a run's own tokens say about its bounds: what each value would have taken, by mistake and in all.

Shapes: N tokens.

Looked at are the updates from the second of each batch on: at the first every ratio is 1, and no bound can act. Every
decision is asked of the objective itself, on the recorded tokens (`lens.replay`), so what is said here of the value
that was set is what the run did.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dinghai.errors import DinghaiError
from dinghai.lens.epsilon_bounds import Bound
from dinghai.lens.noise import Apart
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.replay import Minibatch, joined
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

_LOST = [EFFECTS.index(name) for name in ("stopped", "reversed")]
TOKENS_AT_MOST = 1_000_000  # that are read, about; half a minute of work
_SEED = 0  # of the differences that are drawn: the same run gets the same advice


@dataclass(frozen=True)
class Taken:
    """What a value of a bound takes, first-order, of the tokens that the bound concerns."""

    stopped: float  # share of these tokens that lose their gradient
    gradient: float  # share of their gradient, f·|w0|·(1-p)
    gradient_of_all: float  # the same amount as a share of the gradient of all tokens
    by_update: dict[int, float]  # `gradient` by index of the update within its batch, from 0


class Evidence:
    """The tokens of some recorded steps, and what an objective decides on them.

    Args:
        reader: of the run's trace.
        steps: those that are looked at; damaged ones are passed over.
        policy_loss: the run's own.

    Of a large record one completion in `one_in` is looked at, unless the rule looks at whole minibatches.
    """

    def __init__(self, reader: TraceReader, steps: Sequence[int], policy_loss: PolicyLoss) -> None:
        self.policy_loss = policy_loss
        self.steps: list[int] = []
        self.updates_per_batch = 0
        self.one_in = 1 if policy_loss.rule.context is not None else _one_in(reader, steps)
        minibatches: list[Tokens] = []
        for step in steps:
            try:
                updates = reader.updates(step)
                found = [_chosen(read_tokens(reader, step, update), self.one_in) for update in updates[1:]]
            except DinghaiError:
                continue
            self.steps.append(step)
            self.updates_per_batch = max(self.updates_per_batch, len(updates))
            minibatches += [tokens for tokens in found if len(tokens)]
        # A rule that judges each sequence by itself may look at all minibatches at once, which is faster.
        if minibatches and policy_loss.rule.context is None:
            minibatches = [joined(minibatches)]
        self._tokens = minibatches
        self._plain = [Minibatch(tokens) for tokens in minibatches]
        self._noisy: dict[Apart, list[Minibatch]] = {}
        self._taken: dict[tuple[str, float], Taken] = {}

    @property
    def tokens_with_signal(self) -> int:
        return sum(int(tokens.signal.sum()) for tokens in self._tokens)

    @property
    def mean_length(self) -> float:
        """Of the completions that were read, in tokens; each counts once for every update that it is in."""
        sequences = sum(len(np.unique(tokens.sample)) for tokens in self._tokens)
        return sum(map(len, self._tokens)) / sequences if sequences else 0.0

    def taken(self, bound: Bound, value: float) -> Taken:
        """What the bound takes at a value, all else being as it was."""
        key = (bound.name, value)
        if key not in self._taken:
            self._taken[key] = self._ask(bound, value)
        return self._taken[key]

    def unreachable(self, bound: Bound) -> tuple[float, float] | None:
        """Good tokens so likely under π_old that even π_new = 1 leaves them within the upper bound.

        Their share of the good tokens, and of the gradient of these. None for a bound that has no upper side, or where
        the run has no good tokens.
        """
        if bound.side == "lower" or bound.sign < 0:
            return None
        objective = with_value(self.policy_loss, bound.name, bound.value)
        count = within = gradient = gradient_within = 0.0
        for tokens in self._tokens:
            certain = Minibatch(_with(tokens, logp_new=np.zeros_like(tokens.logp_new))).replay(objective).decided
            good_N = tokens.signal & (tokens.advantage > 0)
            within_N = good_N & (certain.region != REGIONS.index("overshoot"))
            count, within = count + good_N.sum(), within + within_N.sum()
            gradient, gradient_within = gradient + _sum(tokens, good_N), gradient_within + _sum(tokens, within_N)
        return (_share(within, count), _share(gradient_within, gradient)) if count else None

    @cached_property
    def kl_by_update(self) -> dict[int, float]:
        """KL(π_old || π_new) in nats a token, estimated by k3 on π_old's tokens, by index of the update."""
        return {int(update): float(np.mean(self._k3[self._update == update])) for update in np.unique(self._update)}

    def kl_share_beyond(self, bound: Bound) -> float | None:
        """The part of that KL that tokens hold which lie beyond the bound; None where the ratio does not decide it."""
        places = bound.log_ratios(bound.value)
        if not places or not self._k3.sum() > 0:
            return None
        beyond_N = np.zeros(len(self._k3), dtype=bool)
        for place in places:
            beyond_N |= (self._log_ratio > place) if place > 0 else (self._log_ratio < place)
        return float(self._k3[beyond_N].sum() / self._k3.sum())

    def mistaken(self, bound: Bound, value: float, noise: Apart) -> float:
        """The share of the tokens that a bound concerns which it stops by mistake because of a noise.

        The recorded log-ratios are taken for the true ones. To each is added a difference drawn from those between two
        evaluations of the same weights, and the objective is asked again: by mistake are tokens stopped that it would
        leave without the noise.
        """
        objective = with_value(self.policy_loss, bound.name, value)
        concerned = mistaken = 0
        for plain, noisy in zip(self._plain, self._with_noise(noise), strict=True):
            lost_N, concerned_N = _lost(plain.replay(objective).decided, bound)
            noisy_N, _ = _lost(noisy.replay(objective).decided, bound)
            concerned += int(concerned_N.sum())
            mistaken += int((noisy_N & ~lost_N).sum())
        return _share(mistaken, concerned)

    def _ask(self, bound: Bound, value: float) -> Taken:
        objective = with_value(self.policy_loss, bound.name, value)
        concerned = lost = whole = 0.0
        of_update: dict[int, list[float]] = {}  # index of the update -> [gradient, what is taken of it]
        for minibatch in self._plain:
            decided = minibatch.replay(objective).decided
            lost_N, concerned_N = _lost(decided, bound)
            beyond_N = concerned_N & _beyond(decided, bound)
            concerned += concerned_N.sum()
            lost += lost_N.sum()
            whole += _sum(decided, decided.signal)
            for update in np.unique(decided.update):
                here_N = decided.update == update
                so_far = of_update.setdefault(int(update), [0.0, 0.0])
                so_far[0] += _sum(decided, concerned_N & here_N)
                so_far[1] += _sum(decided, beyond_N & here_N, "removed")
        gradient, removed = (sum(pair[i] for pair in of_update.values()) for i in (0, 1))
        return Taken(
            stopped=_share(lost, concerned),
            gradient=_share(removed, gradient),
            gradient_of_all=_share(removed, whole),
            by_update={update: _share(taken, of_it) for update, (of_it, taken) in sorted(of_update.items())},
        )

    def _with_noise(self, noise: Apart) -> list[Minibatch]:
        """The same tokens as another evaluation of the same weights would have seen them."""
        if noise not in self._noisy:
            generator = np.random.default_rng(_SEED)
            shifted = [
                tokens.logp_new + noise.drawn(tokens.logp_new, tokens.sample, generator) for tokens in self._tokens
            ]
            self._noisy[noise] = [
                Minibatch(_with(tokens, logp_new=np.minimum(logp_N, np.float32(0))))
                for tokens, logp_N in zip(self._tokens, shifted, strict=True)
            ]
        return self._noisy[noise]

    @cached_property
    def _log_ratio(self) -> np.ndarray:
        """Of the tokens themselves, whatever ratio the rule looks at: [N] float64, finite, with `_update` and `_k3`."""
        found = [tokens.logp_new.astype(np.float64) - tokens.logp_old for tokens in self._tokens]
        return np.concatenate([x[np.isfinite(x)] for x in found]) if found else np.zeros(0)

    @cached_property
    def _update(self) -> np.ndarray:
        found = [tokens.update[np.isfinite(tokens.logp_new - tokens.logp_old)] for tokens in self._tokens]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int32)

    @cached_property
    def _k3(self) -> np.ndarray:
        return np.expm1(self._log_ratio) - self._log_ratio


def with_value(policy_loss: PolicyLoss, name: str, value: float) -> PolicyLoss:
    """The same objective with another value of one parameter of its rule."""
    other = copy.copy(policy_loss)
    other.parameters = dataclasses.replace(policy_loss.parameters, **{name: value})
    return other


def kl_at(bound: Bound, value: float) -> float | None:
    """KL(π_old || π_new) in nats that one token adds which lies on the bound, as k3 = r - 1 - log r estimates it.

    For the ratio of sequences the nats that the bound allows each token of an answer on average, |log s|. None where
    the ratio alone does not decide. Not a bound on the KL: where π_old is near 1/r, one token may add any amount.
    """
    places = bound.log_ratios(value)
    if not places:
        return value if bound.info.unit == "nats" else None
    if bound.of_sequences:
        return max(map(abs, places))
    return max(math.expm1(place) - place for place in places)


def _beyond(decided: Tokens, bound: Bound) -> np.ndarray:
    return np.isin(decided.region, [REGIONS.index(name) for name in bound.regions])


def _lost(decided: Tokens, bound: Bound) -> tuple[np.ndarray, np.ndarray]:
    """Tokens whose gradient the bound stops or turns round, and all that it concerns: [N] bool, [N] bool."""
    concerned_N = decided.signal & ((np.sign(decided.advantage) == bound.sign) | (bound.sign == 0))
    return concerned_N & _beyond(decided, bound) & np.isin(decided.effect, _LOST), concerned_N


def _one_in(reader: TraceReader, steps: Sequence[int]) -> int:
    rows = 0
    for step in steps:
        try:
            rows += reader.marker(step).tokens_recorded * (len(reader.updates(step)) - 1)
        except DinghaiError:
            continue
    return max(1, math.ceil(rows / TOKENS_AT_MOST))


def _chosen(tokens: Tokens, one_in: int) -> Tokens:
    """One completion in so many, without those that were never scored: nothing is known of their ratios."""
    # Ids are scattered first: neighbours may take turns in something.
    scattered_N = (tokens.sample.astype(np.uint64) * np.uint64(2654435761) >> np.uint64(16)) % np.uint64(one_in)
    chosen_N = tokens.scored & (scattered_N == 0)
    return tokens if chosen_N.all() else tokens.rows(np.flatnonzero(chosen_N))


def _with(tokens: Tokens, **columns: np.ndarray) -> Tokens:
    kept = {name: column for name, column in tokens.columns.items() if name != "log_ratio"}
    return Tokens(kept | columns)


def _sum(tokens: Tokens, which_N: np.ndarray, name: str = "gradient") -> float:
    values_N = tokens.removed if name == "removed" else tokens.gradient
    return float(np.sum(values_N[which_N & np.isfinite(values_N)], dtype=np.float64))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
