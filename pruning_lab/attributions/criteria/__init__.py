"""The criteria, one per file."""
