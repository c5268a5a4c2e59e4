"""Means over networks and pictures: variances by hand, coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from experiments.crossed import crossed_mean
from pruning_lab.errors import UserError


def test_variance_by_hand():
    """Rows 1, 3; columns 1, 2, 3: MS_networks = 3 * 2, MS_pictures = 2 * 1, no rest."""
    values = np.array([[0.0, 1, 2], [2, 3, 4]])
    found = crossed_mean(values)
    assert found.mean == 2
    variance = (6 + 2) / 6
    freedom = 8**2 / (6**2 / 1 + 2**2 / 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert (found.networks, found.pictures) == pytest.approx((1, np.sqrt(2 / 6)))


def test_without_a_picture_effect_it_is_students_interval_over_networks():
    networks = np.random.default_rng(0).normal(size=10)
    found = crossed_mean(np.repeat(networks[:, None], 50, axis=1))
    low, high = stats.ttest_1samp(networks, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    same = crossed_mean(np.ones((3, 4)))
    assert (same.mean, same.low, same.high) == (1, 1, 1)


@pytest.mark.parametrize(("of_networks", "of_pictures"), [(1, 0), (0, 1), (0.3, 1), (0, 0)])
def test_it_covers_for_others_of_both(of_networks, of_pictures):
    draw, held = np.random.default_rng(7), 0
    for _ in range(300):
        values = (
            of_networks * draw.normal(size=(8, 1))
            + of_pictures * draw.normal(size=(1, 40))
            + draw.normal(size=(8, 40))
        )
        found = crossed_mean(values)
        held += found.low <= 0 <= found.high
    assert held / 300 >= 0.92
    assert held / 300 <= (1 if not (of_networks or of_pictures) else 0.99)


def test_a_single_network_or_picture_is_refused():
    for shape in ((1, 5), (5, 1)):
        with pytest.raises(UserError, match="at least two of each"):
            crossed_mean(np.zeros(shape))
