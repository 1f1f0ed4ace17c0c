"""The sentence about a token is true, whatever the rule: each claim in it is checked against the loss's own record.

Run: pytest tests/browser/test_token_words.py        (Node.js where there is one, else a browser)
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from typing import Any

import pytest
import torch

from dinghai.files import nonfinite_as_text
from dinghai.lens.regions import REGION_MEANING
from dinghai.objective import RULES, Effect, PolicyLoss, Region
from dinghai.objective.probe import probe
from dinghai.testing.batches import Batch, grid_batch, random_batch
from dinghai.testing.subject import Subject, subjects
from dinghai.view.bundle import page_file

TOKENS = 60  # of each setting of each rule
ROUNDING = 6e-4  # numbers are written with four digits
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


def in_javascript(calls: str, data: Any, request: pytest.FixtureRequest) -> Any:
    """What the expression `calls` makes of `data`, with the functions of token_words.js."""
    modules = "\n".join(page_file(name) for name in ("format.js", "token_words.js"))
    modules = re.sub(r"^(import .*|export )", "", modules, flags=re.MULTILINE)
    text = json.dumps(nonfinite_as_text(data))
    node = shutil.which("node")
    if node:
        program = f'"use strict";\n{modules}\nconst data = {text};\nconsole.log(JSON.stringify({calls}));'
        done = subprocess.run([node, "-"], input=program, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout)
    page = request.getfixturevalue("browser").new_page()
    try:
        return page.evaluate(f"text => {{ {modules}\nconst data = JSON.parse(text);\nreturn {calls}; }}", text)
    finally:
        page.close()


SENTENCES = """data.map(({ rule, tokens }) => tokens.map(token =>
    fateSentence(token, token.region === "unknown" ? undefined : { meaning: data[0].meanings[token.region] }, rule)))"""


def sentences(cases: list[tuple[dict[str, Any] | None, list[dict[str, Any]]]], request: Any) -> list[list[str]]:
    data = [{"rule": rule, "tokens": tokens, "meanings": REGION_MEANING} for rule, tokens in cases]
    found: list[list[str]] = in_javascript(SENTENCES, data, request)
    return found


def tokens_of(loss: PolicyLoss, batch: Batch, **more: Any) -> list[dict[str, Any]]:
    """As the page has them: the record of the loss on some of the batch's tokens."""
    decision = loss(
        logp_new=batch.logp_new_BT, logp_old=batch.logp_old_BT, advantage=batch.advantage_BT, mask=batch.mask_BT, **more
    ).decision
    columns = {
        "ratio": decision.ratio,
        "advantage": decision.advantage,
        "weight": decision.weight,
        "weight_unclipped": decision.weight_unclipped,
    }
    columns |= {name: x for name in ("correction", "kl_weight") if (x := getattr(decision, name)) is not None}
    flat = {name: column.flatten().double() for name, column in columns.items()}
    region, effect = decision.region.flatten().tolist(), decision.effect.flatten().tolist()
    count = len(region)
    return [
        {name: float(column[i]) for name, column in flat.items()}
        | {"region": Region(region[i]).name.lower(), "effect": Effect(effect[i]).name.lower()}
        for i in range(0, count, max(1, count // TOKENS))
    ]


def cases_of(subject: Subject) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    loss = subject.policy_loss
    tokens = tokens_of(loss, grid_batch()) + tokens_of(loss, random_batch(8, 8, seed=1))
    return json.loads(json.dumps(nonfinite_as_text(probe(loss)))), tokens


def found_number(pattern: str, sentence: str) -> float | None:
    match = re.search(pattern, sentence)
    return float(match[1]) if match else None


def close(shown: float, true: float) -> bool:
    coarse = 0 < abs(true) < 1e-4 or abs(true) >= 1e6  # written with a power of ten and three digits
    return math.isclose(shown, true, rel_tol=6e-3 if coarse else ROUNDING, abs_tol=1e-12)


def check(sentence: str, token: dict[str, Any], rule: dict[str, Any] | None) -> None:
    """Every claim that the sentence makes."""
    sentence = sentence.replace("\u00a0", " ")
    weight, full, advantage = token["weight"], token["weight_unclipped"], token["advantage"]
    if token["region"] == "masked":
        assert sentence.startswith("Not trained on"), sentence
        assert weight == 0
        return
    if sentence.startswith("A = 0"):
        assert advantage == 0
        assert ("no gradient, with or without a rule" in sentence) == (weight == 0)
        return
    assert f"A {'>' if advantage > 0 else '<'} 0" in sentence or "correction between" in sentence, sentence
    none_left = bool(re.search(r"whose gradient is zero|takes its whole gradient away", sentence))
    assert none_left == (weight == 0), sentence
    ratio = found_number(rf"r = {NUMBER}", sentence)
    if ratio is not None:
        assert close(ratio, token["ratio"]), sentence
        assert ("completion's r" in sentence) == (rule is not None and rule["ratio"] != "token")
    for way, beyond in (("above", token["ratio"] > 0), ("below", True)):
        bound = found_number(rf"is {way} (?:\S+ = )?{NUMBER} and", sentence)
        if bound is not None:
            assert rule is not None
            exact = min((one["ratio"] for one in rule["boundaries"]), key=lambda one: abs(one - bound))
            assert close(bound, exact), sentence
            assert beyond
            assert token["ratio"] > exact if way == "above" else token["ratio"] < exact, sentence
    if "within the bounds" in sentence:
        assert token["region"] == "inside"
        assert rule is not None
        inner = [one for one in rule["boundaries"] if one["advantage"] == math.copysign(1, advantage)]
        assert all(token["ratio"] <= one["ratio"] for one in inner if one["below"] == "inside"), sentence
        assert all(token["ratio"] >= one["ratio"] for one in inner if one["above"] == "inside"), sentence
    if re.search(r"keeps the weight|leaves it alone|as it is", sentence):
        assert weight == full, sentence
        assert close(found_number(rf"r·A(?:·correction)? = {NUMBER}", sentence) or 0.0, full), sentence
    left = found_number(rf"leaves {NUMBER}% of", sentence)
    if left is not None:
        assert 0 < weight / full < 1
        assert math.isclose(left / 100, weight / full, abs_tol=6e-4), sentence
    larger = found_number(rf"gradient {NUMBER} times as large", sentence)
    if larger is not None:
        assert close(larger, weight / full), sentence
        assert larger >= 1
    assert ("turns its gradient round" in sentence) == (weight * full < 0)
    instead = found_number(rf"w = {NUMBER} instead", sentence)
    if instead is not None:
        assert close(instead, weight), sentence


@pytest.fixture(scope="module")
def everything(request: pytest.FixtureRequest) -> list[tuple[Subject, dict[str, Any], dict[str, Any], str]]:
    """Subject, rule, token and sentence, of every rule at all of its settings."""
    all_subjects = [subject for rule in RULES.values() for subject in subjects(rule)]
    cases = [cases_of(subject) for subject in all_subjects]
    written = sentences(list(cases), request)
    return [
        (subject, rule, token, sentence)
        for subject, (rule, tokens), block in zip(all_subjects, cases, written, strict=True)
        for token, sentence in zip(tokens, block, strict=True)
    ]


def test_every_claim_is_true_for_every_rule(everything: list[Any]) -> None:
    assert {subject.rule.name for subject, *_ in everything} == set(RULES)
    for subject, rule, token, sentence in everything:
        try:
            check(sentence, token, rule)
        except AssertionError as error:
            raise AssertionError(f"{subject}: {token}: {sentence}") from error


def test_each_case_of_the_clip_is_told(everything: list[Any]) -> None:
    """Branches of min are named for the rules that take a min, and for no other."""
    told: dict[str, set[str]] = {}
    for subject, _, token, sentence in everything:
        says = re.search(r"min takes the \w+ branch|the clip leaves it alone|the dual clip takes c·A", sentence)
        if says:
            assert subject.rule.surrogate.__name__ == "clip_surrogate", sentence
            told.setdefault(token["region"], set()).add(says[0])
    assert told == {
        "inside": {"the clip leaves it alone"},
        "overshoot": {"min takes the clipped branch"},
        "escaped": {"min takes the clipped branch"},
        "forgotten": {"min takes the unclipped branch"},
        "relapse": {"min takes the unclipped branch"},
        "dual": {"the dual clip takes c·A"},
    }


GRPO = {
    "name": "grpo",
    "ratio": "token",
    "boundaries": [
        {"advantage": 1, "log_ratio": -0.223, "ratio": 0.8, "below": "forgotten", "above": "inside"},
        {"advantage": 1, "log_ratio": 0.247, "ratio": 1.28, "below": "inside", "above": "overshoot"},
        {"advantage": -1, "log_ratio": -0.223, "ratio": 0.8, "below": "escaped", "above": "inside"},
        {"advantage": -1, "log_ratio": 0.247, "ratio": 1.28, "below": "inside", "above": "relapse"},
        {"advantage": -1, "log_ratio": 1.0986, "ratio": 3.0, "below": "relapse", "above": "dual"},
    ],
}


def make_token(region: str, effect: str, ratio: Any, advantage: Any, weight: Any, **more: Any) -> dict[str, Any]:
    unclipped = ratio * advantage if isinstance(ratio, float) else ratio
    numbers = {"ratio": ratio, "advantage": advantage, "weight": weight, "weight_unclipped": unclipped}
    return {"region": region, "effect": effect} | numbers | more


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        (
            make_token("overshoot", "stopped", 1.43, 0.5, 0.0),
            "r = 1.43 is above 1+ε_high = 1.28 and A > 0: min takes the clipped branch, a constant, whose gradient is "
            "zero.",
        ),
        (
            make_token("escaped", "stopped", 0.5, -1.0, 0.0, kl_weight=0.02),
            "r = 0.5 is below 1−ε_low = 0.8 and A < 0: min takes the clipped branch, a constant, whose gradient is "
            "zero. But the KL penalty moves it, with the weight 0.02.",
        ),
        (
            make_token("relapse", "kept", 2.0, -1.0, -2.0, kl_weight=0.02),
            "r = 2 is above 1+ε_high = 1.28 and A < 0: min takes the unclipped branch, so its gradient keeps the "
            "weight r·A = -2, which grows with r. The KL penalty adds 0.02 to that weight.",
        ),
        (
            make_token("dual", "stopped", 3.5, -1.0, 0.0),
            "r = 3.5 is above c = 3 and A < 0: the dual clip takes c·A there, a constant, whose gradient is zero.",
        ),
        (
            make_token("dropped", "stopped", 1.0, -1.0, 0.0, correction=0.0),
            "The correction between rollout engine and trainer leaves it out, whatever the rule says of it, and so "
            "takes its whole gradient away.",
        ),
        (
            make_token("inside", "kept", 1.0, 2.0, 1.0, correction=0.5, weight_unclipped=1.0),
            "r = 1 is within the bounds and A > 0: the clip leaves it alone, and its gradient has the weight "
            "r·A·correction = 1.",
        ),
        (
            make_token("no_signal", "none", 1.1, 0.0, 0.0),
            "A = 0: there is nothing to make likelier or rarer, so it has no gradient, with or without a rule.",
        ),
        (
            make_token("masked", "none", 1.0, 0.0, 0.0),
            "Not trained on (prompt, padding or tool output), so it has no gradient.",
        ),
        (
            make_token("relapse", "kept", "NaN", -1.0, "NaN"),
            "Not all of its numbers are finite (r NaN, A -1, w NaN): nothing can be said of its gradient.",
        ),
        (
            make_token("new_region", "kept", 1.5, 1.0, 1.5),
            "r = 1.5, A > 0, new region: the rule leaves its gradient as it is, with the weight r·A = 1.5.",
        ),
    ],
)
def test_the_sentence(token: dict[str, Any], sentence: str, request: pytest.FixtureRequest) -> None:
    """Golden ones, of GRPO with clip-higher and a dual clip; those that no clip explains are told by their effect."""
    rule = GRPO if token["region"] != "new_region" else None
    written = sentences([(rule, [token])], request)[0][0].replace("\u00a0", " ")
    assert written.replace(" (undefined)", "") == sentence


