"""What the benchmarks time is there: a figure in the docs needs a command that runs."""

import pytest

from benchmarks import overhead


@pytest.mark.parametrize(
    ("owner", "name"),
    [place for places in (overhead.WORK | overhead.REST).values() for place in places],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_share_of_a_run_is_taken_from_functions_that_are_there(owner, name):
    assert callable(getattr(owner, name))
