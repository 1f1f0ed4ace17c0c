"""What an objective decides about the very tokens of a recorded run: the run's own, or one that was never run.

Shapes: N tokens as recorded, of one update or of several; M of them the objective looks at; P parts; K sums.

It is `dinghai.objective` that decides, on the columns that the trace keeps to the last bit. So the run's own settings
give the decisions that were recorded, and what is derived of others comes from `lens.tokens`, as everywhere.

A replay is first-order: the tokens, and from the second update on their log-probs, are those that the recorded
objective led to. What another objective would have made of later updates, no trace knows.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinghai.config.load import CONFIG_FILE, settings_from_json
from dinghai.config.settings import TrainSettings
from dinghai.configured import build_policy_loss
from dinghai.errors import InputError
from dinghai.lens.regions import EFFECTS, REGIONS, region_name
from dinghai.lens.replay_sums import KEYS, SIGNAL_REGIONS, Replayed, cosine, own_sums_of, sums_of
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import RULES, Decision, Effect, Layout, PolicyLoss, Region
from dinghai.objective.correction import Correction, CorrectionInputs, RolloutCorrection
from dinghai.trace import TraceReader
from dinghai.trace.schema import SIGNIFICANT_BITS
from dinghai.trace.writer import round_to_bits

FIRST_ORDER = (
    "A replay is first-order. The decisions are exactly those that the other objective takes on these tokens; but from "
    "the second update of a batch on, and in every later step, its own updates would have led to other weights, and so "
    "to other tokens and ratios. The later, the more of an estimate."
)

__all__ = [
    "FIRST_ORDER",
    "KEYS",
    "SIGNAL_REGIONS",
    "AsRecorded",
    "Minibatch",
    "Replayed",
    "caught_warnings",
    "cosine",
    "joined",
    "objective_of",
    "own_sums_of",
    "recorded_objective",
    "recorded_settings",
    "replay",
    "sums_of",
]

_TOKENS_A_THREAD = 200_000
_catching = threading.Lock()  # the list of warning filters is the whole process's

_MASKED, _NO_SIGNAL = REGIONS.index("masked"), REGIONS.index("no_signal")
_NO_EFFECT = EFFECTS.index("none")
_REGION_PLACE = np.array([REGIONS.index(region_name(region.name)) for region in sorted(Region)], dtype=np.int64)
_EFFECT_PLACE = np.array([EFFECTS.index(effect.name.lower()) for effect in sorted(Effect)], dtype=np.int64)


@dataclass(frozen=True)
class AsRecorded:
    """The run's own rollout correction. Its factors are taken from the trace, which keeps them to 16 significant bits.

    They were computed from the engine's log-probs, of which the trace keeps 2**-19 nats: a sequence of a thousand
    tokens may lose 10 bits of its product by that.
    """

    correction: RolloutCorrection

    def __call__(self, x: CorrectionInputs) -> Correction:
        return self.correction(x)


def recorded_settings(run_folder: Path) -> TrainSettings:
    """The settings of a run, from its config.json.

    Raises:
        InputError: they are missing, damaged, or of a rule that is not registered.
    """
    path = Path(run_folder) / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read, so it is not known what the run's objective was") from error
    settings = settings_from_json(text, str(path))
    rule = settings.objective.rule
    if rule not in RULES:
        raise InputError(
            f"the run's rule {rule!r} is none of Dinghai's: give the file that registers it with --rule-file"
        )
    return settings


def recorded_objective(run_folder: Path) -> PolicyLoss:
    """The run's own policy loss, without its KL penalty: what the rule decides does not depend on it.

    Its rollout correction, if it has one, is `AsRecorded`.

    Raises:
        InputError: its config.json is missing, damaged, or of a rule that is not registered.
    """
    return objective_of(recorded_settings(run_folder))


def objective_of(settings: TrainSettings) -> PolicyLoss:
    """As `recorded_objective`, from the run's settings. Says nothing about odd values: the run was told."""
    without_kl = settings.objective.kl.model_copy(update={"beta": 0.0})
    objective = settings.objective.model_copy(update={"kl": without_kl})
    with caught_warnings():
        policy_loss = build_policy_loss(settings.model_copy(update={"objective": objective}))
    if policy_loss.correction is not None:
        policy_loss.correction = AsRecorded(policy_loss.correction)
    return policy_loss


@contextlib.contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """What an objective says of its values when it is made, instead of a warning. One thread at a time."""
    said: list[str] = []
    with _catching, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
        said += [str(one.message) for one in caught]


def replay(reader: TraceReader, step: int, update: int, policy_loss: PolicyLoss) -> Replayed:
    """What an objective decides on the tokens of one update.

    Tokens that the model never read have no advantage, and stay without a signal. A rule that looks at the whole
    minibatch (BAPO, M2PO, Clip-Cov, KL-Cov) looks at what is recorded and scored of it.

    Raises:
        InputError: there is no such step or update.
        RunFailed: a file is damaged.
    """
    return Minibatch(read_tokens(reader, step, update)).replay(policy_loss)


