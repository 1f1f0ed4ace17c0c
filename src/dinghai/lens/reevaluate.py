"""The noise of the ratio, measured: a run's final model evaluates the completions of its last recorded step twice.

Both times the weights are the same, so whatever the log-probs differ by is rounding: of other micro-batches, of padding
in place of packing, of another precision. The first two are what a ratio new/old may hold beside the policy's own
movement, since the minibatches of later updates are composed anew.

Shapes: N completion tokens, sequence after sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dinghai.config.settings import LoraSettings, TrainSettings
from dinghai.errors import InputError, RunFailed
from dinghai.lens.noise import Apart
from dinghai.lens.tokens import read_tokens
from dinghai.policy.model import DTYPES, Policy, load_policy
from dinghai.policy.reading import PADDED, choose_reading
from dinghai.policy.scoring import TokenSequence, micro_batches, score
from dinghai.trace import TraceReader

CHEAP_BYTES = 100_000_000  # of weights: 25 M parameters in float32, a few seconds on two CPU cores
TOKENS_AT_MOST = 8192  # completion tokens that are evaluated
_PARTS = 7  # micro-batches that the tokens are split into for the comparison, so that no two of them are alike


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same weights."""

    name: str  # e.g. "other micro-batches"
    apart: Apart
    same_precision: bool  # whether a ratio of the run may hold it: both evaluations are as the run makes them


@dataclass(frozen=True)
class Reevaluation:
    """What was compared, on what."""

    step: int  # whose completions were evaluated
    tokens: int
    dtype: str  # of the run
    comparisons: list[Comparison]

    @property
    def noisiest(self) -> Comparison:
        """Of the comparisons that the run's ratios may hold, the one that lies furthest apart."""
        own = [comparison for comparison in self.comparisons if comparison.same_precision]
        return max(own, key=lambda comparison: comparison.apart.quantile(0.99))


def is_cheap(run_folder: Path) -> bool:
    """Whether the run's final model is there, and small enough to be evaluated without being asked."""
    weights = list((Path(run_folder) / "model").glob("*.safetensors"))
    return bool(weights) and sum(file.stat().st_size for file in weights) <= CHEAP_BYTES


def reevaluate(run_folder: Path, settings: TrainSettings, ratio: str) -> Reevaluation:
    """Evaluates the run's final model.

    Args:
        settings: the run's.
        ratio: the level of the ratio that its rule looks at.

    Raises:
        InputError: there is no final model, or no recorded completion.
        RunFailed: the model gives no finite log-probs.
    """
    run_folder = Path(run_folder)
    if not (run_folder / "model").is_dir():
        raise InputError(f"{run_folder} holds no model/ to measure the noise with: a run writes it when it ends")
    reader = TraceReader(run_folder / "trace")
    steps = reader.steps()
    if not steps:
        raise InputError(f"{run_folder} has no recorded step, so there are no completions to measure the noise on")
    policy = _load(run_folder, settings, settings.model.dtype)
    reading, _ = choose_reading(policy, settings.update.shortcuts.packing, settings.update.shortcuts.shared_prompts)
    policy.reading = reading
    sequences = _sequences(reader, steps[-1], policy)
    sample_N = np.repeat(np.arange(len(sequences)), [len(s.completion_ids) for s in sequences])
    budget = settings.update.micro_batch_tokens
    narrow = max(1, sum(map(len, sequences)) // _PARTS)
    first_N = _log_probs(policy, sequences, min(budget, narrow * _PARTS), settings)
    if not np.isfinite(first_N).any():
        raise RunFailed(f"the model of {run_folder} gives no finite log-probs, so its noise cannot be measured")

    def compared(name: str, other_N: np.ndarray, same_precision: bool = True) -> Comparison:
        return Comparison(name, Apart.of(other_N - first_N, first_N, sample_N, ratio), same_precision)

    found = [compared("other micro-batches", _log_probs(policy, sequences, min(budget, narrow), settings))]
    if reading.packed:
        policy.reading = PADDED
        other_N = _log_probs(policy, sequences, budget, settings)
        found.append(compared("padded, not packed", other_N))
        policy.reading = reading
    other = next(name for name in DTYPES if name != settings.model.dtype)
    del policy
    policy = _load(run_folder, settings, other)
    policy.reading, _ = choose_reading(policy, reading.packed, reading.shared_prompts)
    other_N = _log_probs(policy, sequences, budget, settings)
    found.append(compared(f"{other}, not {settings.model.dtype}", other_N, same_precision=False))
    return Reevaluation(steps[-1], len(first_N), settings.model.dtype, found)


def _load(run_folder: Path, settings: TrainSettings, dtype: str) -> Policy:
    """The final model, adapters merged, as it was trained but in a dtype."""
    model = settings.model.model_copy(
        update={
            "path": str(run_folder / "model"),
            "dtype": dtype,
            "lora": LoraSettings(),
            "gradient_checkpointing": False,
        }
    )
    return load_policy(model, seed=0)


def _sequences(reader: TraceReader, step: int, policy: Policy) -> list[TokenSequence]:
    """Prompts and completions of a recorded step, whole groups first come, as far as TOKENS_AT_MOST."""
    samples = reader.samples(step, ["sample", "prompt"])
    prompts = dict(zip(*(samples[name].to_pylist() for name in ("sample", "prompt")), strict=True))
    ids = dict(zip(prompts, policy.prompt_ids(list(prompts.values())), strict=True))
    sequences: list[TokenSequence] = []
    taken = 0
    for sample, completion in _completions(reader, step):
        if sample not in ids or not ids[sample] or (sequences and taken + len(completion) > TOKENS_AT_MOST):
            continue
        prompt = ids[sample]
        if len(prompt) + len(completion) <= policy.context:
            sequences.append(TokenSequence(prompt, completion))
            taken += len(completion)
    if not sequences:
        raise InputError(f"step {step} of {reader.folder} holds no completion that the model can read")
    return sequences


def _completions(reader: TraceReader, step: int) -> Iterable[tuple[int, list[int]]]:
    """(sample, token ids) of each completion of a step, by sample; one that lacks tokens is left out."""
    found: dict[int, list[int]] = {}
    for update in reader.updates(step):
        tokens = read_tokens(reader, step, update, ["sample", "position", "token"])
        for sample in np.unique(tokens.sample):
            rows = np.flatnonzero(tokens.sample == sample)
            rows = rows[np.argsort(tokens.position[rows])]
            if np.array_equal(tokens.position[rows], np.arange(len(rows))):
                found.setdefault(int(sample), tokens.token[rows].tolist())
    return sorted(found.items())


@torch.no_grad()
def _log_probs(policy: Policy, sequences: Sequence[TokenSequence], budget: int, settings: TrainSettings) -> np.ndarray:
    """log π of each completion token as an update scores it, in micro-batches of a budget: [N] float64, nats."""
    lengths = [len(sequence.completion_ids) for sequence in sequences]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found_N = np.full(starts[-1], np.nan)
    for chosen in micro_batches(sequences, range(len(sequences)), budget, policy.reading):
        logp, _ = score(
            policy,
            [sequences[i] for i in chosen],
            settings.rollout.temperature,
            one_pass=settings.update.shortcuts.one_pass_head,
        )
        here = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
        found_N[here] = logp.float().cpu().numpy()
    return found_N
