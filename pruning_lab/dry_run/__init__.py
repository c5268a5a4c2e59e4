"""What an experiment would do and about what it would take."""
