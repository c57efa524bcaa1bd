"""Every figure: tidy frame in, `plotly.graph_objects.Figure` out, never shown by the library."""

from .overview import overview
from .ribbon import ribbon
from .routing import alternatives, confidence, expert_map, occupancy, outcomes, precision
from .time import breakdown, timeline
from .trade import break_even, oracle_gap, pareto, thresholds

__all__ = [
    "alternatives",
    "break_even",
    "breakdown",
    "confidence",
    "expert_map",
    "oracle_gap",
    "occupancy",
    "outcomes",
    "overview",
    "pareto",
    "precision",
    "ribbon",
    "thresholds",
    "timeline",
]
