"""However a minibatch is split into micro-batches, the gradient is the same, for every reduction.

Run: pytest tests/train/test_micro_batches.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import code_of, tiny

from dinghai.objective import Normalizer
from dinghai.policy.reading import PADDED
from dinghai.policy.scoring import TokenSequence, micro_batches
from dinghai.train import loop
from dinghai.train.cold_start import cold_start
from dinghai.train.learner import Learner
from dinghai.train.setup import Beginning

REDUCTIONS = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"]
BUDGETS = [16384, 120, 60, 40, 1]


def first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], list[int], Normalizer]:
    """(gradients of policy and critic, samples of each micro-batch, the normaliser) of the first update."""
    gradients: dict[str, torch.Tensor] = {}
    parts_seen: list[list[int]] = []
    counts_seen: list[Normalizer] = []
    real_clip, real_backward = Learner.clip_gradient, loop.policy_backward

    def clip_gradient(self: Learner) -> torch.Tensor:
        for name, parameter in self.weights.items():
            assert parameter.grad is not None
            gradients[f"{self.name}/{name}"] = parameter.grad.clone()
        return real_clip(self)

    def policy_backward(
        run: Any, step: int, batch: Any, chosen: list[int], targets: Any, is_first: bool, counts: Any, *others: Any
    ) -> None:
        parts_seen.append(chosen)
        counts_seen.append(counts)
        assert all(counts == other for other in counts_seen)
        real_backward(run, step, batch, chosen, targets, is_first, counts, *others)

    settings = tiny(
        tmp_path,
        "never written",
        {"trace": {"enabled": False}},
        {"update": {"epochs": 1, "minibatches": 1, "shortcuts": {"skip_no_signal": False}}},
        {"rollout": {"prompts": 2, "overlong": "mask"}},
        *changes,
    )
    beginning = Beginning(settings, code_of(settings))
    # Made to differ in length, and some to end by themselves, by a cold start whose own split is always the same.
    unsplit = tiny(tmp_path, "unsplit", {"cold_start": {"steps": 40, "lr": 0.02}})
    cold_start(beginning.policy, beginning.task, unsplit, lambda step, steps, loss: None)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "clip_gradient", clip_gradient)
        patch.setattr(loop, "policy_backward", policy_backward)
        record, _ = loop.train_step(beginning.parts(tmp_path), 1, 0)
    batch = record.batch
    assert 0 < int(batch.in_loss_B.sum()) < batch.samples
    assert counts_seen[0].tokens == int(batch.length_B[batch.in_loss_B.numpy()].sum())
    assert counts_seen[0].sequences == int(batch.in_loss_B.sum())
    assert sorted(i for part in parts_seen for i in part) == list(range(batch.samples))
    return gradients, [len(part) for part in parts_seen], counts_seen[0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"objective": {"entropy_bonus": 0.1, "kl": {"beta": 0.1}}, "advantage": {"kind": "gae", "critic_warmup": 0}},
        # Its draw is by the last bits of the log-probs, which rows of another length round otherwise.
        {
            "objective": {"rule": "clip_cov", "parameters": {"share": 0.1, "cov_low": 0.001}},
            "update": {"shortcuts": {"packing": False}},
        },
    ],
    ids=["grpo", "all terms", "a rule that sees the whole minibatch"],
)
def test_the_gradient_does_not_depend_on_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduction: str, change: dict
) -> None:
    whole: dict[str, torch.Tensor] = {}
    splits = []
    for budget in BUDGETS:
        gradients, parts, _ = first_update(
            tmp_path,
            monkeypatch,
            change,
            {"objective": {"reduction": reduction}, "update": {"micro_batch_tokens": budget}},
        )
        splits.append(parts)
        whole = whole or gradients
        assert gradients.keys() == whole.keys()
        norm = torch.cat([g.flatten() for g in whole.values()]).norm()
        assert norm > 0
        for name, gradient in gradients.items():
            assert (gradient - whole[name]).norm() <= 1e-6 * norm, (name, parts)
    lengths = [len(parts) for parts in splits]
    assert lengths[0] == 1
    assert lengths[-1] == 8
    assert 2 in lengths
    assert 4 in lengths
    assert any(len(set(parts)) > 1 for parts in splits), "no split is uneven"


def test_a_micro_batch_stays_within_its_budget() -> None:
    sequences = [TokenSequence([0] * 3, [1] * length) for length in (1, 9, 4, 4, 30, 2, 7)]
    for budget in (1, 8, 14, 20, 33, 70, 1000):
        batches = micro_batches(sequences, [5, 4, 0, 3, 1, 6], budget, PADDED)
        assert sorted(i for batch in batches for i in batch) == [0, 1, 3, 4, 5, 6]
        for batch in batches:
            width = max(len(sequences[i]) for i in batch)
            assert len(batch) * width <= budget or len(batch) == 1
        assert batches == micro_batches(sequences, [0, 1, 3, 4, 5, 6], budget, PADDED), "the order of asking has a say"
