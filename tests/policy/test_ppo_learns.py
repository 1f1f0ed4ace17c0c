"""Proves that PPO with a critic learns: the critic comes to foresee the reward, and a policy that starts at random
comes to earn it.

Run: pytest tests/policy/test_ppo_learns.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dinghai.config.load import load_settings
from dinghai.config.settings import ModelSettings
from dinghai.policy.critic import Critic
from dinghai.policy.model import load_policy
from dinghai.policy.scoring import TokenSequence

REWARD = '''
def digits(completions):
    """The share of digits in the text."""
    return [sum(c in "0123456789" for c in text) / max(1, len(text)) for text in completions]
'''
SMALL = ["--model.hidden_size", "32", "--model.heads", "4"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_critic_learns_what_can_be_foreseen() -> None:
    """The return is 1 if the prompt's byte is even, and falls to 0 once a byte above 200 has been written."""
    policy = load_policy(ModelSettings(hidden_size=32, heads=4, device="cpu"), seed=0)
    critic = Critic(policy)
    optimizer = torch.optim.AdamW(critic.trainable().values(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    unexplained = []
    for _ in range(150):
        ids_BS = torch.randint(0, 256, (64, 7), generator=g).tolist()
        sequences = [TokenSequence(ids[:1], ids[1:]) for ids in ids_BS]
        value_N = critic.values(sequences)
        # V(state) of the state before each token: that token and those behind it are not known yet.
        return_N = torch.tensor(
            [float(ids[0] % 2 == 0 and max(ids[1:t], default=0) <= 200) for ids in ids_BS for t in range(1, 7)]
        )
        unexplained.append(((value_N - return_N).var() / return_N.var()).item())
        ((value_N - return_N) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert unexplained[0] == pytest.approx(1.0), "it starts at 0 everywhere"
    assert sum(unexplained[-10:]) / 10 < 0.2


@pytest.mark.parametrize("lam", ["0.95", "1"])
def test_a_random_policy_learns_to_earn_the_reward(lam: str, tmp_path: Path) -> None:
    from dinghai.train.run import train

    (tmp_path / "reward.py").write_text(REWARD)
    source = f"{tmp_path / 'reward.py'}:digits"
    settings = load_settings(
        None,
        [
            *SMALL,
            *("--advantage.kind", "gae", "--advantage.lam", lam),
            *("--run.folder", str(tmp_path), "--run.name", "run", "--run.steps", "20"),
            *("--rollout.prompts", "16", "--rollout.group_size", "4", "--rollout.max_new_tokens", "8"),
            *("--update.lr", "1e-2", "--advantage.critic_lr", "1e-2", "--update.epochs", "4"),
            *("--cold_start.steps", "0", "--task.held_out", "4", "--trace.enabled", "false"),
        ],
    )
    settings = settings.model_copy(update={"rewards": [type(settings.rewards[0])(source=source)]})
    train(settings, {source})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rewards = [line["reward/mean"] for line in map(json.loads, lines) if "reward/mean" in line]
    assert rewards[0] < 0.1, "ten bytes of 256 are digits"
    assert rewards[-1] > 0.6
