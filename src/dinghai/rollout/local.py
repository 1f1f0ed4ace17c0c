"""The local engine: samples with the policy's own weights, in the same process.

Shapes: R rows (completions), T new tokens, V vocabulary, n rows being decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dinghai.policy.attention import UnknownAttention, install, watching
from dinghai.policy.model import Policy
from dinghai.policy.reading import other_than_attention
from dinghai.rollout.cached import CachedDecoder
from dinghai.rollout.decode import Choose, Decoder
from dinghai.rollout.engine import Completion, Sampling
from dinghai.rollout.graphs import Direct, Graphs
from dinghai.rollout.sampling import sample
from dinghai.rollout.weights import SamplingWeights


class LocalEngine:
    """Samples from `policy`; `batch_size` bounds how many completions are decoded at once.

    dtype: precision of the weights that are sampled with; None: the policy's own
    notes: sentences that say what is left out for this model, and why
    """

    def __init__(self, policy: Policy, batch_size: int, dtype: torch.dtype | None = None) -> None:
        self._batch_size = batch_size
        # Before the weights are copied, so that the copy asks for its attention in the same way.
        reason = install(policy.model)
        self._weights = SamplingWeights(policy, dtype)
        self._policy = self._weights.policy
        reason = reason or other_than_attention(policy) or _why_not_in_slots(self._policy)
        self.notes: list[str] = []
        self._use_graphs = True
        self._cached: CachedDecoder | None = None
        if reason is not None:
            self.notes.append(
                f"rollout: completions are decoded through the cache of transformers, which is slower: {reason}"
            )
            self._cached = CachedDecoder(self._policy)

    def generate(
        self, prompts: Sequence[list[int]], group_size: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        generator = torch.Generator().manual_seed(seed)
        # All random numbers are drawn at once, one for each row and position: what a row becomes does not depend on
        # which rows it is decoded with. One row and one position more than there are, for slots whose row has ended.
        shape = len(prompts) * group_size, sampling.max_new_tokens
        uniform_RT = torch.nn.functional.pad(torch.rand(shape, generator=generator), (0, 1, 0, 1)).to(
            self._policy.device
        )

        def choose(logits_nV: Tensor, row_n: Tensor, position_n: Tensor) -> tuple[Tensor, Tensor]:
            return sample(logits_nV, uniform_RT[row_n, position_n], sampling)

        rows = self._decode(prompts, group_size, sampling.max_new_tokens, choose)
        return [rows[i : i + group_size] for i in range(0, len(rows), group_size)]

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Completion]:
        def choose(logits_nV: Tensor, row_n: Tensor, position_n: Tensor) -> tuple[Tensor, Tensor]:
            token_n = logits_nV.argmax(-1)
            return token_n, torch.zeros_like(token_n, dtype=torch.float32)

        return self._decode(prompts, 1, max_new_tokens, choose)

    def _decode(
        self, prompts: Sequence[list[int]], group_size: int, max_new_tokens: int, choose: Choose
    ) -> list[Completion]:
        self._weights.refresh()
        if self._cached is not None:
            return self._cached.decode(prompts, group_size, self._batch_size, max_new_tokens, choose)
        runner = Graphs() if self._policy.device.type == "cuda" and self._use_graphs else Direct()
        rows = Decoder(self._policy, prompts, group_size, self._batch_size, max_new_tokens, choose, runner).run()
        if isinstance(runner, Graphs) and runner.failure is not None:
            self._use_graphs = False
            note = f"rollout: decoding steps are not captured as CUDA graphs, which is slower: {runner.failure}"
            self.notes.append(note)
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        return rows


def _why_not_in_slots(policy: Policy) -> str | None:
    """Tries whether decoding in slots gives the logits of the whole text: None, or the end of a sentence that says why
    not. Two prompts of unequal length, two rows of each, on which three tokens are forced."""
    kind = type(policy.model).__name__
    prompts = [[i % policy.vocabulary for i in ids] for ids in ([5], [1, 2, 3])]
    forced = torch.tensor([[4, 3, 2], [6, 1, 0], [2, 2, 5], [0, 5, 1]], device=policy.device) % policy.vocabulary
    seen: dict[tuple[int, int], Tensor] = {}

    def choose(logits_nV: Tensor, row_n: Tensor, position_n: Tensor) -> tuple[Tensor, Tensor]:
        for logits_V, at in zip(logits_nV, zip(row_n.tolist(), position_n.tolist(), strict=True), strict=True):
            seen[at] = logits_V.clone()
        return forced[row_n, position_n.clamp_max(2)], logits_nV[:, 0].float()

    try:
        with watching() as asked:
            Decoder(policy, prompts, 2, capacity=3, max_new_tokens=3, choose=choose).run()
    except UnknownAttention as error:
        return f"a {kind} cannot read tokens of several rows at once: {error}"
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture has its own way to refuse what it does not know
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"a {kind} fails when it reads tokens of several rows at once ({type(error).__name__}: {line[:200]})"
    if not asked.masked <= asked.told:
        return f"the layers of a {kind} are not told of its attention's window"
    tolerance = 1e-3 if next(policy.model.parameters()).dtype == torch.float32 else 0.5
    with torch.no_grad():
        for (row, position), logits_V in seen.items():
            ids = torch.tensor([prompts[row // 2] + forced[row, :position].tolist()], device=policy.device)
            read_V = policy.to_logits(policy.hidden(ids)[0, -1:])[0]
            if position < 3 and not torch.allclose(logits_V, read_V, rtol=tolerance, atol=tolerance, equal_nan=True):
                return f"a {kind} computes other logits for tokens of several rows than for each row alone"
    return None
