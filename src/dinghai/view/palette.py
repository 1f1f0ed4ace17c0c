"""The colours of everything that is shown: pages, figures, explainer. One palette, for light and for dark.

A region must be told from every other by readers with each kind of colour vision, as an area and as a token's tint,
and as far as seven hues allow in a grey print too; text must be read on all of it. The tests measure that.
"""

from __future__ import annotations

# name -> value, for light pages. Regions carry their own names; the rest:
#   paper, card: the page and what lies on it; ink, soft: text and lesser text; line, grid: borders, and lines in charts
#   accent: links and what has the focus; bad: what went wrong; c0…c5: series of a chart
#   seq0…seq4: from little to much; div0…div6: from negative over nothing to positive. Text is legible on each of them.
#   tint: how much of a region's colour a token's background takes
LIGHT = {
    "paper": "#fbfbf9",
    "card": "#ffffff",
    "ink": "#1d2329",
    "soft": "#5c6670",
    "line": "#e2e4e1",
    "grid": "#eceeeb",
    "accent": "#0b6e8f",
    "bad": "#b3261e",
    "c0": "#04758e",
    "c1": "#d67314",
    "c2": "#4c3593",
    "c3": "#6d9669",
    "c4": "#706125",
    "c5": "#933760",
    "inside": "#c3c9cf",
    "overshoot": "#c25700",
    "relapse": "#cd76b4",
    "forgotten": "#2b9777",
    "escaped": "#2b4f9e",
    "dual": "#3f3340",
    "dropped": "#a3954f",
    "no_signal": "#dfe3e6",
    "masked": "#f0f0ee",
    "seq0": "#f0f8fa",
    "seq1": "#bfe3ed",
    "seq2": "#8dcede",
    "seq3": "#57b8d1",
    "seq4": "#0ea0c2",
    "div0": "#e5845d",
    "div1": "#f0ac8b",
    "div2": "#f7d6c3",
    "div3": "#f7f6f4",
    "div4": "#c9e0f4",
    "div5": "#94c0ec",
    "div6": "#61a2e5",
    "tint": "40%",
}

DARK = {
    "paper": "#12161a",
    "card": "#1a2026",
    "ink": "#e8ecee",
    "soft": "#9aa5ae",
    "line": "#2c343b",
    "grid": "#252c33",
    "accent": "#5cc0de",
    "bad": "#ff8a80",
    "c0": "#62c0d0",
    "c1": "#f7a03a",
    "c2": "#8c7fdf",
    "c3": "#b8e2b2",
    "c4": "#a59471",
    "c5": "#c4588a",
    "inside": "#47535e",
    "overshoot": "#f5822f",
    "relapse": "#eda0dd",
    "forgotten": "#35ab82",
    "escaped": "#5f7fc4",
    "dual": "#cfcfcf",
    "dropped": "#dcc37a",
    "no_signal": "#2f373e",
    "masked": "#20262b",
    "seq0": "#1c252a",
    "seq1": "#21383f",
    "seq2": "#1c4d59",
    "seq3": "#0e5f71",
    "seq4": "#05728a",
    "div0": "#a14d31",
    "div1": "#7b3f2b",
    "div2": "#533427",
    "div3": "#20272b",
    "div4": "#2b3c55",
    "div5": "#2d517f",
    "div6": "#2b67a9",
    "tint": "42%",
}

SERIES = ["c0", "c1", "c2", "c3", "c4", "c5"]
SEQUENTIAL = ["seq0", "seq1", "seq2", "seq3", "seq4"]
DIVERGING = ["div0", "div1", "div2", "div3", "div4", "div5", "div6"]


def palette_css() -> str:
    """The palette as CSS variables: `--overshoot` and so on.

    Light, and dark where the reader's system asks for it; `data-theme="light"` or `"dark"` on the html element
    overrides the system.
    """
    dark = _variables(DARK, "dark")
    return (
        f":root{{{_variables(LIGHT, 'light')}}}\n"
        f"@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
    )


def _variables(colours: dict[str, str], scheme: str) -> str:
    """`color-scheme` gives form controls and scroll bars the same theme."""
    return f"color-scheme:{scheme};" + "".join(f"--{name}:{value};" for name, value in colours.items())
