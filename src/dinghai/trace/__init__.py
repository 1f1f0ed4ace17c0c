"""The record on disk: what became of each token in each update. See `schema` for the layout."""

from dinghai.trace.background import BackgroundWriter
from dinghai.trace.reader import Marker, TraceReader
from dinghai.trace.schema import TRACE_VERSION, Names
from dinghai.trace.writer import Samples, TraceWriter, discard_steps_from

__all__ = [
    "TRACE_VERSION",
    "BackgroundWriter",
    "Marker",
    "Names",
    "Samples",
    "TraceReader",
    "TraceWriter",
    "discard_steps_from",
]
