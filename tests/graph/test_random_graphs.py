"""Random networks out of all the pieces there are: sliced equals masked."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.checks import prune_and_compare
from tests.graph.random_graphs import graphs, randomise_all

EXAMPLES = int(os.environ.get("RANDOM_GRAPHS", "100"))


@settings(deadline=None, max_examples=EXAMPLES)
@given(graph=graphs(), seed=st.integers(0, 1000))
def test_sliced_equals_masked_in_any_graph_over_two_rounds(graph, seed):
    model, size = graph
    model = randomise_all(model, seed).eval()
    for _ in range(2):
        outcome = prune_and_compare(model, size, seed=seed)
        assert outcome.error < 1e-9
        assert outcome.step_error < 1e-9
        model = outcome.pruner.model
