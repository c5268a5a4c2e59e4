"""Which units a plan takes: small examples by hand, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_lab.coupling.structure import CoupledLayers
from pruning_lab.errors import UserError
from pruning_lab.pruning.plan import make_plan
from pruning_lab.pruning.schedules import LayerByLayer, Linear, NegativeScores, Step

SCORES = {"a": np.array([5.0, 1.0, 3.0, 2.0]), "b": np.array([10.0, 40.0])}


def share_of(scores):
    """The share of units that is gone after a plan: every unit costs the same."""
    total = sum(map(len, scores.values()))
    return lambda plan: sum(map(len, plan.values())) / total


def alone(scores):
    """Groups of one layer each: a player is a unit."""
    rows = {layer: torch.arange(len(values)) for layer, values in scores.items()}
    return {layer: CoupledLayers(layer, {layer: row}, row) for layer, row in rows.items()}


def plan(scores, ratio, flops=None, **settings):
    schedule = Linear(**({"target": 0.5, "of": "units", "scope": "global"} | settings))
    step = Step(tuple(scores), ratio)
    found = make_plan(scores, alone(scores), step, schedule, share_of(scores), flops)
    return {layer: units.tolist() for layer, units in found.items()}


def test_global_scope_ranks_all_layers_together():
    assert plan(SCORES, 0.5) == {"a": [1, 2, 3], "b": []}
    assert plan(SCORES, 4 / 6) == {"a": [1, 2, 3], "b": [0]}  # "a" keeps its floor of one unit


def test_per_layer_scope_takes_the_same_share_of_each_layer():
    assert plan(SCORES, 0.5, scope="per_layer") == {"a": [1, 3], "b": [0]}


def test_a_ratio_that_the_floor_forbids_is_refused():
    with pytest.raises(UserError, match=r"at most 0\.333 can be removed"):
        plan(SCORES, 0.5, min_units=2)


def test_normalising_by_the_largest_makes_layers_comparable():
    # a / 5 = [1, .2, .6, .4]; b / 40 = [.25, 1]
    assert plan(SCORES, 2 / 6, normalise="max") == {"a": [1], "b": [0]}


def test_what_a_unit_costs_is_taken_off_its_score():
    flops = {"a": np.full(4, 1e6), "b": np.full(2, 6e6)}
    # a - 2 = [3, -1, 1, 0]; b - 12 = [-2, 28]
    assert plan(SCORES, 2 / 6, flops, flops_penalty=2) == {"a": [1], "b": [0]}
    # a / sqrt(39) - .1 = [.70, .06, .38, .22]; b / sqrt(1700) - .6 = [-.36, .37]
    settings = {"flops_penalty": 0.1, "normalise": "l2"}
    assert plan(SCORES, 1 / 6, flops, **settings) == {"a": [], "b": [0]}
    assert plan(SCORES, 3 / 6, flops, **settings) == {"a": [1, 3], "b": [0]}
    assert plan(SCORES, 3 / 6, flops) == plan(SCORES, 3 / 6)


def test_normalising_by_the_l2_norm():
    # a / sqrt(39) = [.80, .16, .48, .32]; b / sqrt(1700) = [.24, .97]
    assert plan(SCORES, 2 / 6, normalise="l2") == {"a": [1], "b": [0]}
    assert plan(SCORES, 3 / 6, normalise="l2") == {"a": [1, 3], "b": [0]}


def test_a_layer_of_zero_scores_survives_normalising():
    assert plan({"a": np.zeros(3), "b": np.ones(3)}, 2 / 6, normalise="l2")["a"] == [0, 1]


def test_below_zero_removes_negative_scores_only_and_keeps_the_floor():
    scores = {"a": np.array([-1.0, 2.0, -3.0, 0.0]), "b": np.array([-2.0, -1.0])}
    step = Step(("a", "b"), None)
    found = make_plan(scores, alone(scores), step, NegativeScores(), share_of(scores))
    assert {k: v.tolist() for k, v in found.items()} == {"a": [0, 2], "b": [0]}


def test_layer_by_layer_removes_the_lowest_of_a_share_of_all_and_keeps_the_floor():
    scores = {"a": np.array([-1.0, 2.0, -3.0, 0.0]), "b": np.array([-2.0, -1.0])}
    found = [
        make_plan(scores, alone(scores), Step(("a", "b"), None), LayerByLayer(share=share),
                  share_of(scores))
        for share in (0.5, 0.7, 0.9)
    ]  # fmt: skip
    assert [{k: v.tolist() for k, v in each.items()} for each in found] == [
        {"a": [0, 2], "b": [0]},  # 2 of 4, 1 of 2
        {"a": [0, 2, 3], "b": [0]},  # 2.8 of 4, 1.4 of 2, rounded
        {"a": [0, 2, 3], "b": [0]},  # 3.6 and 1.8, but one of each stays
    ]


def test_scores_that_are_not_finite_are_refused_by_layer():
    with pytest.raises(UserError, match="1 of 4 scores of 'a' are not finite"):
        plan({"a": np.array([1.0, np.nan, 2.0, 3.0])}, 0.5)


@st.composite
def layers_of_scores(draw):
    widths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=4))
    values = st.floats(-5, 5, allow_nan=False)
    return {
        f"layer{i}": np.array(draw(st.lists(values, min_size=width, max_size=width)))
        for i, width in enumerate(widths)
    }


@given(
    scores=layers_of_scores(),
    ratio=st.floats(0.01, 0.99),
    scope=st.sampled_from(["global", "per_layer"]),
)
def test_a_plan_reaches_its_ratio_with_the_lowest_scores_and_no_unit_too_many(scores, ratio, scope):
    gone = share_of(scores)
    possible = sum(len(values) - 1 for values in scores.values())
    total = sum(map(len, scores.values()))
    if possible / total < ratio:
        with pytest.raises(UserError, match="cannot be removed"):
            plan(scores, ratio, scope=scope)
        return
    found = plan(scores, ratio, scope=scope)
    removed = sum(map(len, found.values()))
    assert gone(found) >= ratio
    # global: one unit fewer is not enough; per layer: each layer rounds by itself
    slack = 1 if scope == "global" else len(scores)
    assert (removed - slack) / total < ratio
    for layer, units in found.items():
        kept = np.setdiff1d(np.arange(len(scores[layer])), units)
        assert len(kept) >= 1
        if units:
            assert scores[layer][units].max() <= scores[layer][kept].min()


def test_global_scope_on_random_scores_removes_the_same_share_of_wide_and_narrow_layers():
    stream = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        scores = {"narrow": stream.random(20), "wide": stream.random(200)}
        found = plan(scores, 0.5)
        shares.append([len(found[layer]) / len(scores[layer]) for layer in scores])
    narrow, wide = np.mean(shares, axis=0)
    assert narrow == pytest.approx(0.5, abs=0.03)
    assert wide == pytest.approx(0.5, abs=0.03)


def coupled(**unit_groups):
    classes = torch.arange(max(max(row) for row in unit_groups.values()) + 1)
    rows = {layer: torch.tensor(list(row)) for layer, row in unit_groups.items()}
    return {"g": CoupledLayers("g", rows, classes)}


def take(scores, groups, ratio, **settings):
    """The players that go when all count the same."""
    schedule = Linear(target=0.5, of="units", **settings)
    found = make_plan(
        {"g": np.array(scores)}, groups, Step(("g",), ratio), schedule,
        lambda plan: len(plan["g"]) / len(scores),
    )  # fmt: skip
    return found["g"].tolist()


def test_the_floor_holds_in_every_layer_of_a_group():
    # player 0 is the only one of layer "b" besides 3: when 0 has gone, 3 must stay
    groups = coupled(a=[0, 1, 2, 3], b=[0, 3])
    assert take([1.0, 3.0, 4.0, 2.0], groups, 0.5) == [0, 1]
    with pytest.raises(UserError, match=r"at most 0\.750 can be removed"):
        take([1.0, 3.0, 4.0, 2.0], groups, 0.9)


def test_units_that_cannot_go_count_for_the_floor():
    groups = coupled(a=[-1, 0, 1])
    assert take([1.0, 2.0], groups, 1.0) == [0, 1]


def test_widths_are_rounded_up_to_a_multiple_in_every_layer():
    # a player takes one unit of "a" and two of "b": widths 10 and 20, then 8 and 16, then 4 and 8
    groups = coupled(
        a=list(range(10)), b=[unit_group for unit_group in range(10) for _ in range(2)]
    )
    scores = list(range(10))
    assert take(scores, groups, 0.2, multiple_of=4) == [0, 1]
    assert take(scores, groups, 0.3, multiple_of=4) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match=r"at most 0\.600 can be removed"):
        take(scores, groups, 0.7, multiple_of=4)


def test_multiples_are_reached_where_players_take_units_of_different_layers():
    # units of "a" meet some of "c"; units of "b" meet the others, and those of "d"
    groups = coupled(a=range(8), b=range(8, 16), c=range(10), d=range(10, 16))
    for seed in range(5):
        scores = np.random.default_rng(seed).random(16)
        gone = np.array(take(scores, groups, 0.75, multiple_of=2))
        for first, behind in ((0, 8), (8, 16), (0, 10), (10, 16)):
            assert behind - first - ((gone >= first) & (gone < behind)).sum() == 2
