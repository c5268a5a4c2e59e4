"""Nuclear norms without a row, by hand and by numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria import chip
from pruning_lab.attributions.criteria.chip import CHIPAttributionMetric
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from tests.oracles.maps import scores_of


def nuclear(matrix):
    return np.linalg.svd(matrix, compute_uv=False).sum()


def losses_of_rows(maps):
    """(samples, units) of maps (samples, units, positions)."""
    rows = np.arange(maps.shape[1])
    return np.array(
        [[nuclear(a) - nuclear(a * (rows != row)[:, None]) for row in rows] for a in maps]
    )


def joint(case):
    """Of a layer by itself, summed over a player's units."""
    outputs = {layer: y.flatten(2) if y.ndim > 2 else y[..., None] for layer, y in case.outputs()}
    return case.summed({k: torch.tensor(losses_of_rows(y.numpy())) for k, y in outputs.items()})


def test_by_hand():
    # rows (3, 0), (0, 4), (0, 3): singular values 3 and 5; without them 5, 3 + 3, 3 + 4
    maps = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]], [[0.0, 3.0]]]])
    np.testing.assert_allclose(
        scores_of(CHIPAttributionMetric, maps), [[8 - 5, 8 - 6, 8 - 7]], rtol=1e-6
    )


@pytest.mark.parametrize("matrices", [1, 60, 2**22])
@pytest.mark.parametrize("size", [(3, 7), (2, 2), (1, 1)], ids=["wide", "tall", "column"])
def test_equals_a_decomposition_for_each_unit(size, matrices, monkeypatch):
    monkeypatch.setattr(chip, "MATRICES", matrices)
    torch.manual_seed(0)
    maps = torch.randn(4, 6, *size, dtype=torch.float64)
    maps[0, 2] = 0
    maps[1, 3] = maps[1, 4]
    found = scores_of(CHIPAttributionMetric, maps)
    np.testing.assert_allclose(found, losses_of_rows(maps.flatten(2).numpy()), atol=1e-12)
    assert found[0, 2] == pytest.approx(0, abs=1e-12)


def test_some_samples_do():
    torch.manual_seed(0)
    maps = torch.randn(4, 6, 2, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(6, 3, 1), nn.Flatten(), nn.Linear(12, 2)).double()
    batches = [(maps, torch.zeros(4, dtype=int))]
    every = CHIPAttributionMetric(model, batches, F.cross_entropy, "cpu", "none")
    few = CHIPAttributionMetric(model, batches, F.cross_entropy, "cpu", "none", samples=3)
    np.testing.assert_array_equal(few.run(model[0]), every.run(model[0])[:3])
    assert few.predict([units_of_module(model[0])]).forward == 3
    with pytest.raises(UserError, match="samples=0"):
        few.run(model[0], samples=0)
