"""Run only the part of a model that comes after a layer."""
