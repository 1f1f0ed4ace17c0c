"""Studies import their own parts as `python studies/NAME.py` finds them."""

from __future__ import annotations

import sys
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"

if str(STUDIES) not in sys.path:
    sys.path.insert(0, str(STUDIES))
