"""Units that only go together as one player: masks by hand, and every criterion's score of it."""

import itertools
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.unit_groups import (
    UnitGroups,
    alike,
    keep_rows,
    unit_groups_of,
    units_of_module,
)
from pruning_lab.coupling.structure import CoupledLayers
from pruning_lab.errors import UserError
from tests.attributions.joint import CONF, ROWS, Case, Depthwise, Gated, Partly, Residual

NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


# -- by hand ----------------------------------------------------------------------------------


def test_every_unit_of_a_module_is_a_player():
    layer = nn.Linear(2, 3)
    unit_groups = units_of_module(layer)
    assert unit_groups.first is layer
    assert unit_groups.count is None


def test_the_players_of_a_group_are_those_of_all_its_layers():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 4), "c": nn.Linear(2, 9)})
    rows = {"a": torch.tensor([0, 1, -1]), "b": torch.tensor([0, 2, 2, 1])}
    unit_groups = unit_groups_of(model, CoupledLayers("a", rows, torch.tensor([7, 8, 9])))
    assert list(unit_groups.members) == [model["a"], model["b"]]
    assert unit_groups.first is model["a"]
    assert unit_groups.count == 3


def test_a_mask_of_players_keeps_their_units_and_those_of_nobody():
    keep, row = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, -1, 0, 0])
    assert keep_rows(keep, row).tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert keep_rows(keep.bool(), row).tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert keep_rows(keep, None) is keep


def test_players_with_as_many_units_in_every_place_are_alike():
    first, second = torch.tensor([0, 0, 1, -1, 2, 2]), torch.tensor([2, 0, -1, 1])
    pairs, single = sorted(alike([first, second], 3), key=lambda each: -len(each.unit_groups))
    assert pairs.unit_groups.tolist() == [0, 2]
    assert [units.tolist() for units in pairs.units] == [[[0, 1], [4, 5]], [[1], [0]]]
    assert single.unit_groups.tolist() == [1]
    assert [units.tolist() for units in single.units] == [[[2]], [[3]]]


def test_a_player_may_have_no_unit_in_a_place():
    (both,) = (each for each in alike([torch.tensor([1, -1]), torch.tensor([0, 1])], 2)
               if each.unit_groups.tolist() == [0])  # fmt: skip
    assert [units.shape for units in both.units] == [(1, 0), (1, 1)]


@torch.no_grad()
def enumerated(case, layers=None):
    """Shapley values over all orders in which the three players can go."""
    values = np.zeros((len(case.x), 3))
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        keep = torch.ones(3)
        before = case.masked(keep, layers)
        for unit_group in order:
            keep[unit_group] = 0
            after = case.masked(keep, layers)
            values[:, unit_group] += (after - before).numpy() / len(orders)
            before = after
    return values


def mask_gradients(case):
    """Minus the mean gradient at the masks that belong to the seed, sample by sample."""
    values = np.zeros((len(case.x), 3))
    for sample, pair in itertools.product(range(len(case.x)), range(4)):
        stream = np.random.default_rng([7, sample, pair])
        kept = torch.tensor(stream.random(3) < stream.random()).double()
        for keep in (kept, 1 - kept):
            keep.requires_grad_()
            (gradient,) = torch.autograd.grad(case.masked(keep)[sample], keep)
            values[sample] -= gradient.numpy() / 8
    return values


def one_draw(case):
    """Three draws for three players, whatever their units; the stream belongs to the layer."""
    modules = list(case.model.modules())
    place = modules.index(case.model.get_submodule(case.group.name))
    return np.random.default_rng([7, place, 3]).random(3)


ORACLES = {
    "apoz": lambda case: case.by_evidence(lambda a, g: (a > 0).double().mean(1)),
    "owen_gradient": mask_gradients,
    "random": one_draw,
    "sensitivity": lambda case: case.by_evidence(lambda a, g: g.abs().sum(1)),
    "shapley": enumerated,
    "shapley_exact": enumerated,
    "taylor": lambda case: case.by_evidence(lambda a, g: (a * g).sum(1).abs()),
    "taylor_signed": lambda case: case.by_evidence(lambda a, g: -(a * g).sum(1)),
    "weight_norm": lambda case: case.by_weights(lambda weight: weight.abs().sum(1)),
}
for name in NAMES:
    if name not in ORACLES and find_spec(f"tests.attributions.criteria.test_{name}"):
        ORACLES[name] = getattr(
            import_module(f"tests.attributions.criteria.test_{name}"), "joint", None
        )

SCORED = sorted(name for name, oracle in ORACLES.items() if oracle)
"""The others refuse these networks, which have no BatchNorm for example."""


@pytest.fixture(params=list(ROWS), ids=lambda network: network.__name__)
def network(request):
    return request.param


def test_every_criterion_says_here_what_a_joint_player_is_worth():
    assert sorted(ORACLES) == NAMES
    for name in set(NAMES) - set(SCORED):
        with pytest.raises(UserError):
            Case(Residual, after_activation=True).score(name)


