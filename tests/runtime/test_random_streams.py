"""Every stream that user code may draw from is seeded, kept and stored."""

import random

import numpy as np
import torch

from pruning_lab.runtime.random_streams import seed_all, set_states, states, streams_kept

CPU = torch.device("cpu")


def drawn():
    return [
        torch.rand(3).tolist(),
        torch.randn(1).item(),
        np.random.normal(size=3).tolist(),  # noqa: NPY002
        random.random(),
        random.gauss(0, 1),
    ]


def test_a_seed_sets_all_of_them():
    seed_all(2**40 + 3)  # more than numpy takes
    first = drawn()
    seed_all(2**40 + 3)
    assert drawn() == first
    assert drawn() != first


def test_they_are_put_back_after_an_error_too():
    seed_all(1)
    expected = drawn()
    seed_all(1)
    try:
        with streams_kept([CPU]):
            drawn()
            raise KeyError
    except KeyError:
        pass
    assert drawn() == expected


def test_states_hold_half_of_a_pair_of_normal_numbers():
    seed_all(5)
    random.gauss(0, 1)
    np.random.normal()  # noqa: NPY002
    before = states(CPU)
    expected = drawn()
    seed_all(6)
    set_states(before, CPU)
    assert drawn() == expected


def test_states_are_tensors_that_can_be_stored():
    assert all(isinstance(each, torch.Tensor) for each in states(CPU).values())
