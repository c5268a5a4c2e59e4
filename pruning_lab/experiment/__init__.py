"""One experiment, from the configuration to its record."""
