"""What happened in a step: one record for the metrics and the trace, filled by the loop as it goes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinghai.objective import PolicyLossOutput, Stats, ValueLossOutput, ValueStats
from dinghai.objective.correction_stats import CorrectionStats
from dinghai.objective.ratio import RatioLevel
from dinghai.objective.stats import on_grid
from dinghai.trace import BackgroundWriter, Samples
from dinghai.train.batch import Batch
from dinghai.train.collect import Collected


class StepRecord:
    """Sums of a step, by update index and in all; the trace is written through it.

    ratio: the level of the ratio that the rule acts on
    """

    def __init__(self, step: int, collected: Collected, trace: BackgroundWriter | None, ratio: RatioLevel) -> None:
        self.step, self.batch = step, collected.batch
        self.discarded_groups, self.rollout_seconds = collected.discarded_groups, collected.seconds
        self.left_early = False
        self.no_signal_fraction = 0.0
        self.beta: float | None = None  # of the KL to the reference in this step, where there is one
        self.updates: list[_Update] = []
        self._trace = trace
        self._own_ratio = ratio == "token"  # then log_ratio is logp_new - logp_old to the bit, and not stored again
        if trace is not None:
            trace.begin_step(step, _trace_samples(self.batch))
            ids = itertools.chain.from_iterable(sequence.completion_ids for sequence in self.batch.sequences)
            self._token_N = np.fromiter(ids, np.int32, self.batch.tokens)
            self._logp_sampler_N = self.batch.logp_sampler_N.numpy()

    def advantages(self, advantage_N: Tensor) -> None:
        """Notes the share of the groups whose advantages are all exactly 0: nothing is learned from them."""
        signal_B = np.zeros(self.batch.samples, dtype=bool)
        signal_B[self.batch.sample_N(range(self.batch.samples))[(advantage_N != 0).numpy()]] = True
        with_signal = {group for group, signal in zip(self.batch.groups, signal_B, strict=True) if signal}
        self.no_signal_fraction = 1 - len(with_signal) / len(set(self.batch.groups))

    def begin_update(self, index: int, epoch: int, minibatch: int) -> None:
        """Closes the update before and opens the next."""
        self._write_trace()
        self.updates.append(_Update(index, epoch, minibatch))

    def policy_tokens(
        self, chosen: list[int], logp_new_N: Tensor, logp_old_N: Tensor, entropy_N: Tensor, out: PolicyLossOutput
    ) -> None:
        """A micro-batch of the current update."""
        update = self.updates[-1]
        self._add_stats(out)
        signal_N = out.decision.mask & (out.decision.advantage != 0)
        update.entropy += float(on_grid(torch.where(signal_N, entropy_N.detach(), 0.0)).sum())
        update.signal_tokens += int(signal_N.sum())
        if self._trace is not None:
            update.columns.append(self._trace_columns(chosen, logp_new_N, logp_old_N, entropy_N, out))

    def unscored_tokens(self, chosen: list[int], out: PolicyLossOutput) -> None:
        """Samples of the current update without any advantage, which the policy never read."""
        self._add_stats(out)
        if self._trace is not None:
            unknown_N = torch.full(out.factor.shape, math.nan)
            columns = self._trace_columns(chosen, unknown_N, unknown_N, unknown_N, out)
            columns["scored"] = np.zeros(len(unknown_N), dtype=bool)
            self.updates[-1].columns.append(columns)

    def _add_stats(self, out: PolicyLossOutput) -> None:
        update = self.updates[-1]
        update.stats.append(out.stats)
        if out.correction_stats is not None:
            update.correction_stats.append(out.correction_stats)

    def _trace_columns(
        self, chosen: list[int], logp_new_N: Tensor, logp_old_N: Tensor, entropy_N: Tensor, out: PolicyLossOutput
    ) -> dict[str, np.ndarray]:
        """What the trace keeps of a micro-batch, [N] on the CPU."""
        decision = out.decision
        columns = {
            "logp_new": logp_new_N,
            "logp_old": logp_old_N,
            "advantage": decision.advantage,
            "weight": decision.weight,
            "region": decision.region,
            "effect": decision.effect,
            "entropy": entropy_N,
            "log_ratio": None if self._own_ratio else decision.log_ratio,
            "factor": out.factor,
            "correction": decision.correction,
            "kl_weight": decision.kl_weight,
        }
        piece = {name: value.detach().cpu().numpy() for name, value in columns.items() if value is not None}
        batch, sample_N = self.batch, self.batch.sample_N(chosen)
        length_B = batch.length_B[chosen]
        position_N = np.arange(len(sample_N)) - np.repeat(np.cumsum(length_B) - length_B, length_B)
        here = batch.start_B[sample_N] + position_N
        piece |= {"sample": sample_N, "position": position_N}
        piece |= {"token": self._token_N[here], "logp_sampler": self._logp_sampler_N[here]}
        return piece

    def value_tokens(self, out: ValueLossOutput) -> None:
        """A micro-batch of the critic in the current update."""
        self.updates[-1].value_stats.append(out.stats)

    def learner_step(self, name: str, lr: float, grad_norm: Tensor) -> None:
        """The policy's or the critic's optimiser step that ends the current update."""
        prefix = "" if name == "policy" else f"{name}/"
        self.updates[-1].learner |= {f"{prefix}lr": lr, f"{prefix}grad_norm": float(grad_norm)}

    def kl_of_update(self) -> float:
        """KL(old || new) of the current update's minibatch so far, k3, nats a token."""
        return _clip_metrics([self.updates[-1]]).get("kl_old_new_k3", 0.0)

    def kl_to_reference(self) -> float | None:
        """The mean over the step's updates so far, by the estimator of the settings, nats a token.

        None: no token counts in the loss.
        """
        return next((v for name, v in _clip_metrics(self.updates).items() if name.startswith("kl_ref")), None)

    def finish(self) -> dict[str, Any]:
        """Closes the trace of the step and returns its line of metrics.jsonl."""
        self._write_trace()
        if self._trace is not None:
            self._trace.finish_step()
        metrics: dict[str, Any] = {"step": self.step, **_batch_metrics(self.batch)}
        metrics["groups/no_signal_fraction"] = self.no_signal_fraction
        if self.discarded_groups:
            metrics["groups/discarded"] = self.discarded_groups
        clip = _clip_metrics(self.updates)
        metrics |= {"tokens/loss": clip.pop("tokens"), "tokens/signal": clip.pop("signal_tokens")}
        metrics |= _entropy_metrics(self.updates)
        metrics |= {name if name.startswith("kl_ref") else f"clip/{name}": value for name, value in clip.items()}
        if self.beta is not None:
            metrics["kl_ref_beta"] = self.beta
        metrics |= _correction_metrics(self.updates)
        metrics |= self._learner_metrics()
        metrics["updates"] = len(self.updates)
        metrics["left_early"] = self.left_early
        metrics["seconds/rollout"] = round(self.rollout_seconds, 4)
        metrics["by_update"] = [u.metrics() for u in self.updates]
        return metrics

    def _learner_metrics(self) -> dict[str, float]:
        """Learning rates, mean gradient norms, and the critic's figures over all updates of the step."""
        metrics: dict[str, float] = {}
        for name in self.updates[-1].learner:
            values = [u.learner[name] for u in self.updates]
            metrics[name if name.endswith("lr") else f"{name}_mean"] = math.fsum(values) / len(values)
        value_stats = [stats for u in self.updates for stats in u.value_stats]
        if value_stats:
            metrics |= {
                f"critic/{name}": value for name, value in sum(value_stats[1:], value_stats[0]).metrics().items()
            }
        return metrics

    def _write_trace(self) -> None:
        if self._trace is None or not self.updates or not self.updates[-1].columns:
            return
        update = self.updates[-1]
        if any("scored" in piece for piece in update.columns):
            for piece in update.columns:
                piece.setdefault("scored", np.ones(len(piece["sample"]), dtype=bool))
        columns = {name: np.concatenate([piece[name] for piece in update.columns]) for name in update.columns[0]}
        sample_N = columns.pop("sample")
        self._trace.add_update(update.index, columns, sample_N)
        update.columns.clear()


