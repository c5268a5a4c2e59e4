"""The plan of an experiment, with estimates of its cost."""
