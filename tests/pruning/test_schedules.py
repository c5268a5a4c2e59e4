"""How far each schedule goes at each step."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_lab.errors import UserError
from pruning_lab.pruning.schedules import (
    Geometric,
    LayerByLayer,
    Linear,
    NegativeScores,
    OneShot,
    Step,
)

TARGETS = st.floats(0.01, 0.99)


def ratios(schedule):
    return [step.ratio for step in schedule.steps_for([["a", "b"], ["c"]])]


def test_linear_removes_the_same_share_of_the_original_each_time():
    assert ratios(Linear(target=0.8, steps=4)) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_geometric_removes_the_same_share_of_what_is_left_each_time():
    assert ratios(Geometric(target=0.75, steps=2)) == pytest.approx([0.5, 0.75])


def test_one_shot_is_one_step_over_all_layers():
    assert OneShot(target=0.3).steps_for([["a"], ["b", "c"]]) == [Step(("a", "b", "c"), 0.3)]


@pytest.mark.parametrize("schedule", [NegativeScores(), LayerByLayer(share=0.5)])
def test_one_group_a_step_the_last_first(schedule):
    steps = schedule.steps_for([["a"], ["b", "d"], ["c"]])
    assert [step.layers for step in steps] == [("c",), ("b", "d"), ("a",)]
    assert all(step.ratio is None for step in steps)


@given(target=TARGETS, steps=st.integers(1, 12))
def test_every_progressive_schedule_rises_to_its_target(target, steps):
    for kind in (Linear, Geometric):
        found = ratios(kind(target=target, steps=steps))
        assert len(found) == steps
        assert all(a < b for a, b in itertools.pairwise(found))
        assert found[-1] == pytest.approx(target)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": 0}, "schedule.target=0 is not possible"),
        ({"target": 1.0}, "schedule.target=1.0 is not possible"),
        ({"target": -0.5}, "between 0 and 1"),
        ({"target": 0.5, "steps": 0}, "schedule.steps=0 is not possible"),
        ({"target": 0.5, "of": "layers"}, "choose one of flops, parameters, units"),
        ({"target": 0.5, "scope": "local"}, "choose one of global, per_layer"),
        ({"target": 0.5, "normalise": "l3"}, "choose one of none, l2, max"),
        ({"target": 0.5, "min_units": 0}, "schedule.min_units=0 is not possible"),
    ],
)
def test_impossible_values_are_refused_with_the_value_and_what_is_allowed(arguments, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        Geometric(**arguments)


@pytest.mark.parametrize("share", [0, 1, -0.5, "half"])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(UserError, match=f"schedule.share={share} is not possible"):
        LayerByLayer(share=share)
