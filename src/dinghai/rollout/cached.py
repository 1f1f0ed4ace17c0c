"""Decoding through the cache of `transformers`, for models whose attention cannot be asked (`dinghai.rollout.decode`).

Each prompt is computed once; its keys and values, or its state, are copied for its G completions. Rows leave as they
finish. Any model of `transformers` with its standard cache works.

Shapes: P prompts, R rows (completions) being decoded, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.policy.model import Policy
from dinghai.rollout.decode import DROP_SHARE, Choose
from dinghai.rollout.engine import Completion


class CachedDecoder:
    """Decodes with `policy`; refuses a model whose samples would not be those of the text it reads."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._check_architecture()

    def decode(
        self, prompts: Sequence[list[int]], group_size: int, capacity: int, max_new_tokens: int, choose: Choose
    ) -> list[Completion]:
        """`group_size` completions of each prompt, prompt after prompt: in batches of whole groups where they fit into
        `capacity`, else in parts of one group."""
        copies = min(group_size, capacity)
        prompts_at_once = max(1, capacity // group_size)
        rows: list[Completion] = []
        for p in range(0, len(prompts), prompts_at_once):
            some = prompts[p : p + prompts_at_once]
            for g in range(0, group_size, copies):
                n = min(copies, group_size - g)
                rows.extend(self._decode(some, n, p * group_size + g, max_new_tokens, choose))
        return rows

    @torch.inference_mode()
    def _check_architecture(self) -> None:
        """Refuses a model whose completions could not be sampled, or would get other log-probs than scoring gives."""
        policy, kind = self._policy, type(self._policy.model).__name__
        short, long = ([i % policy.vocabulary for i in ids] for ids in ([5, 6], [1, 2, 3, 4]))
        _, cache, padding = self._prefill([short[:-1], long[:-1]])
        if not hasattr(cache, "reorder_cache"):
            raise InputError(
                f"model.path: a {kind} keeps no cache that the completions of a prompt could share, so it cannot be "
                "sampled from here: name another model"
            )
        last = torch.tensor([short[-1:], long[-1:]], device=policy.device)
        decoded_RV, _ = policy.decode(last, cache, **padding.inputs(0))
        tolerance = 1e-3 if policy.model.dtype == torch.float32 else 0.5
        for logits_V, ids in zip(decoded_RV, (short, long), strict=True):
            read_V = policy.to_logits(policy.hidden(torch.tensor([ids], device=policy.device))[0, -1:])[0]
            if not torch.allclose(logits_V, read_V, rtol=tolerance, atol=tolerance, equal_nan=True):
                raise InputError(
                    f"model.path: a {kind} computes other logits token by token than for the whole text, so its "
                    "samples could not be told from a changed policy: name another model"
                )

    @torch.inference_mode()
    def _decode(
        self,
        prompts: Sequence[list[int]],
        copies: int,
        first_row: int,
        max_new_tokens: int,
        choose: Choose,
    ) -> list[Completion]:
        """`copies` completions of each prompt. Rows are numbered first_row, … over the whole call to `decode`."""
        policy, device = self._policy, self._policy.device
        logits_PV, cache, padding = self._prefill(prompts)
        prompt_of_row = torch.arange(len(prompts), device=device).repeat_interleave(copies)
        # More than one copy of more than one prompt only comes in whole groups, so rows are consecutive.
        row_R = first_row + torch.arange(len(prompts) * copies, device=device)
        cache.reorder_cache(prompt_of_row)
        padding = padding.repeat_rows(prompt_of_row)
        tokens: list[list[int]] = [[] for _ in row_R]
        logps: list[list[float]] = [[] for _ in row_R]
        ends = torch.tensor(sorted(policy.end_ids), device=device)
        logits_RV = logits_PV[prompt_of_row]
        alive_R = torch.ones_like(row_R, dtype=torch.bool)
        for step in range(max_new_tokens):
            token_R, logp_R = choose(logits_RV, row_R, torch.full_like(row_R, step))
            for row, token, logp, alive in zip(
                (row_R - first_row).tolist(), token_R.tolist(), logp_R.tolist(), alive_R.tolist(), strict=True
            ):
                if alive:
                    tokens[row].append(token)
                    logps[row].append(logp)
            alive_R = alive_R & ~torch.isin(token_R, ends)
            living = int(alive_R.sum())
            if living == 0 or step == max_new_tokens - 1:
                break
            if living < (1 - DROP_SHARE) * len(alive_R):
                kept = alive_R.nonzero()[:, 0]
                cache.reorder_cache(kept)
                row_R, token_R, alive_R, padding = row_R[kept], token_R[kept], alive_R[kept], padding.repeat_rows(kept)
            logits_RV, cache = policy.decode(token_R[:, None], cache, **padding.inputs(step))
        end_ids = policy.end_ids
        return [
            Completion(t, torch.tensor(p, dtype=torch.float32).numpy(), bool(t) and t[-1] in end_ids)
            for t, p in zip(tokens, logps, strict=True)
        ]

    def _prefill(self, prompts: Sequence[list[int]]) -> tuple[Tensor, Any, _Padding]:
        """Runs each prompt once: the logits of its next token, its keys and values, and how it was padded."""
        policy = self._policy
        width = max(map(len, prompts))
        padding = _Padding(torch.tensor([width - len(p) for p in prompts], device=policy.device), width)
        ids = torch.tensor([[policy.pad_id] * (width - len(p)) + p for p in prompts], device=policy.device)
        logits_PV, cache = policy.decode(ids, None, **padding.inputs(None))
        return logits_PV, cache, padding


class _Padding:
    """Left padding of the prompts: the attention mask and positions that hide it, where there is any."""

    def __init__(self, pad_R: Tensor, width: int, any_padding: bool | None = None) -> None:
        self._pad_R, self._width = pad_R, width
        self._any = bool((pad_R > 0).any()) if any_padding is None else any_padding

    def repeat_rows(self, index_R: Tensor) -> _Padding:
        return _Padding(self._pad_R[index_R], self._width, self._any)

    def inputs(self, step: int | None) -> dict[str, Tensor]:
        """Model inputs for the prompts (step None) or for the token drawn at `step`."""
        if not self._any:
            return {}
        length = self._width + (0 if step is None else step + 1)
        position = torch.arange(length, device=self._pad_R.device)[None] - self._pad_R[:, None]
        mask = (position >= 0).long()
        position = position.clamp_min(0)
        return {"attention_mask": mask, "position_ids": position if step is None else position[:, -1:]}
