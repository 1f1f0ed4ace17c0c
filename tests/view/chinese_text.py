"""Whether a Chinese text is Chinese: Latin words only where Chinese engineers write them, or where they are names."""

from __future__ import annotations

import re

from dinghai.lens.regions import REGIONS
from dinghai.objective import RULES

# What is said in English in Chinese too; symbols and functions; names of papers, projects and programs.
_WORDS = """
clip token tokens batch minibatch logit logits rollout ratio min max log exp sign sech stop gradient fraction inf nat
new old ref low high higher dual lower upper cap floor off none never step
PPO GRPO DAPO GSPO TRL KL Cov CISPO ScaleRL arXiv Machine Learning Williams REINFORCE Kimi open instruct MiniMax
TVPO BandPO VACO TR RB DRO SPO IS JavaScript dinghai train explain rules objective rule update epochs lr Dinghai
ratio advantage probability rule lang zh open page NAME FILE English
"""
_ALLOWED = set(_WORDS.split()) | set(REGIONS)
for _rule in RULES.values():
    _ALLOWED |= {_rule.name, *re.findall(r"[A-Za-z]+", _rule.name)}
    # Titles are names, but for those that have a translation and are then not shown.
    _ALLOWED |= {word for word in re.findall(r"[A-Za-z]+", _rule.title) if word not in {"without", "variation", "form"}}
    for _info in _rule.describe():
        _ALLOWED |= {_info.name, *_info.name.split("_")}


def english_words(text: str) -> list[str]:
    """The words of three letters and more that a Chinese reader should not meet."""
    found = re.findall(r"[A-Za-z]{3,}", re.sub(r"`[^`]*`|\{\w+\}", "", text))
    return [word for word in found if word not in _ALLOWED]
