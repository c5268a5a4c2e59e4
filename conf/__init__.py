"""The Hydra configuration groups, installed as the package ``pruning_lab.conf``."""
