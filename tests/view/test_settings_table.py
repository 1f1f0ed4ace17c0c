"""Settings become rows; secrets are hidden by name and by value, and what only sounds like one is not."""

from __future__ import annotations

import pytest

from dinghai.view.settings_table import HIDDEN, settings_rows, version_rows


def test_nested_settings_get_dotted_names() -> None:
    config = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": "x"}, {"e": None}], "f": {}, "g": True}
    assert settings_rows(config) == [
        ("a.b", "1"),
        ("a.c", "[1, 2]"),
        ("d.0.e", '"x"'),
        ("d.1.e", "null"),
        ("f", "{}"),
        ("g", "true"),
    ]


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "hf_token", "HF_TOKEN", "token", "client_secret", "password", "db_passwd", "auth"]
)
def test_secrets_are_known_by_name(name: str) -> None:
    assert settings_rows({"x": {name: "value"}}) == [(f"x.{name}", HIDDEN)]


@pytest.mark.parametrize("name", ["tokens", "max_new_tokens", "micro_batch_tokens", "keep", "author", "secretary"])
def test_what_only_sounds_like_a_secret_is_shown(name: str) -> None:
    assert settings_rows({name: 5}) == [(name, "5")]


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "a" * 34,
        "sk-" + "a" * 40,
        "ghp_" + "a" * 36,
        "AKIA" + "A" * 16,
        "https://user:pass@host/x",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_secrets_are_known_by_their_looks(value: str) -> None:
    assert settings_rows({"path": value, "list": ["a", value]}) == [("path", HIDDEN), ("list", HIDDEN)]


def test_a_secret_that_is_not_set_is_shown_as_such() -> None:
    assert settings_rows({"hf_token": None}) == [("hf_token", "null")]


def test_versions_name_the_packages() -> None:
    versions = dict(version_rows())
    assert {"python", "dinghai", "torch", "pyarrow"} <= set(versions)
    assert versions["torch"] != "not installed"
