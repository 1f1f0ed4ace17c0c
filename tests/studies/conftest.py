"""The studies are programs beside each other: their folder is where `python studies/NAME.py` finds its own parts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
