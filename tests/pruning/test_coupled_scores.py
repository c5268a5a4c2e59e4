"""One score for units that only go together, by hand."""

import numpy as np
import pytest
import torch

from pruning_lab.coupling.structure import CoupledLayers
from pruning_lab.pruning.plan import group_scores

# player 0 is units a0, b0 and b1; player 1 is a1 and b2; a2 cannot go
GROUP = CoupledLayers(
    "a", {"a": torch.tensor([0, 1, -1]), "b": torch.tensor([0, 0, 1])}, torch.tensor([7, 9])
)
SCORES = {"a": np.array([1.0, 2.0, 100.0]), "b": np.array([3.0, 8.0, -4.0])}


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("mean", [4, -1]), ("sum", [12, -2]), ("max", [8, 2]), ("first", [1, 2])],
)
def test_by_hand(aggregate, expected):
    assert group_scores(GROUP, SCORES, aggregate).tolist() == expected


def test_only_the_layers_that_were_scored_count():
    assert group_scores(GROUP, {"b": SCORES["b"]}, "sum").tolist() == [11, -4]


def test_an_unknown_aggregate_lists_the_choices():
    with pytest.raises(ValueError, match=r"median.*mean, sum, max, first"):
        group_scores(GROUP, SCORES, "median")