class _Update:
    """Sums of one update (one minibatch)."""

    def __init__(self, index: int, epoch: int, minibatch: int) -> None:
        self.index, self.epoch, self.minibatch = index, epoch, minibatch
        self.stats: list[Stats] = []
        self.correction_stats: list[CorrectionStats] = []
        self.entropy = 0.0  # sum over the tokens with a signal
        self.signal_tokens = 0
        self.value_stats: list[ValueStats] = []
        self.learner: dict[str, float] = {}
        self.columns: list[dict[str, np.ndarray]] = []

    def metrics(self) -> dict[str, Any]:
        place = {"update": self.index, "epoch": self.epoch, "minibatch": self.minibatch}
        measured = _clip_metrics([self]) | _correction_metrics([self]) | _entropy_metrics([self])
        return {**place, **measured, **self.learner}


def _clip_metrics(updates: list[_Update]) -> dict[str, float]:
    """The statistics of the updates together."""
    stats = [one for update in updates for one in update.stats]
    return sum(stats[1:], stats[0]).metrics() if stats else {}


def _entropy_metrics(updates: list[_Update]) -> dict[str, float]:
    """The mean entropy of the policy at the updates' tokens with a signal; nothing where there is none."""
    tokens = sum(update.signal_tokens for update in updates)
    return {"entropy": sum(update.entropy for update in updates) / tokens} if tokens else {}


def _correction_metrics(updates: list[_Update]) -> dict[str, float]:
    """What the rollout correction met and did in the updates together; nothing where there is none."""
    stats = [one for update in updates for one in update.correction_stats]
    metrics = sum(stats[1:], stats[0]).metrics() if stats else {}
    return {f"correction/{name}": value for name, value in metrics.items() if name != "tokens"}


def _batch_metrics(batch: Batch) -> dict[str, float]:
    rewards = batch.rewards
    metrics = {
        "reward/mean": math.fsum(rewards.total) / batch.samples,
        "reward/std": float(np.std(rewards.total)),
    }
    metrics |= {f"reward/{name}/mean": math.fsum(values) / batch.samples for name, values in rewards.parts.items()}
    shaped = batch.reward_B.tolist()
    if shaped != list(rewards.total):
        metrics["reward/shaped/mean"] = math.fsum(shaped) / batch.samples
    metrics["completion/length_mean"] = batch.tokens / batch.samples
    metrics["completion/length_max"] = float(batch.length_B.max())
    metrics["completion/truncated_fraction"] = sum(not c.finished for c in batch.completions) / batch.samples
    metrics["completion/left_out_fraction"] = 1 - float(batch.in_loss_B.double().mean())
    return metrics


def _trace_samples(batch: Batch) -> Samples:
    return Samples(
        sample=list(range(batch.samples)),
        group=batch.groups,
        prompt_id=[p.id for p in batch.prompts],
        prompt=[p.text for p in batch.prompts],
        completion=batch.texts,
        tokens=batch.length_B.tolist(),
        finished=[c.finished for c in batch.completions],
        reward=batch.reward_B.tolist(),
        reward_parts=batch.rewards.parts,
    )
