"""Units that only go together as one player: masks by hand, and every criterion's score of it."""

import itertools
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning_lab.attributions.players import (
    Players,
    alike,
    keep_rows,
    players_of_group,
    units_of_module,
)
from pruning_lab.graph import Group, find_structure

CONF = Path(__file__).parent.parent.parent / "conf" / "metric"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


# -- by hand ----------------------------------------------------------------------------------


def test_every_unit_of_a_module_is_a_player():
    layer = nn.Linear(2, 3)
    players = units_of_module(layer)
    assert players.first is layer
    assert players.count is None
    assert not players.joint


def test_the_players_of_a_group_are_those_of_all_its_layers():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 4), "c": nn.Linear(2, 9)})
    rows = {"a": torch.tensor([0, 1, -1]), "b": torch.tensor([0, 2, 2, 1])}
    players = players_of_group(model, Group("a", rows, torch.tensor([7, 8, 9])))
    assert list(players.members) == [model["a"], model["b"]]
    assert players.first is model["a"]
    assert players.count == 3
    assert players.joint


def test_a_mask_of_players_keeps_their_units_and_those_of_nobody():
    keep, row = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, -1, 0, 0])
    assert keep_rows(keep, row).tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert keep_rows(keep.bool(), row).tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert keep_rows(keep, None) is keep


def test_players_with_as_many_units_in_every_place_are_alike():
    first, second = torch.tensor([0, 0, 1, -1, 2, 2]), torch.tensor([2, 0, -1, 1])
    pairs, single = sorted(alike([first, second], 3), key=lambda each: -len(each.players))
    assert pairs.players.tolist() == [0, 2]
    assert [units.tolist() for units in pairs.units] == [[[0, 1], [4, 5]], [[1], [0]]]
    assert single.players.tolist() == [1]
    assert [units.tolist() for units in single.units] == [[[2]], [[3]]]


def test_a_player_may_have_no_unit_in_a_place():
    (both,) = (each for each in alike([torch.tensor([1, -1]), torch.tensor([0, 1])], 2)
               if each.players.tolist() == [0])  # fmt: skip
    assert [units.shape for units in both.units] == [(1, 0), (1, 1)]


# -- networks whose units only go together ----------------------------------------------------


class Residual(nn.Module):
    """Units of two layers are added."""

    size, group, behind = (1, 5, 5), "stem", {"stem": "relu", "outer": "outer"}

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.inner = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)
        self.outer, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.head(torch.tanh(x + self.outer(torch.tanh(self.inner(x)))).mean((2, 3)))


class Depthwise(nn.Module):
    """Two units of the second layer go with each of the first; maps have different sizes."""

    size, group, behind = (1, 6, 6), "wide", {"wide": "first", "deep": "second"}

    def __init__(self):
        super().__init__()
        self.wide, self.first = nn.Conv2d(1, 3, 3), nn.ReLU()
        self.deep, self.second = nn.Conv2d(3, 6, 3, groups=3), nn.ReLU()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.second(self.deep(self.first(self.wide(x)))).mean((2, 3)))


class Gated(nn.Module):
    """Two units of the same layer are multiplied."""

    size, group, behind = (4,), "both", {"both": "relu"}

    def __init__(self):
        super().__init__()
        self.both, self.relu, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x):
        one, two = self.relu(self.both(x)).chunk(2, -1)
        return self.head(one * two + one)


class Partly(nn.Module):
    """The first unit is added to the input, which stays; players have units in several layers."""

    size, group, behind = (4,), "part", {"part": "part", "rest": "rest", "other": "other"}

    def __init__(self):
        super().__init__()
        self.part, self.rest, self.other = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        one, two = (
            torch.cat([self.part(x), self.rest(x)], 1),
            torch.cat([x[:, :1], self.other(x)], 1),
        )
        return self.head(torch.tanh(one + two))


