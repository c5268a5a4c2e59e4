"""The losses of coalitions: by entry or by masks, however few rows fit, as of a network cut."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.base import Site
from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.observation.batches import Room
from pruning_lab.coupling.structure import find_structure
from pruning_lab.models.resnet_cifar import ResNet
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.small_maps import Products
from pruning_lab.partial_forward.traced import trace
from pruning_lab.pruner import Pruner

X = torch.randn(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 2, 1, 1, 0])


def losses(output, samples):
    return F.cross_entropy(output, Y[samples], reduction="none")


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(3),
        nn.Conv2d(6, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 40, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(160, 3),
    )  # fmt: skip
    return model.double().eval().requires_grad_(False)


def game(model, layer=0, rows=128, graph=None, prepared=False):
    graph = graph or trace(model)
    site = Site(graph.site(model[layer + 2 if layer == 0 else layer + 1]), 1, None, model[layer])
    cut = graph.cut([(site.node, site.axis)])
    if prepared:
        cut.prepare(cut.before(X), many=True)
    return Game(cut, [site], cut.before(X), losses, Room(5, rows, rows)), cut


def orders(samples, unit_groups):
    stream = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(unit_groups, generator=stream) for _ in range(samples)])


@torch.no_grad()
def by_hand(model, layer, order):
    """The losses along the orders, one mask and one sample at a time."""
    activation = model[: layer + (3 if layer == 0 else 2)](X)
    rises = torch.zeros(2, *order.shape, dtype=torch.float64)
    for sample, (way, turns) in itertools.product(range(len(X)), enumerate((order, order.flip(1)))):
        masked = activation[sample : sample + 1].clone()
        after_activation = model[layer + (3 if layer == 0 else 2) :]
        before = F.cross_entropy(after_activation(masked.clone()), Y[sample : sample + 1])
        for unit_group in turns[sample]:
            masked[:, unit_group] = 0
            after = F.cross_entropy(after_activation(masked.clone()), Y[sample : sample + 1])
            rises[way, sample, unit_group] = after - before
            before = after
    return rises


@pytest.mark.parametrize("layer", [0, 4])
@pytest.mark.parametrize("rows", [2, 7, 128, 4096])
def test_walks_are_those_by_hand_however_many_rows_go_at_once(layer, rows):
    model = network()
    order = orders(5, 6 if layer == 0 else 40)
    expected = by_hand(model, layer, order)
    played, cut = game(model, layer, rows)
    assert cut.entry is not None
    torch.testing.assert_close(played.walk(order), expected, rtol=1e-9, atol=1e-12)
    one_way = played.walk(order, ways=1)
    torch.testing.assert_close(one_way[0], expected[0], rtol=1e-9, atol=1e-12)
    assert len(one_way) == 1


@pytest.mark.parametrize("layer", [0, 4])
@pytest.mark.parametrize("rows", [2, 7, 128, 4096])
def test_single_removals_are_the_first_turns_of_walks_by_hand(layer, rows):
    model = network()
    model[4].bias[3] = -100  # a unit that never is active
    unit_groups = 6 if layer == 0 else 40
    expected = torch.empty(5, unit_groups, dtype=torch.float64)
    for unit_group in range(unit_groups):
        order = torch.tensor(
            [unit_group, *(each for each in range(unit_groups) if each != unit_group)]
        )
        expected[:, unit_group] = by_hand(model, layer, order.expand(5, -1))[0, :, unit_group]
    played, cut = game(model, layer, rows)
    assert cut.entry is not None
    torch.testing.assert_close(played.removals(), expected, rtol=1e-9, atol=1e-12)
    played, cut = game(model, layer, rows)
    cut.entry = None
    torch.testing.assert_close(played.removals(), expected, rtol=1e-9, atol=1e-12)
    if layer:
        assert (expected[:, 3] == 0).all()


def test_walks_by_masks_and_by_hooks_are_the_same():
    model, order = network(), orders(5, 6)
    played, cut = game(model)
    expected = played.walk(order)
    played, cut = game(model)
    cut.entry = None
    torch.testing.assert_close(played.walk(order), expected, rtol=1e-9, atol=1e-12)
    played, _ = game(model, graph=HookedGraph(model, ValueError()))
    torch.testing.assert_close(played.walk(order), expected, rtol=1e-9, atol=1e-12)


def test_products_for_small_maps_give_the_same_walks():
    model, order = network(), orders(5, 40)
    played, cut = game(model, layer=0, prepared=True)
    assert any(isinstance(each, Products) for each in cut.entry.rest.modules())
    torch.testing.assert_close(
        played.walk(order[:, :6].argsort(1)), game(model)[0].walk(order[:, :6].argsort(1)),
        rtol=1e-9, atol=1e-12,
    )  # fmt: skip


def test_players_whose_activation_is_0_are_worth_exactly_nothing_and_cost_nothing():
    model = network()
    model[1].bias[1] = -100  # a unit that never is active
    played, _ = game(model)
    assert not played.alive[:, 1].any()
    model.seen = []
    rises = played.walk(orders(5, 6))
    assert (rises[..., 1] == 0).all()
    torch.testing.assert_close(rises, by_hand(model, 0, orders(5, 6)), rtol=1e-9, atol=1e-12)


def test_a_layer_without_any_activation_is_worth_nothing():
    model = network()
    model[1].bias[:] = -100
    assert (game(model)[0].walk(orders(5, 6)) == 0).all()


def test_evaluations_are_only_made_where_something_changes(monkeypatch):
    model, made = network(), []
    model[1].bias[1:4] = -100
    played, _ = game(model)
    run = Game._run
    monkeypatch.setattr(Game, "_run", lambda *a: made.append(len(a[-1])) or run(*a))
    played.walk(orders(5, 6))
    left = played.alive.sum(1)
    assert left.max() == 3
    assert sum(made) == 2 * 5 + 2 * int((left - 1).clamp(min=0).sum())


class Branches(nn.Module):
    """A stem that is added to, a depthwise convolution, a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wide, self.deep = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.back, self.twice = nn.Conv2d(6, 4, 1), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.back(F.relu6(self.deep(F.relu6(self.wide(x)))))
        x = x.mean((2, 3))
        return self.head(F.relu(x + self.twice(F.relu(self.twice(x)))))


