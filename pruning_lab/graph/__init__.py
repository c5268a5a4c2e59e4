"""The model traced once: which units go together, where they are read, the part behind a site."""

from pruning_lab.graph.hooked import HookedGraph
from pruning_lab.graph.kinds import unit_axis, units_of
from pruning_lab.graph.structure import Group, Structure, find_structure
from pruning_lab.graph.trace import Graph, UntraceableError, trace

__all__ = [
    "Graph",
    "Group",
    "HookedGraph",
    "Structure",
    "UntraceableError",
    "find_structure",
    "trace",
    "unit_axis",
    "units_of",
]
