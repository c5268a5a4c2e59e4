"""The model traced once: layers and followers, evaluation sites, the part behind a site."""

from pruning_lab.graph.hooked import HookedGraph
from pruning_lab.graph.kinds import unit_axis, units_of
from pruning_lab.graph.trace import Follower, Graph, UntraceableError, trace

__all__ = [
    "Follower",
    "Graph",
    "HookedGraph",
    "UntraceableError",
    "trace",
    "unit_axis",
    "units_of",
]
