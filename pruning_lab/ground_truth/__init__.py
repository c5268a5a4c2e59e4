"""Measure the harm of removing units in each criterion's order, compared with random orders.

``python -m pruning_lab.ground_truth`` measures one network, ``python -m
pruning_lab.ground_truth.join`` combines the results of several networks.
"""
