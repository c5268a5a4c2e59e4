"""Numbers, ties and classes by hand."""

import math

import torch

from pruning_lab.coupling.slots import Slots
from tests.coupling.checks import worst


def test_classes_follow_every_new_slot_and_every_tie():
    slots = Slots()
    one = slots.of("a", 0, 3)
    assert len(slots.classes()) == 4  # the first number is nobody's
    other = slots.of("b", 0, 3)
    classes = slots.classes()
    assert len(classes.unique()) == 7
    slots.tie(one, other, "")
    classes = slots.classes()
    assert torch.equal(classes[one], classes[other])
    slots.tie(one[:1], one[1:2], "")
    classes = slots.classes()
    assert classes[one[0]] == classes[other[1]] != classes[other[2]]


def test_rows_are_the_same_when_they_hold_the_same_share_of_every_class():
    slots = Slots()
    one, twice = slots.of("a", 0, 2), slots.of("b", 0, 4)
    assert not slots.same(one, twice)
    slots.tie(one.repeat(2), twice, "")
    assert slots.same(one, twice)
    assert not slots.same(one, twice[[0, 1, 2]])
    assert not slots.same(one, twice[[0, 2]])


def test_an_error_that_is_no_number_is_the_worst():
    assert math.isnan(worst([0.0, math.nan]))
    assert worst([1.0, 2.0]) == 2
