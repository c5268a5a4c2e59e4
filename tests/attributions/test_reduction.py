"""Reduced batch after batch as numpy does it on all samples at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_lab.attributions.reduction import Reducer, estimate
from pruning_lab.errors import UserError

AT_ONCE = {
    "mean": lambda rows: rows.mean(0),
    "sum": lambda rows: rows.sum(0),
    "mean_plus_2_std": lambda rows: rows.mean(0) + 2 * rows.std(0),
    "none": lambda rows: rows,
}


def reduced(rows, reduction, sizes):
    reducer = Reducer(reduction)
    for part in np.split(rows, np.cumsum(sizes)):
        if len(part):
            reducer.add(torch.from_numpy(part))
    return estimate([reducer]).scores


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
)
def test_batches_do_not_matter(seed, sizes, offset):
    rows = offset + np.random.default_rng(seed).standard_normal((sum(sizes), 3))
    for reduction, at_once in AT_ONCE.items():
        found = reduced(rows, reduction, sizes)
        np.testing.assert_allclose(found, at_once(rows), rtol=1e-12, atol=1e-9)


def test_a_large_mean_does_not_swallow_a_small_spread():
    rows = np.array([[1e8], [1e8 + 2], [1e8], [1e8 + 2]])
    assert reduced(rows, "mean_plus_2_std", [1, 1, 1, 1]).tolist() == [1e8 + 3]


def test_a_callable_sees_all_samples():
    rows = np.arange(6.0).reshape(3, 2)
    assert reduced(rows, lambda scores: scores.max(0), [2]).tolist() == [4, 5]
    with pytest.raises(UserError, match=r"made shape \(3,\) out of the per-sample scores \(3, 2\)"):
        reduced(rows, lambda scores: scores.max(1), [2])
