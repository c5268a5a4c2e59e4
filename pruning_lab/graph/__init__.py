"""Trace a model into a graph of operations, for ``coupling`` and ``partial_forward``."""
