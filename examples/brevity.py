"""A reward of one's own: short completions score higher. Try it with

    dinghai train --reward task --reward 'examples/brevity.py:brevity*0.1'

A reward function declares the keywords that it wants, of prompts, completions, answers, prompt_ids and extras, and
returns one number a completion. It may be async.
"""

from collections.abc import Sequence


def brevity(completions: Sequence[str]) -> list[float]:
    """1 for an empty completion, falling to 0 at 40 characters."""
    return [max(0.0, 1 - len(text) / 40) for text in completions]
