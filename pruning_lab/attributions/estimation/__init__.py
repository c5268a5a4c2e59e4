"""Reduce per-sample scores to unit scores with errors, and decide when to stop sampling."""
