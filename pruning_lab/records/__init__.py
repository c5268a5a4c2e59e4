"""What one step of an experiment leaves behind."""
