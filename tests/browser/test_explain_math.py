"""The explainer's mathematics in the browser is no second truth: it agrees with the registry, rule by rule.

Run: pytest tests/browser/test_explain_math.py        (Node.js where there is one, else a browser)
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from typing import Any

import pytest
import torch

from dinghai.catalogue.lone_tokens import lone_inputs
from dinghai.files import nonfinite_as_text
from dinghai.objective import RULES, Effect, Region, Rule
from dinghai.objective.decision import effects
from dinghai.objective.parameters import ParameterInfo
from dinghai.view.bundle import page_file

# These see more than one token: a minibatch, or the other tokens of the sequence.
NOT_OF_ONE_TOKEN = {"bapo", "clip_cov", "kl_cov", "m2po", "gmpo", "vaco"}
DRAWS, POINTS = 15, 50  # settings of the parameters, and tokens for each
TOLERANCE = 1e-9

EVALUATE = """
  const number = value => (typeof value === "string" ? Number(value) : value);
  const answers = {};
  for (const [name, blocks] of Object.entries(data)) {
    answers[name] = blocks.map(({ parameters, tokens }) => {
      const q = Object.fromEntries(Object.entries(parameters).map(([key, value]) => [key, number(value)]));
      return tokens.map(([ratio, advantage, probability]) => {
        const found = decide(RULE_MATH[name], tokenAt(ratio, advantage, probability), q);
        return [found.value, found.weight, found.region, found.effect];
      });
    });
  }
  const result = { answers, names: Object.keys(RULE_MATH) };
"""


def run_in_javascript(data: Any, request: pytest.FixtureRequest) -> Any:
    """What EVALUATE makes of `data`, with the module's text as it is, its `export` words left out."""
    module = re.sub(r"^export ", "", page_file("explain_math.js"), flags=re.MULTILINE)
    text = json.dumps(nonfinite_as_text(data))
    node = shutil.which("node")
    if node:
        program = f'"use strict";\n{module}\nconst data = {text};\n{EVALUATE}\nconsole.log(JSON.stringify(result));'
        done = subprocess.run([node, "-"], input=program, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout)
    page = request.getfixturevalue("browser").new_page()
    try:
        return page.evaluate(
            f"text => {{ const data = JSON.parse(text);\n{module}\n{EVALUATE}\nreturn result; }}", text
        )
    finally:
        page.close()


def draw_parameters(rule: Rule, dice: random.Random) -> dict[str, float | None]:
    return {info.name: _draw(info, rule, dice) for info in rule.describe() if dice.random() < 0.8}


def _draw(info: ParameterInfo, rule: Rule, dice: random.Random) -> float | None:
    if info.default is None and dice.random() < 0.4:
        return None
    low, high = (
        info.usual_sequence if rule.ratio_levels[0].startswith("sequence") and info.usual_sequence else info.usual
    )
    for _ in range(100):
        value = dice.uniform(0.5 * low, 1.5 * high)
        if info.admits(value):
            return value
    return info.default


def draw_tokens(rule: Rule, parameters: dict[str, float | None], dice: random.Random) -> list[list[float]]:
    """(r, A, p_old), some exactly on numbers where a rule may have a bound, with π_new = r·p_old below 1."""
    spread = 2e-3 if rule.ratio_levels[0] in ("sequence", "sequence-token") else 0.8
    given = [value for value in parameters.values() if value is not None and math.isfinite(value)]
    edges = [1.0, *given, *(1 + value for value in given), *(1 - value for value in given)]
    tokens = []
    while len(tokens) < POINTS:
        on_edge = dice.random() < 0.2
        ratio = dice.choice(edges) if on_edge else math.exp(dice.gauss(0, spread))
        if ratio <= 0:
            continue
        advantage = 0.0 if dice.random() < 0.05 else dice.gauss(0, 1.5)
        tokens.append([ratio, advantage, dice.uniform(1e-4, 0.999) * min(1.0, 1 / ratio)])
    return tokens


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The points that were drawn for each rule, and the browser's answers."""
    dice = random.Random(20261122)
    data: dict[str, Any] = {}
    for name in sorted(set(RULES) - NOT_OF_ONE_TOKEN):
        rule = RULES[name]
        chosen = [{}, dict(rule.off or {}), *(draw_parameters(rule, dice) for _ in range(DRAWS - 2))]
        data[name] = []
        for given in chosen:
            values = vars(rule.parse(given))
            data[name].append({"parameters": values, "tokens": draw_tokens(rule, values, dice)})
    return data, run_in_javascript(data, request)


def test_each_rule_is_either_in_the_browser_or_needs_more_than_one_token(
    compared: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert set(compared[1]["names"]) == set(RULES) - NOT_OF_ONE_TOKEN


@pytest.mark.parametrize("name", sorted(set(RULES) - NOT_OF_ONE_TOKEN))
def test_value_weight_region_and_effect_are_those_of_the_registry(
    name: str, compared: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """At 750 points a rule: defaults, switched off, and random parameters; random tokens and such on bounds."""
    rule, (data, found) = RULES[name], compared
    count = 0
    for block, answers in zip(data[name], found["answers"][name], strict=True):
        parameters = rule.parse(block["parameters"])
        ratio_N, advantage_N, p_old_N = torch.tensor(block["tokens"], dtype=torch.float64).T
        x = lone_inputs(rule, parameters, ratio_N, advantage_N, p_old_N)
        value_N, weight_N = rule.surrogate(x, parameters), rule.weight(x, parameters)
        region_N = rule.region(x, parameters)
        effect_N = effects(weight_N, x.importance_weighted, advantage_N)
        for i, (value, weight, region, effect) in enumerate(answers):
            where = f"{name} {block['parameters']} r, A, p_old = {block['tokens'][i]}"
            assert close(value, value_N[i].item()), f"{where}: value {value}, the registry has {value_N[i]}"
            assert close(weight, weight_N[i].item()), f"{where}: weight {weight}, the registry has {weight_N[i]}"
            assert region == Region(int(region_N[i])).name.lower(), where
            # VESPO's weight is an exponential of a logarithm: where it equals r·A, the last digit decides the effect.
            if name != "vespo" or abs(weight_N[i] - x.importance_weighted[i]) > 1e-12:
                assert effect == Effect(int(effect_N[i])).name.lower(), where
            count += 1
    assert count >= 500


def close(ours: float | None, theirs: float) -> bool:
    return ours is not None and abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))
