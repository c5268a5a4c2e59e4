"""Find the units of a model that can only be removed together."""
