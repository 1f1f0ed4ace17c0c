"""What the clip did to a run, from its metrics and its trace."""

from dinghai.lens.metrics_file import TornLine, read_metrics
from dinghai.lens.regions import EFFECT_MEANING, REGION_MEANING
from dinghai.lens.summary import RunSummary, summarize
from dinghai.lens.verdict import closing_lines, sentences

__all__ = [
    "EFFECT_MEANING",
    "REGION_MEANING",
    "RunSummary",
    "TornLine",
    "closing_lines",
    "read_metrics",
    "sentences",
    "summarize",
]
