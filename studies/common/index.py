"""Writes the list of studies in studies/README.md from the pages in studies/results.

    python studies/common/index.py

Every study does it at its end. What stands between the two marks is written again; the rest is left as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from dinghai.errors import RunFailed
from dinghai.files import write_atomically

STUDIES = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"


def write_index(readme: Path = STUDIES / "README.md", pages: Path = STUDIES / "results") -> None:
    """Raises RunFailed where the README has not both marks."""
    text = readme.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RunFailed(f"{readme} has not both marks, {BEGIN} and {END}: put them back")
    write_atomically(readme, f"{before}{BEGIN}\n\n{index(pages)}\n{END}{after}")


def index(pages: Path) -> str:
    """A row for each page: its title as a link, its question and its verdict in short."""
    rows = ["| study | question | in short |", "| --- | --- | --- |"]
    for page in sorted(pages.glob("*.md")):
        text = page.read_text("utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        question = re.search(r"^\*\*Question\.\*\* (.+)$", text, re.MULTILINE)
        short = re.search(r"^\*\*In short\.\*\* (.+)$", text, re.MULTILINE)
        if title and question and short:
            cells = [f"[{title[1]}](results/{page.name})", question[1], short[1]]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    write_index()
