"""Dinghai trains language models with PPO and GRPO, and shows what the clip does to every token's gradient."""

__version__ = "0.1.0"