class Minibatch:
    """The tokens of an update, or of several, packed for the objective, which may be asked again and again.

    Args:
        tokens: all columns; ids of samples are unique. Only a rule that judges each sequence by itself can be asked
            about the tokens of several updates together: see `joined`.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        order_N = np.lexsort((tokens.position, tokens.sample))
        counts_N = tokens.region != _MASKED
        self._scored_M = order_N[(counts_N & tokens.scored)[order_N]]
        self._layout = _layout(tokens, self._scored_M)
        self._all = order_N[counts_N[order_N]]
        columns = ("logp_new", "logp_old", "logp_sampler", "advantage")
        self._columns = {name: self._packed(tokens.column(name)) for name in columns}

    def replay(self, policy_loss: PolicyLoss) -> Replayed:
        """What the objective decides."""
        tokens = self.tokens
        log_ratio_N = np.full(len(tokens), np.nan, dtype=np.float32)
        log_ratio_N[tokens.region == _MASKED] = 0
        weight_N, correction_N = np.zeros((2, len(tokens)), dtype=np.float32)
        region_N = np.where(tokens.region == _MASKED, _MASKED, _NO_SIGNAL)
        effect_N = np.full(len(tokens), _NO_EFFECT, dtype=np.int64)
        factor_N = np.zeros(len(tokens), dtype=np.float32)
        here_M = self._scored_M
        if len(self._all):
            factor_N[self._all] = policy_loss.reduction.factor(_layout(tokens, self._all)).numpy()
        if len(here_M):
            decision = self._decide(policy_loss)
            log_ratio_N[here_M] = decision.log_ratio.numpy()
            weight_N[here_M] = decision.weight.numpy()
            region_N[here_M] = _REGION_PLACE[decision.region.numpy()]
            effect_N[here_M] = _EFFECT_PLACE[decision.effect.numpy()]
            if decision.correction is not None:
                correction_N[here_M] = decision.correction.numpy()
        columns = dict(tokens.columns) | {
            "log_ratio": log_ratio_N,
            "weight": round_to_bits(weight_N, SIGNIFICANT_BITS["weight"]),
            "region": region_N,
            "effect": effect_N,
            "factor": factor_N,
        }
        columns.pop("correction", None)
        if policy_loss.correction is not None:
            columns["correction"] = correction_N
        return Replayed(tokens, Tokens(columns))

    @torch.no_grad()
    def _decide(self, policy_loss: PolicyLoss) -> Decision:
        """The objective's record of the scored tokens, [M]."""
        columns = self._columns
        if isinstance(policy_loss.correction, AsRecorded) and self.tokens.correction is not None:
            policy_loss = copy.copy(policy_loss)
            policy_loss.correction = _Factors(self._packed(self.tokens.correction))
        with _as_many_threads_as_pay(len(self._scored_M)):
            return policy_loss(
                logp_new=columns["logp_new"],
                logp_old=columns["logp_old"],
                advantage=columns["advantage"],
                logp_sampler=None if policy_loss.correction is None else columns["logp_sampler"],
                layout=self._layout,
            ).decision

    def _packed(self, column_N: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(column_N[self._scored_M]))


@contextlib.contextmanager
def _as_many_threads_as_pay(tokens: int) -> Iterator[None]:
    """Of torch's threads one for each so many tokens: on fewer they would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, tokens // _TOKENS_A_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Factors:
    """A rollout correction whose factors are known."""

    factor_M: Tensor

    def __call__(self, x: CorrectionInputs) -> Correction:
        return Correction(self.factor_M, self.factor_M == 0)


def _layout(tokens: Tokens, rows_M: np.ndarray) -> Layout:
    """The sequences of rows that are ordered by sample."""
    sample_M = tokens.sample[rows_M]
    starts = np.flatnonzero(np.diff(sample_M)) + 1
    cu_seqlens = torch.from_numpy(np.concatenate([[0], starts, [len(rows_M)]]).astype(np.int64))
    return Layout.packed(torch.Size([len(rows_M)]), cu_seqlens)


def joined(minibatches: Sequence[Tokens]) -> Tokens:
    """The tokens of several updates as one, end to end; samples are numbered anew, so that each stays on its own.

    Columns that not all of them have are left out.
    """
    names = set.intersection(*(set(tokens.columns) for tokens in minibatches))
    columns = {name: np.concatenate([tokens.column(name) for tokens in minibatches]) for name in names - {"sample"}}
    samples, taken = [], 0
    for tokens in minibatches:
        samples.append(tokens.sample.astype(np.int64) + taken)
        taken += int(tokens.sample.max(initial=-1)) + 1
    return Tokens(columns | {"sample": np.concatenate(samples)})
