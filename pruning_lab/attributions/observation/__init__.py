"""Checks of how a model and its data behave when they are read."""
