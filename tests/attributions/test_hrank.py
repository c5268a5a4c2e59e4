"""Ranks of maps, by hand and by elimination."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.hrank import HRankAttributionMetric


def joint(case):
    """The ranks of a player's units, summed."""
    ranks = {}
    for layer, place in case.places.items():
        seen = []
        hook = case.model.get_submodule(place).register_forward_hook(
            lambda _module, _x, y, seen=seen: seen.append(y.detach())
        )
        case.model(case.x)
        hook.remove()
        maps = seen[0] if seen[0].ndim == 4 else seen[0][..., None, None]
        ranks[layer] = torch.tensor(np.linalg.matrix_rank(maps.numpy())).double()
    return case.summed(ranks)


def ranks_of(maps):
    """Of a network whose units are the channels of its input."""
    model = nn.Sequential(
        nn.Conv2d(maps.shape[1], maps.shape[1], 1, groups=maps.shape[1], bias=False),
        nn.Flatten(), nn.Linear(maps[0].numel(), 2),
    ).to(maps.dtype)  # fmt: skip
    with torch.no_grad():
        model[0].weight.fill_(1)
    batches = [(maps, torch.zeros(len(maps), dtype=int))]
    return HRankAttributionMetric(model, batches, F.cross_entropy, "cpu", "none").run(model[0])


def test_by_hand():
    maps = torch.tensor(
        [
            [[[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]],
            [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]],
        ]
    )
    assert ranks_of(maps).tolist() == [[1, 2], [0, 1]]


def test_products_of_thin_matrices_have_their_inner_width():
    torch.manual_seed(0)
    maps = torch.stack([torch.randn(3, 7, k) @ torch.randn(3, k, 5) for k in (1, 2, 3, 4, 5)], 1)
    assert (ranks_of(maps) == [1, 2, 3, 4, 5]).all()


def test_units_without_a_map_are_there_or_not():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    batches = [(torch.tensor([[1.0], [2.0], [-1.0], [0.0]]), torch.zeros(4, dtype=int))]
    metric = HRankAttributionMetric(model, batches, F.cross_entropy, "cpu")
    np.testing.assert_allclose(metric.run(model[0], True), [2 / 4, 1 / 4])
