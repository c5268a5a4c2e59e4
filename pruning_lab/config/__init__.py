"""Check the configuration that Hydra composed, and build the objects that it describes."""
