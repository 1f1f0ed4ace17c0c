"""The formulas that the explainer writes evaluate to what the rules compute.

Run: pytest tests/catalogue/test_formulas.py
"""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest
import torch

from dinghai.catalogue.formulas import FORMULAS, clip_of, figure, formula_for, put_in, symbols
from dinghai.catalogue.lone_tokens import decide_alone
from dinghai.objective import Effect, PolicyLoss, find_rule

FUNCTIONS = {
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
    "log": math.log,
    "exp": math.exp,
    "sech": lambda x: 1 / math.cosh(x),
    "σ": lambda x: 1 / (1 + math.exp(-x)),
    "abs": abs,
}


def evaluated(text: str, symbols: dict[str, float]) -> float:
    """A formula as Python, for the notation that the table uses."""
    python = re.sub(r"sech²(\((?:[^()]|\([^()]*\))*\))", r"sech\1**2", text)
    python = re.sub(r"\|([^|]*)\|", r"abs(\1)", python)
    for notation, operator in (("·", "*"), ("²", "**2"), ("^", "**"), ("lambda", "lambda_")):
        python = python.replace(notation, operator)
    return eval(python, {"__builtins__": {}}, FUNCTIONS | symbols | {"lambda_": symbols.get("lambda")})


def tokens_of(name: str) -> list[tuple[float, float, float]]:
    """(r, A, p_old) in all regions, on both sides of 1."""
    dice = random.Random(name)
    near = find_rule(name).ratio_levels[0] in ("sequence", "sequence-token")
    ratios = [1 + (0.001 if near else 0.6) * dice.uniform(-1, 1.5) for _ in range(60)] + (
        [] if near else [3.5, 6.0, 12.0]
    )
    return [(r, dice.choice([1, -1]) * dice.uniform(0.2, 2), dice.uniform(0.01, 0.9) / max(r, 1)) for r in ratios]


@pytest.mark.parametrize("name", list(FORMULAS))
def test_the_formula_of_the_case_evaluates_to_value_and_weight(name: str) -> None:
    rule = find_rule(name)
    given: dict[str, Any] = {"dual_clip": 3.0} if name in ("ppo", "dual_clip") else {}
    parameters = rule.parse(given)
    for ratio, advantage, p_old in tokens_of(name):
        token = decide_alone(rule, parameters, ratio, advantage, p_old)
        known = symbols(parameters, token, p_old)
        value = evaluated(formula_for(FORMULAS[name].value, token), known)
        assert value == pytest.approx(token.value, rel=1e-12, abs=1e-12), (ratio, advantage, p_old)
        if token.effect is not Effect.STOPPED:
            weight = evaluated(formula_for(FORMULAS[name].weight, token), known)
            assert weight == pytest.approx(token.weight, rel=1e-12), (ratio, advantage, p_old)


@pytest.mark.parametrize("name", list(FORMULAS))
def test_with_the_numbers_put_in_no_symbol_is_left(name: str) -> None:
    """And the text still evaluates to the value, to the digits that it shows."""
    rule = find_rule(name)
    parameters = rule.parse({})
    for ratio, advantage, p_old in tokens_of(name)[:20]:
        ratio = float(figure(ratio))
        token = decide_alone(rule, parameters, ratio, float(figure(advantage)), p_old)
        text = put_in(formula_for(FORMULAS[name].value, token), symbols(parameters, token, p_old))
        assert set(re.findall(r"[^\W\d]\w*", text)) <= {"min", "max", "clip", "log", "exp", "σ", "²"}, text
        assert evaluated(text, {}) == pytest.approx(token.value, rel=1e-4, abs=1e-4), text


def test_both_arguments_of_min_by_hand() -> None:
    """r = 0.5, A = -1: r·A = -0.5, clip(r)·A = 0.8·-1 = -0.8, and min takes the latter."""
    rule = find_rule("ppo")
    clip = clip_of(rule.parse({}), 0.1)
    assert clip is not None
    assert (clip.lower, clip.upper, clip.last) == (0.8, 1.2, None)
    assert clip.clipped(0.5) * -1 == -0.8
    assert decide_alone(rule, rule.parse({}), 0.5, -1.0, 0.1).value == -0.8


@pytest.mark.parametrize("name", ["ppo", "dapo", "dual_clip", "dcpo", "bandpo_kl", "cispo", "sapo", "gspo", "vespo"])
def test_a_lone_token_is_decided_as_the_loss_decides_it(name: str) -> None:
    """The same as `PolicyLoss` on a batch of one-token answers, away from the bounds' last digit."""
    loss = PolicyLoss(name)
    chosen = tokens_of(name)
    ratio_N, advantage_N, p_old_N = torch.tensor(chosen, dtype=torch.float64).T
    out = loss(
        logp_new=p_old_N.log() + ratio_N.log(),
        logp_old=p_old_N.log(),
        advantage=advantage_N,
        cu_seqlens=torch.arange(len(chosen) + 1),
    )
    for i, (ratio, advantage, p_old) in enumerate(chosen):
        token = decide_alone(loss.rule, loss.parameters, ratio, advantage, p_old)
        assert token.weight == pytest.approx(out.decision.weight[i].item(), rel=1e-9, abs=1e-12)
        assert (token.region, token.effect) == (out.decision.region[i], out.decision.effect[i])


def test_a_ratio_exactly_on_a_bound_is_inside() -> None:
    """1.2 is 1 + 0.2, whatever exp(log 1.2) rounds to."""
    rule = find_rule("ppo")
    for ratio in (0.8, 1.2):
        for advantage in (1.0, -1.0):
            assert decide_alone(rule, rule.parse({}), ratio, advantage, 0.1).effect is Effect.KEPT
