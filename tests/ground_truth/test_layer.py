"""A layer whose units are worth what is written down: what is measured, by hand."""

import numpy as np
import pytest
from torch import nn

from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from pruning_lab.ground_truth.layer import Settings, judge
from pruning_lab.ground_truth.removals import Harm, Removals

WORTH = np.array([1.0, 2.0, 4.0, 8.0])


class Additive(Removals):
    """The loss rises by the worth of all removed units, times the number of the sample.

    A sample is lost from a rise of 10 on.
    """

    def __init__(self, samples=3):
        self.factors = np.arange(1, samples + 1)[:, None]

    def harm(self, unit_groups, removed):
        rises = [self.factors * (each @ WORTH) for each in removed]
        return [Harm((rise >= 10).astype(float), rise) for rise in rises]


SCORES = {
    "right": WORTH,
    "wrong": -WORTH,
    "shapley": np.array([1.0, 2.0, 8.0, 4.0]),  # the last two the other way round
}


def judged(**settings):
    settings = {"shares": (0.25, 0.5, 0.75), "draws": 500, "sizes": (1, 2), "greedy": 2} | settings
    unit_groups = units_of_module(nn.Linear(2, 4))
    return judge("fc", unit_groups, SCORES, Additive(), Settings(**settings))


@pytest.fixture(scope="module")
def truth():
    return judged()


def test_curves_are_means_over_the_samples(truth):
    assert truth.counts.tolist() == [1, 2, 3]
    np.testing.assert_allclose(truth.forward["right"].nats, 2 * np.array([1, 3, 7]))
    np.testing.assert_allclose(truth.forward["wrong"].nats, 2 * np.array([8, 12, 14]))
    # with 7 removed the samples rise by 7, 14 and 21
    np.testing.assert_allclose(truth.forward["right"].points, [0, 0, 200 / 3])


def test_in_reverse_the_highest_scores_go_first(truth):
    """After the last number of removals alone."""
    np.testing.assert_allclose(truth.reverse["right"].nats, [28])
    np.testing.assert_allclose(truth.reverse["wrong"].nats, [14])


def test_random_orders(truth):
    # after t of 4 removals 15 t / 4 on average, times 2
    assert len(truth.random) == 500
    mean = np.mean([curve.nats for curve in truth.random], axis=0)
    np.testing.assert_allclose(mean, 7.5 * np.array([1, 2, 3]), rtol=0.05)


def test_the_greedy_oracle_takes_the_least_first(truth):
    assert truth.greedy == [0, 1]
    assert judged(greedy=0).greedy == []


def test_sizes_with_too_many_sets_are_left_out():
    assert list(judged(sizes=(1, 2, 4), sets=5).sets) == [1]  # of 2 there are 6, of 4 all go


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"shares": []}, r"truth\.shares=\[\] is not possible; it is a list"),
        ({"shares": 0.3}, r"truth\.shares=0\.3 is not possible; it is a list"),
        ({"shares": (0.3, 1)}, r"truth\.shares=1 .* between 0 and 1"),
        ({"shares": (0.3, 0.1)}, r"truth\.shares=\[0\.3, 0\.1\] .* shares must rise"),
        ({"greedy": 1.5}, r"truth\.greedy=1\.5"),
        ({"draws": 2}, r"truth\.draws=2"),
        ({"sizes": 3}, r"truth\.sizes=3 is not possible; it is a list"),
        ({"sizes": (2, 0)}, r"truth\.sizes=0"),
    ],
)
def test_settings_are_refused(settings, why):
    with pytest.raises(UserError, match=why):
        Settings(**settings)
