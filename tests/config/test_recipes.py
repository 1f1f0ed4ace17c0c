"""Recipes: every one of them can be set and trained with, beats the defaults and nothing else, and says what it did.

Run: pytest tests/config/test_recipes.py
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from dinghai.config.load import all_settings, load_settings, settings_from_json, settings_to_json
from dinghai.config.recipes import RECIPES, Choice, Recipe, find_recipe, recipe_lines
from dinghai.config.settings import RewardSettings
from dinghai.configured import build_policy_loss, rule_parameters
from dinghai.errors import InputError
from dinghai.train.run import train

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)

# What the guard rails say of a paper's own values, since the paper is out of their range.
WARNINGS = {
    "grpo": ["one update on each batch of rollouts"],
    "r1": ["eps_low = 10 is on another scale", "eps_high = 10 is on another scale"],
}

# From the papers, typed in a second time: section, table or appendix as the recipe names it.
PAPERS = [
    ("grpo", "objective.kl.beta", 0.04),
    ("grpo", "rollout.group_size", 64),
    ("r1", "objective.eps_high", 10),
    ("r1", "update.minibatches", 16),
    ("dapo", "objective.eps_low", 0.2),
    ("dapo", "objective.eps_high", 0.28),
    ("dapo", "update.minibatches", 8192 // 512),
    ("dr_grpo", "objective.reduction", "seq-mean-token-sum-norm"),
    ("dr_grpo", "advantage.scale", "none"),
    ("gspo", "objective.eps_low", 0.0003),
    ("gspo", "objective.eps_high", 0.0004),
    ("gspo", "update.minibatches", 4),
    ("luspo", "objective.eps_high", 0.0025),
    ("ce_gppo", "objective.parameters.beta_1", 0.75),
    ("aspo", "objective.kl.beta", 0.001),
    ("dcpo", "objective.eps_low", 0.16),
    ("bapo", "objective.parameters.rho", 0.4),
    ("m2po", "objective.parameters.tau", 0.04),
    ("gmpo", "objective.eps_low", 0.4),
    ("sapo", "objective.parameters.tau_neg", 1.05),
    ("vespo", "objective.parameters.lambda_neg", 2),
    ("dppo", "objective.parameters.delta_high", 0.2),
    ("dppo_kl", "objective.parameters.delta_high", 0.05),
    ("clip_cov", "objective.parameters.share", 0.0002),
    ("kl_cov", "objective.parameters.share", 0.002),
    ("rloo", "objective.kl.beta", 0.03),
    ("reinforce_plus_plus", "objective.kl.estimator", "k1"),
    ("reinforce_plus_plus_baseline", "objective.kl.estimator", "k2"),
    ("deepseek_v3_2", "objective.kl.correction", "ratio"),
    ("ppo", "objective.kl.beta", 0.02),
    ("ppo", "update.minibatches", 512 // 64),
]


# Differs within a group, so that there is something to learn from.
REWARD = """
def spread(completions, **others):
    return [sum(map(ord, text)) % 7 / 6 for text in completions]
"""


def with_choices(recipe: Recipe, *others: Choice) -> Recipe:
    return Recipe("mine", "Mine", "no paper", (*recipe.settings, *others))


def value(settings, key: str):
    for part in key.split("."):
        settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
    return settings


@pytest.fixture
def threads():
    """A run sets the number of threads of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "my.toml"
        path.write_text(text)
        return path

    return write


# --- every recipe ----------------------------------------------------------------------------------------------------


@every_recipe
def test_each_setting_exists_and_arrives(recipe):
    """Every setting of the recipe has the recipe's value in what comes of it, and survives the record of a run."""
    settings = load_settings(None, [], recipe)
    for key, expected, _ in recipe.settings:
        assert value(settings, key) == expected, key
    assert settings_from_json(settings_to_json(settings)) == settings


