"""The explainer as a page: one file that works offline, in English and Chinese, and the words that it shares with the
terminal.

What the rules are comes from the caller as plain data; their mathematics in the browser is `page/explain_math.js`.
"""

from __future__ import annotations

import html
import json
from functools import cache
from string import Template
from typing import Any

from dinghai.lens.regions import REGIONS
from dinghai.view import bundle
from dinghai.view.palette import palette_css
from dinghai.view.report import content_security_policy, embedded_json

LANGUAGES = ("en", "zh")
CASES = ("inside", "overshoot", "relapse", "forgotten", "escaped", "dual")  # of PPO's clip, with the dual clip
_STYLES = ["base.css", "explain.css"]


class Words:
    """All that the explainer says, in one language."""

    def __init__(self, language: str) -> None:
        texts = _texts()
        self.language = language
        self._said: dict[str, str] = texts[language]
        self._translated: dict[str, str] = texts["registry"] if language == "zh" else {}

    def say(self, key: str, **values: object) -> str:
        """The text of a key, with its {placeholders} filled in. KeyError: there is no such text, or value."""
        return self._said[key].format(**values)

    def has(self, key: str) -> bool:
        """Whether there is a text of this key."""
        return key in self._said

    def of_registry(self, text: str) -> str:
        """What the registry says of a rule or parameter; as it is where there is no translation."""
        return self._translated.get(text, text)

    def region(self, name: str) -> str:
        """A region by the name that metrics have for it, in Chinese with its translation."""
        return name if self.language == "en" else f"{name} {self.say(f'region.{name}')}"

    def purpose(self, region: str, effect: str, share: str) -> str:
        """What a rule that has this effect on a token of this region is after. share: |w| / |w0|, as a percentage."""
        special = f"for.{region}.{effect}"
        return self.say(special) if special in self._said else self.say(f"effect.{effect}", share=share)


def explain_page(
    rules: list[dict[str, Any]],
    missing: list[dict[str, str]],
    start: dict[str, Any] | None = None,
    language: str | None = None,
) -> bytes:
    """The page as UTF-8. The same arguments give the same bytes.

    Args:
        rules: those that the page draws, as `dinghai.catalogue.explain_rules.drawn_rules` describes them.
        missing: those that it cannot draw: name, title and the key of the reason.
        start: rule, parameters, ratio, advantage and p_old to begin with, each optional; None: PPO, overshoot.
        language: "en" or "zh" to begin with; None: that of the browser.
    """
    texts = _texts()
    style = palette_css() + bundle.style(_STYLES)
    script = bundle.script("explain.js")
    data = {
        "words": {language: texts[language] for language in LANGUAGES},
        "translated": texts["registry"],
        "rules": rules,
        "missing": missing,
        "claims": json.loads(bundle.page_file("explain_claims.json")),
        "recorded": json.loads(bundle.page_file("explain_examples.json")),
        "regions": REGIONS,
        "start": start,
        "language": language,
    }
    page = Template(bundle.page_file("explain.html")).substitute(
        csp=content_security_policy(script, style),
        title=html.escape(Words(language or "en").say("title")),
        language=language or "en",
        style=style,
        script=script,
        without_script="\n".join(_without_script(Words(language)) for language in LANGUAGES),
        data=embedded_json(data),
    )
    return page.encode("utf-8")


def _without_script(words: Words) -> str:
    """What a reader sees who runs no scripts: the cases and what they are for."""
    rows = []
    for name in CASES:
        effect = "stopped" if words.has(f"for.{name}.stopped") else "kept"
        cells = (words.region(name), words.say(f"who.{name}"), words.purpose(name, effect, ""))
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    title, lead = (html.escape(words.say(key)) for key in ("title", "lead_without_script"))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<section lang="{words.language}"><h1>{title}</h1><p>{lead}</p><table>{table}</table></section>'


@cache
def _texts() -> dict[str, Any]:
    texts: dict[str, Any] = json.loads(bundle.page_file("explain_words.json"))
    return texts
