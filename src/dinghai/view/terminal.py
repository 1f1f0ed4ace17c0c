"""Text that a model or a data set wrote, for rich."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from dinghai.text import safe


def safe_text(text: str, style: str | Style = "") -> Text:
    """The safe text for rich. A `Text` is never parsed as markup, so `[bold]` or `[/INST]` show as they are."""
    return Text(safe(text), style=style)