@every_recipe
def test_a_rule_can_be_built_and_warns_only_where_the_paper_is_out_of_range(recipe):
    """The rule, its parameters, its ratio and its correction exist, and have the recipe's values."""
    settings = load_settings(None, [], recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy_loss = build_policy_loss(settings)
    said = [str(warning.message) for warning in caught]
    assert len(said) == len(WARNINGS.get(recipe.name, [])), said
    assert all(expected in text for expected, text in zip(WARNINGS.get(recipe.name, []), said, strict=True))
    for key, expected, _ in recipe.settings:
        name = key.rpartition(".")[2]
        if key.startswith("objective.parameters.") or name in ("eps_low", "eps_high", "dual_clip"):
            assert getattr(policy_loss.parameters, name) == expected, key


@every_recipe
def test_each_setting_has_a_source_and_none_is_the_users(recipe):
    """No setting without its source, none twice, and none of those that belong to a machine and a task."""
    keys = [choice.key for choice in recipe.settings]
    assert len(keys) == len(set(keys))
    assert all(choice.source.strip() for choice in recipe.settings)
    assert {key.split(".")[0] for key in keys} <= {"objective", "advantage", "rollout", "update"}
    mine = {"rollout.prompts", "rollout.max_new_tokens", "rollout.batch_size", "rollout.overlong_buffer", "update.lr"}
    assert not mine & set(keys)
    assert "objective.rule" in keys
    assert "advantage.kind" in keys


@every_recipe
def test_the_lines_say_each_setting_in_a_hundred_columns(recipe):
    """Every setting is printed with its value; a plain terminal can show all of it."""
    lines = recipe_lines(recipe, load_settings(None, [], recipe))
    text = "\n".join(lines)
    assert text.isascii()
    assert max(map(len, lines)) <= 100
    for key, _, source in recipe.settings:
        assert any(line.split(" = ")[0].strip() == key for line in lines), key
        assert " ".join(source.split()) in " ".join(text.split()), key
    assert "overridden" not in text
    assert "left out" not in text


@pytest.mark.parametrize("name, key, expected", PAPERS)
def test_values_are_those_of_the_papers(name, key, expected):
    assert value(load_settings(None, [], RECIPES[name]), key) == expected


@every_recipe
@pytest.mark.filterwarnings("ignore:one update on each batch", "ignore:eps_.* is on another scale")
def test_a_run_can_be_trained_by_it(recipe, tmp_path, threads):
    """One step with the whole configuration: no two of its settings exclude each other in the trainer."""
    (tmp_path / "rewards.py").write_text(REWARD)
    reward = f"{tmp_path / 'rewards.py'}:spread"
    alone = recipe.tables().get("rollout", {}).get("group_size") == 1
    small = {
        "run.folder": tmp_path, "run.name": "one", "run.steps": 1, "model.hidden_size": 16, "model.heads": 2,
        "task.held_out": 2, "cold_start.steps": 2, "rollout.prompts": 16 if alone else 2, "rollout.max_new_tokens": 12,
    }  # fmt: skip
    settings = load_settings(None, [f"--{key}={value}" for key, value in small.items()], recipe)
    train(settings.model_copy(update={"rewards": [RewardSettings(source=reward)]}), {reward})
    metrics = json.loads((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["step"] == 1
    assert metrics["tokens/signal"] > 0


def test_recipes_need_no_torch():
    """`--recipe` is answered, and refused, at once."""
    code = (
        "import sys, dinghai.config.load as load, dinghai.config.recipes as recipes\n"
        "chosen = recipes.find_recipe('dapo')\n"
        "recipes.recipe_lines(chosen, load.load_settings(None, [], chosen))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what beats what -------------------------------------------------------------------------------------------------


def test_the_file_beats_the_recipe_and_the_command_line_beats_both(toml):
    path = toml("[objective]\neps_high = 0.5\neps_low = 0.1\n[rollout]\ntop_p = 0.9\n[update]\nlr = 0.5\n")
    found = load_settings(path, ["--objective.eps_low=0.15", "--update.minibatches=3"], RECIPES["dapo"])
    assert (found.objective.eps_low, found.objective.eps_high) == (0.15, 0.5)  # command line, file
    assert (found.rollout.top_p, found.update.lr, found.update.minibatches) == (0.9, 0.5, 3)
    assert (found.rollout.group_size, found.objective.reduction) == (16, "token-mean")  # recipe
    assert found.evaluation == load_settings(None, []).evaluation  # defaults


def test_without_a_recipe_nothing_changes(toml):
    path = toml('[advantage]\nkind = "gae"\nlam = 0.5\n')
    assert load_settings(path, [], None) == load_settings(path, [])
    assert load_settings(path, []).advantage.lam == 0.5


def test_a_file_that_names_no_kind_has_that_of_the_recipe(toml):
    found = load_settings(toml("[advantage]\nlam = 0.5\n"), [], RECIPES["ppo"]).advantage
    assert (found.kind, found.lam, found.gamma) == ("gae", 0.5, 1.0)
    with pytest.raises(InputError, match=r'advantage\.scale belongs to advantage\.kind = "group"'):
        load_settings(toml('[advantage]\nscale = "none"\n'), [], RECIPES["ppo"])


def test_another_kind_leaves_behind_what_only_the_recipes_kind_has(toml):
    """From the file as from the command line; keys that both kinds have keep the recipe's value."""
    spo = RECIPES["spo"]
    from_file = load_settings(toml('[advantage]\nkind = "reinforce_plus_plus"\n'), [], spo)
    typed = load_settings(None, ["--advantage.kind=reinforce_plus_plus"], spo)
    assert from_file == typed
    assert (typed.advantage.kind, typed.advantage.gamma) == ("reinforce_plus_plus", 0.99)
    lines = "\n".join(recipe_lines(spo, typed))
    assert 'advantage.lam            = 0.95          left out: advantage.kind is "reinforce_plus_plus"' in lines
    assert 'advantage.kind           = "gae"         overridden: "reinforce_plus_plus" (the authors' in lines


@pytest.mark.parametrize("in_file", [True, False])
def test_another_rule_leaves_behind_the_parameters_of_the_recipes_rule(toml, in_file):
    """CISPO's cap means nothing to GSPO, and GSPO's bounds would never act on the ratio of a token."""
    path = toml('[objective]\nrule = "grpo"\n') if in_file else None
    typed = [] if in_file else ["--objective.rule=grpo"]
    cispo, gspo = (load_settings(path, typed, RECIPES[name]).objective for name in ("cispo", "gspo"))
    assert (cispo.rule, cispo.parameters, cispo.reduction) == ("grpo", {}, "token-mean")
    assert (gspo.rule, gspo.eps_low, gspo.eps_high, gspo.ratio) == ("grpo", None, None, None)
    lines = "\n".join(recipe_lines(RECIPES["cispo"], load_settings(path, typed, RECIPES["cispo"])))
    assert 'left out: objective.rule is "grpo"' in lines


def test_naming_the_recipes_own_rule_changes_nothing():
    dapo = RECIPES["dapo"]
    assert load_settings(None, ["--objective.rule=dapo"], dapo) == load_settings(None, [], dapo)


@pytest.mark.parametrize("in_file", [True, False])
def test_a_parameter_may_be_given_under_its_other_spelling(toml, in_file):
    path = toml("[objective.parameters]\neps_high = 0.5\n") if in_file else None
    typed = [] if in_file else ["--objective.parameters.eps_high=0.5"]
    found = load_settings(path, typed, RECIPES["dapo"])
    assert rule_parameters(found.objective) == {"eps_low": 0.2, "eps_high": 0.5}
    assert "overridden: 0.5 (section 4.1" in "\n".join(recipe_lines(RECIPES["dapo"], found))


def test_corrections_and_parameters_are_added_to_those_of_the_recipe(toml):
    path = toml("[objective.corrections.geometric-rejection]\n[objective.corrections.tis]\ncap = 3.0\n")
    found = load_settings(path, [], RECIPES["tis"]).objective.corrections
    assert found == {"tis": {"cap": 3.0}, "geometric-rejection": {}}
    assert load_settings(None, ["--objective.corrections={}"], RECIPES["tis"]).objective.corrections == {}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, expected",
    [
        ("objective.eps_hihg", "recipe mine: objective.eps_hihg is not a setting; did you mean objective.eps_high"),
        ("objektive.rule", "recipe mine: objektive is not a setting"),
        (
            "advantage.lam",
            'recipe mine: advantage.lam belongs to advantage.kind = "gae", but advantage.kind is "group"',
        ),
    ],
)
def test_a_recipe_with_a_setting_that_does_not_exist_is_refused(key, expected):
    with pytest.raises(InputError) as caught:
        load_settings(None, [], with_choices(RECIPES["dapo"], Choice(key, 0.5, "nowhere")))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dapoo", "there is no recipe dapoo; did you mean dapo"),
        ("gsp", "did you mean gspo"),
        ("zzzz", "there is no recipe zzzz; there are ppo, grpo, r1, dapo"),
        ("\x1b[31m", r"there is no recipe \x1b[31m"),
        ("", "there is no recipe ; there are"),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_nearest(name, expected):
    with pytest.raises(InputError) as caught:
        find_recipe(name)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["dr_grpo", "dr-grpo", "Dr-GRPO", " dr_grpo "])
def test_a_recipe_is_found_however_it_is_written(name):
    assert find_recipe(name) is RECIPES["dr_grpo"]


# --- what is printed -------------------------------------------------------------------------------------------------


def test_what_the_user_changed_is_marked():
    dapo = RECIPES["dapo"]
    found = load_settings(None, ["--objective.eps_high=0.3", "--rollout.dynamic_sampling=false"], dapo)
    lines = recipe_lines(dapo, found)
    assert "  objective.eps_low        = 0.2           section 4.1" in lines
    assert "  objective.eps_high       = 0.28          overridden: 0.3 (section 4.1; clip-higher, section 3.1)" in lines
    assert "  rollout.dynamic_sampling = true          overridden: false (section 3.2)" in lines
    assert sum("overridden" in line for line in lines) == 2


@pytest.mark.parametrize(
    "name, overrides, expected",
    [
        ("gspo", [], "4 (update.epochs 1 x update.minibatches 4); bounds on the ratio can act from the second on"),
        ("grpo", [], "1 (update.epochs 1 x update.minibatches 1); every ratio is 1, so no bound on it can act"),
        ("gspo", ["--update.minibatches=1"], "every ratio is 1, so no bound on it can act"),
        ("kimi", [], "(update.epochs 2 x update.minibatches 2), which the recipe leaves to you; bounds"),
    ],
)
def test_it_says_whether_a_bound_can_act(name, overrides, expected):
    lines = recipe_lines(RECIPES[name], load_settings(None, overrides, RECIPES[name]))
    assert expected in " ".join(" ".join(lines).split())


def test_it_ends_with_what_it_does_not_set():
    lines = recipe_lines(RECIPES["dapo"], load_settings(None, [], RECIPES["dapo"]))
    text = " ".join(" ".join(lines).split())
    assert "not set, it is yours: model, task, rewards, rollout.prompts" in text
    assert text.endswith("depends on rollout.max_new_tokens: the paper has 4,096 of 20,480")
    known = {setting.key for setting in all_settings()}
    for key in ("rollout.prompts", "rollout.max_new_tokens", "update.lr", "run.steps", "rollout.overlong_buffer"):
        assert key in text
        assert key in known


def test_text_of_the_user_cannot_steer_the_terminal():
    found = load_settings(None, ["--objective.rule=\x1b[2J\u202e数据" + "x" * 300], RECIPES["dapo"])
    lines = recipe_lines(RECIPES["dapo"], found)
    assert all(line.isascii() and line.isprintable() for line in lines)