def test_a_correction_and_a_kl_in_the_loss_are_told(request: pytest.FixtureRequest) -> None:
    from dinghai.objective.correction import TruncatedIS

    loss = PolicyLoss("grpo", correction=TruncatedIS(cap=1.5), kl="k3", beta=0.05)
    batch = random_batch(10, 10, seed=3, spread=0.4)
    noise = 0.5 * torch.randn(batch.logp_old_BT.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = tokens_of(loss, batch, logp_ref=batch.logp_old_BT - 0.1, logp_sampler=batch.logp_old_BT + noise)
    told = 0
    for token, sentence in zip(tokens, sentences([(GRPO, tokens)], request)[0], strict=True):
        if token["region"] in ("masked", "no_signal"):
            continue
        assert ("KL penalty moves it" in sentence) == (token["weight"] == 0)
        if token["weight"] != 0:
            assert "KL penalty adds" in sentence
            assert "r·A·correction" in sentence
            told += 1
    assert told > 10


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "1"),
        (1.0003, "1.0003"),
        (0.99968, "0.99968"),
        (1.00000001, "1.00000001"),
        (1.2, "1.2"),
        (2.71828, "2.718"),
    ],
)
def test_a_ratio_near_1_keeps_the_digits_that_tell_it_from_1(
    ratio: float, text: str, request: pytest.FixtureRequest
) -> None:
    assert in_javascript("formatRatio(data)", ratio, request) == text
