"""Random networks out of all the pieces there are: sliced equals masked, twice in a row."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph.checks import prune_and_compare
from tests.graph.random_graphs import graphs, randomise_all

TOLERANCE = 1e-9


def sliced_equals_masked(graph, seed):
    model, size = graph
    model = randomise_all(model, seed).eval()
    for _ in range(2):
        outcome = prune_and_compare(model, size, seed=seed)
        assert outcome.error < TOLERANCE
        assert outcome.step_error < TOLERANCE
        model = outcome.pruner.model


@settings(deadline=None, max_examples=100)
@given(graph=graphs(), seed=st.integers(0, 1000))
def test_any_graph(graph, seed):
    sliced_equals_masked(graph, seed)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs(), seed=st.integers(0, 1000))
def test_a_thousand_graphs(graph, seed):
    sliced_equals_masked(graph, seed)
