"""Former name of ``pruning_lab.ground_truth``, kept as an alias of its two commands."""
