"""Schedules and plans: choose the units to remove, without changing the model."""