@pytest.mark.parametrize("make", [Branches, lambda: ResNet(8, num_classes=3, in_channels=2)])
def test_a_coalition_without_a_player_is_the_network_without_its_units(make):
    torch.manual_seed(1)
    model = make().double()
    with torch.no_grad():
        for _ in range(3):
            model(4 * torch.randn(50, 2, 8, 8, dtype=torch.float64))
    model.eval().requires_grad_(False)
    structure, graph = find_structure(model, (2, 8, 8)), trace(model)
    assert any(len(group.unit_groups) > 1 for group in structure.groups.values())
    for name, group in structure.groups.items():
        sites = [
            Site(node, -1 if isinstance(module, nn.Linear) else 1, row, module)
            for layer, row in group.unit_groups.items()
            for module in [model.get_submodule(layer)]
            for node in graph.sites(module, after_activation=True)
        ]
        cut = graph.cut([(site.node, site.axis) for site in sites])
        played = Game(cut, sites, cut.before(X), losses, Room(5, 128, 128))
        assert played.players == len(group)
        for unit_group in (0, len(group) - 1):
            keep = torch.ones(1, len(X), len(group), dtype=torch.float64)
            keep[..., unit_group] = 0
            pruned = copy.deepcopy(model)
            Pruner(pruned, (2, 8, 8), "cpu").prune_groups({name: [unit_group]})
            expected = losses(pruned(X), torch.arange(len(X)))
            torch.testing.assert_close(played.losses(keep)[0], expected, rtol=1e-9, atol=1e-12)


def test_where_memory_does_not_do_for_all_rows_half_of_them_go(monkeypatch):
    model, order = network(), orders(5, 6)
    expected, sizes = game(model)[0].walk(order), []
    played, cut = game(model)
    resume = cut.resume

    def short(state, samples, entered):
        sizes.append(len(samples))
        if len(samples) > 7:
            raise torch.cuda.OutOfMemoryError
        return resume(state, samples, entered)

    monkeypatch.setattr(cut, "resume", short)
    torch.testing.assert_close(played.walk(order), expected, rtol=1e-9, atol=1e-12)
    assert max(sizes) > 7 >= min(sizes)