ROWS = {
    Residual: {"stem": [0, 1, 2], "outer": [0, 1, 2]},
    Depthwise: {"wide": [0, 1, 2], "deep": [0, 0, 1, 1, 2, 2]},
    Gated: {"both": [0, 1, 2, 0, 1, 2]},
    Partly: {"part": [-1, 0], "rest": [1, 2], "other": [0, 1, 2]},
}
"""The player of each unit, from a look at the network."""


class Case:
    """A network, its data, and the players of its group."""

    def __init__(self, network, behind):
        torch.manual_seed(2)
        self.model, self.rows = network().double().eval(), ROWS[network]
        self.x = torch.randn(6, *network.size, dtype=torch.float64)
        self.y = torch.tensor([0, 1, 1, 0, 1, 0])
        self.group = find_structure(self.model, network.size).groups[network.group]
        self.behind, self.players = behind, players_of_group(self.model, self.group)
        self.places = {name: network.behind[name] if behind else name for name in self.rows}

    def score(self, name, **options):
        """(samples, players), or (players,) of a criterion without data"""
        return self.estimates(name, [self.players], **options)[0].scores

    def estimates(self, name, players, reduction="none", **options):
        config = {"seeds": {"score": 7}, "metric": OmegaConf.load(CONF / f"{name}.yaml")}
        batches = DataLoader(TensorDataset(self.x, self.y), 4)
        metric = instantiate(OmegaConf.create(config).metric)(
            self.model, batches, F.cross_entropy, "cpu", reduction=reduction
        )
        return metric.estimate(players, self.behind, **options)

    def masked(self, keep, layers=None):
        """The losses (samples,) with a mask of players on all the layers of the group."""
        with ExitStack() as stack:
            for layer in layers or self.rows:
                mask = torch.stack(
                    [keep[player] if player >= 0 else torch.ones(()) for player in self.rows[layer]]
                ).double()
                module = self.model.get_submodule(self.places[layer])
                hook = module.register_forward_hook(
                    lambda _module, _x, y, mask=mask: y * mask.view(-1, *[1] * (y.ndim - 2))
                )
                stack.callback(hook.remove)
            return F.cross_entropy(self.model(self.x), self.y, reduction="none")

    def evidence(self):
        """For each player the activations and gradients (samples, positions) of all its units."""
        seen = {}
        with ExitStack() as stack:
            for layer, place in self.places.items():

                def keep(_module, _x, y, layer=layer):
                    y.retain_grad()
                    seen[layer] = y

                hook = self.model.get_submodule(place).register_forward_hook(keep)
                stack.callback(hook.remove)
            F.cross_entropy(self.model(self.x), self.y, reduction="sum").backward()
        self.model.zero_grad(set_to_none=True)
        for player in range(3):
            units = [
                (y[:, unit].detach().reshape(6, -1), y.grad[:, unit].reshape(6, -1))
                for layer, y in seen.items()
                for unit, owner in enumerate(self.rows[layer])
                if owner == player
            ]
            yield tuple(torch.cat(each, 1) for each in zip(*units, strict=True))

    def by_evidence(self, formula):
        return torch.stack([formula(a, g) for a, g in self.evidence()], 1).numpy()


@torch.no_grad()
def enumerated(case, layers=None):
    """Shapley values over all orders in which the three players can go."""
    values = np.zeros((len(case.x), 3))
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        keep = torch.ones(3)
        before = case.masked(keep, layers)
        for player in order:
            keep[player] = 0
            after = case.masked(keep, layers)
            values[:, player] += (after - before).numpy() / len(orders)
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


def weight_sums(case):
    sums = np.zeros(3)
    for layer, row in case.rows.items():
        weight = case.model.get_submodule(layer).weight.detach().abs()
        for unit, player in enumerate(row):
            if player >= 0:
                sums[player] += float(weight[unit].sum())
    return sums


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
    "weight_norm": weight_sums,
}


@pytest.fixture(params=list(ROWS), ids=lambda network: network.__name__)
def network(request):
    return request.param