def test_the_groups_are_those_of_the_networks(network):
    case = Case(network, after_activation=False)
    assert {name: row.tolist() for name, row in case.group.unit_groups.items()} == case.rows


@pytest.mark.parametrize("after_activation", [False, True], ids=["own", "after_activation"])
@pytest.mark.parametrize("name", SCORED)
def test_the_score_of_a_joint_player_is_that_of_all_its_units(name, network, after_activation):
    case = Case(network, after_activation)
    every = {"permutations": list(itertools.permutations(range(3)))} if name == "shapley" else {}
    found = case.score(name, **every)
    exact = 1e-9 if name != "apoz" else 1e-6  # shares in float32
    np.testing.assert_allclose(found, ORACLES[name](case), rtol=exact, atol=1e-12)


def test_orders_drawn_for_joint_players_come_near_the_values_of_all(network):
    case = Case(network, after_activation=True)
    found = case.score("shapley", sv_samples=200)
    exact = enumerated(case)
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("network", [Residual, Depthwise, Partly])
def test_a_joint_value_is_not_the_sum_of_its_members_values(network):
    case = Case(network, after_activation=True)
    found = case.score("shapley_exact")
    alone = sum(enumerated(case, [layer]) for layer in case.rows)
    assert np.abs(found - alone).max() > 0.01 * np.abs(found).max()


def test_a_player_whose_units_are_all_0_is_worth_exactly_nothing():
    case = Case(Gated, after_activation=True)
    with torch.no_grad():
        case.model.both.bias[[1, 4]] = -100
    assert (case.score("shapley")[:, 1] == 0).all()
    assert (case.score("shapley")[:, [0, 2]] != 0).any(0).all()


def test_a_player_with_one_unit_that_is_not_0_is_worth_something():
    case = Case(Gated, after_activation=True)
    with torch.no_grad():
        case.model.both.bias[4] = -100  # the other factor; the first one is read by itself, too
    every = list(itertools.permutations(range(3)))
    found = case.score("shapley", permutations=every)
    assert (found[:, 1] != 0).any()
    np.testing.assert_allclose(found, enumerated(case), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCORED)
def test_groups_and_layers_are_scored_in_one_call_as_alone(name):
    case = Case(Residual, after_activation=True)
    inner = units_of_module(case.model.inner)
    group, layer = case.estimates(name, [case.unit_groups, inner], "mean")
    (alone,) = case.estimates(name, [inner], "mean")
    np.testing.assert_allclose(layer.scores, alone.scores, rtol=1e-12)
    (alone,) = case.estimates(name, [case.unit_groups], "mean")
    np.testing.assert_allclose(group.scores, alone.scores, rtol=1e-12)
    assert group.scores.shape == (3,)


@pytest.mark.parametrize("name", sorted(set(SCORED) - {"random"}))
def test_a_group_of_one_layer_scores_as_its_units(name):
    case = Case(Residual, after_activation=True)
    inner = case.model.inner
    group = UnitGroups({inner: torch.arange(2)})
    one, other = case.estimates(name, [units_of_module(inner), group])
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-9, atol=1e-12)


def test_a_group_of_one_layer_takes_as_few_passes_as_its_units():
    case = Case(Residual, after_activation=True)
    inner = case.model.inner
    metric = ShapleyAttributionMetric(case.model, [(case.x, case.y)], F.cross_entropy, "cpu")
    units, group, swapped = (
        metric.predict([unit_groups], True).forward
        for unit_groups in (
            units_of_module(inner),
            UnitGroups({inner: torch.arange(2)}),
            UnitGroups({inner: torch.tensor([1, 0])}),
        )
    )
    assert units == group < swapped


def test_a_group_that_never_runs_is_refused():
    case = Case(Gated, after_activation=False)
    case.model.idle = nn.Linear(4, 2).double()
    idle = UnitGroups({case.model.idle: torch.arange(2)})
    with pytest.raises(ValueError, match="layers coupled to it never run: nothing to score"):
        case.estimates("apoz", [idle])


def test_exact_values_are_for_20_joint_players_though_they_have_more_units():
    model = nn.Sequential(nn.Linear(2, 42), nn.Tanh(), nn.Linear(42, 2)).double()
    rows = torch.arange(42) % 3
    case = Case(Gated, after_activation=True)
    case.model, case.x = model, torch.randn(6, 2, dtype=torch.float64)
    case.rows, case.places = {"0": rows.tolist()}, {"0": "1"}
    case.unit_groups = UnitGroups({model[0]: rows})
    np.testing.assert_allclose(case.score("shapley_exact"), enumerated(case), atol=1e-12)
    with pytest.raises(ValueError, match=rf"2\^{42} coalitions"):
        case.estimates("shapley_exact", [units_of_module(model[0])])
