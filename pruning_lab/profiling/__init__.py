"""The cost of a model (FLOPs, parameters, latency) and of work (passes, seconds, memory)."""