def test_every_criterion_says_here_what_a_joint_player_is_worth():
    assert sorted(ORACLES) == NAMES


def test_the_groups_are_those_of_the_networks(network):
    case = Case(network, behind=False)
    assert {name: row.tolist() for name, row in case.group.players.items()} == case.rows


@pytest.mark.parametrize("behind", [False, True], ids=["own", "behind"])
@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_a_joint_player_is_that_of_all_its_units(name, network, behind):
    case = Case(network, behind)
    every = {"permutations": list(itertools.permutations(range(3)))} if name == "shapley" else {}
    found = case.score(name, **every)
    exact = 1e-9 if name != "apoz" else 1e-6  # shares in float32
    np.testing.assert_allclose(found, ORACLES[name](case), rtol=exact, atol=1e-12)


def test_orders_drawn_for_joint_players_come_near_the_values_of_all(network):
    case = Case(network, behind=True)
    found = case.score("shapley", sv_samples=200)
    exact = enumerated(case)
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("network", [Residual, Depthwise, Partly])
def test_a_joint_value_is_not_the_sum_of_its_members_values(network):
    case = Case(network, behind=True)
    found = case.score("shapley_exact")
    alone = sum(enumerated(case, [layer]) for layer in case.rows)
    assert np.abs(found - alone).max() > 0.01 * np.abs(found).max()


def test_a_player_whose_units_are_all_0_is_worth_exactly_nothing():
    case = Case(Gated, behind=True)
    with torch.no_grad():
        case.model.both.bias[[1, 4]] = -100
    assert (case.score("shapley")[:, 1] == 0).all()
    assert (case.score("shapley")[:, [0, 2]] != 0).any(0).all()


def test_a_player_with_one_unit_that_is_not_0_is_worth_something():
    case = Case(Gated, behind=True)
    with torch.no_grad():
        case.model.both.bias[4] = -100  # the other factor; the first one is read by itself, too
    every = list(itertools.permutations(range(3)))
    found = case.score("shapley", permutations=every)
    assert (found[:, 1] != 0).any()
    np.testing.assert_allclose(found, enumerated(case), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_layers_are_scored_in_one_call_as_alone(name):
    case = Case(Residual, behind=True)
    inner = units_of_module(case.model.inner)
    group, layer = case.estimates(name, [case.players, inner], "mean")
    (alone,) = case.estimates(name, [inner], "mean")
    np.testing.assert_allclose(layer.scores, alone.scores, rtol=1e-12)
    (alone,) = case.estimates(name, [case.players], "mean")
    np.testing.assert_allclose(group.scores, alone.scores, rtol=1e-12)
    assert group.scores.shape == (3,)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random"}))
def test_a_group_of_one_layer_scores_as_its_units(name):
    case = Case(Residual, behind=True)
    inner = case.model.inner
    group = Players({inner: torch.arange(2)})
    one, other = case.estimates(name, [units_of_module(inner), group])
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-9, atol=1e-12)


def test_a_group_that_never_runs_is_refused():
    case = Case(Gated, behind=False)
    case.model.idle = nn.Linear(4, 2).double()
    idle = Players({case.model.idle: torch.arange(2)})
    with pytest.raises(ValueError, match="what goes with it never run: nothing to score"):
        case.estimates("apoz", [idle])


def test_exact_values_are_for_20_joint_players_though_they_have_more_units():
    model = nn.Sequential(nn.Linear(2, 42), nn.Tanh(), nn.Linear(42, 2)).double()
    rows = torch.arange(42) % 3
    case = Case(Gated, behind=True)
    case.model, case.x = model, torch.randn(6, 2, dtype=torch.float64)
    case.rows, case.places = {"0": rows.tolist()}, {"0": "1"}
    case.players = Players({model[0]: rows})
    np.testing.assert_allclose(case.score("shapley_exact"), enumerated(case), atol=1e-12)
    with pytest.raises(ValueError, match=rf"2\^{42} coalitions"):
        case.estimates("shapley_exact", [units_of_module(model[0])])
