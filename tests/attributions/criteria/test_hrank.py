"""Ranks of maps, by hand and of matrices whose rank is known."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.hrank import HRankAttributionMetric
from tests.oracles.maps import scores_of


def joint(case):
    """The ranks of a player's units, summed."""
    maps = {layer: y if y.ndim == 4 else y[..., None, None] for layer, y in case.outputs()}
    ranks = {layer: np.linalg.matrix_rank(y.numpy()) for layer, y in maps.items()}
    return case.summed({layer: torch.tensor(rank).double() for layer, rank in ranks.items()})


def test_by_hand():
    maps = torch.tensor(
        [
            [[[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]],
            [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]],
        ]
    )
    assert scores_of(HRankAttributionMetric, maps).tolist() == [[1, 2], [0, 1]]


def test_products_of_thin_matrices_have_their_inner_width():
    torch.manual_seed(0)
    maps = torch.stack([torch.randn(3, 7, k) @ torch.randn(3, k, 5) for k in (1, 2, 3, 4, 5)], 1)
    assert (scores_of(HRankAttributionMetric, maps) == [1, 2, 3, 4, 5]).all()


def test_units_without_a_map_are_there_or_not():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    batches = [(torch.tensor([[1.0], [2.0], [-1.0], [0.0]]), torch.zeros(4, dtype=int))]
    metric = HRankAttributionMetric(model, batches, F.cross_entropy, "cpu")
    np.testing.assert_allclose(metric.run(model[0], True), [2 / 4, 1 / 4])


def test_of_half_precision_the_ranks_are_those_of_float32():
    maps = torch.eye(4, dtype=torch.bfloat16).expand(2, 3, 4, 4).clone()
    maps[:, 1, 3] = 0
    assert scores_of(HRankAttributionMetric, maps).tolist() == [[4, 3, 4]] * 2
