"""Random networks out of all the pieces there are: sliced equals masked, twice in a row."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.coupling.checks import prune_and_compare
from tests.coupling.random_graphs import graphs
from tests.oracles.twin import randomise_all

TOLERANCE = 1e-9


def check_graphs(count):
    """Sliced equals masked on each; and on most there was something to see.

    On the others all units stay, for a softmax over them, say.
    """
    effects = []

    @settings(deadline=None, max_examples=count, suppress_health_check=[HealthCheck.too_slow])
    @given(graph=graphs(), seed=st.integers(0, 1000))
    def sliced_equals_masked(graph, seed):
        model, size = graph
        model = randomise_all(model, seed).eval()
        for _ in range(2):
            outcome = prune_and_compare(model, size, seed=seed)
            assert outcome.error < TOLERANCE
            assert outcome.step_error < TOLERANCE
            effects.append(outcome.effect)
            model = outcome.pruner.model

    sliced_equals_masked()
    assert len(effects) >= count
    assert np.mean(np.array(effects) > 1e-3) > 0.5


def test_any_graph():
    check_graphs(40)


@pytest.mark.slow
def test_a_thousand_graphs():
    check_graphs(1000)
