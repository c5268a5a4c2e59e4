"""Networks whose units only go together, and what an oracle needs to know of their players.

The test of a criterion may say what a player of several units is worth to it: ``joint(case)``, (3,)
or (samples, 3). test_unit_groups holds it against the criterion.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning_lab.attributions.unit_groups import unit_groups_of
from pruning_lab.coupling.structure import find_structure

CONF = Path(__file__).parent.parent.parent / "conf" / "metric"


class Residual(nn.Module):
    """Units of two layers are added."""

    size, group, after_activation = (1, 5, 5), "stem", {"stem": "relu", "outer": "outer"}

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.inner = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)
        self.outer, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.head(torch.tanh(x + self.outer(torch.tanh(self.inner(x)))).mean((2, 3)))


class Depthwise(nn.Module):
    """Two units of the second layer go with each of the first; maps have different sizes."""

    size, group, after_activation = (1, 6, 6), "wide", {"wide": "first", "deep": "second"}

    def __init__(self):
        super().__init__()
        self.wide, self.first = nn.Conv2d(1, 3, 3), nn.ReLU()
        self.deep, self.second = nn.Conv2d(3, 6, 3, groups=3), nn.ReLU()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.second(self.deep(self.first(self.wide(x)))).mean((2, 3)))


class Gated(nn.Module):
    """Two units of the same layer are multiplied."""

    size, group, after_activation = (4,), "both", {"both": "relu"}

    def __init__(self):
        super().__init__()
        self.both, self.relu, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x):
        one, two = self.relu(self.both(x)).chunk(2, -1)
        return self.head(one * two + one)


class Partly(nn.Module):
    """The first unit is added to the input, which stays; players have units in several layers."""

    size, group, after_activation = (4,), "part", {"part": "part", "rest": "rest", "other": "other"}

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

    def __init__(self, network, after_activation):
        torch.manual_seed(2)
        self.model, self.rows = network().double().eval(), ROWS[network]
        self.x = torch.randn(6, *network.size, dtype=torch.float64)
        self.y = torch.tensor([0, 1, 1, 0, 1, 0])
        self.group = find_structure(self.model, network.size).groups[network.group]
        self.after_activation, self.unit_groups = (
            after_activation,
            unit_groups_of(self.model, self.group),
        )
        self.places = {
            name: network.after_activation[name] if after_activation else name for name in self.rows
        }

    def score(self, name, **options):
        """(samples, players), or (players,) of a criterion without data"""
        return self.estimates(name, [self.unit_groups], **options)[0].scores

    def estimates(self, name, unit_groups, reduction="none", **options):
        config = {"seeds": {"score": 7}, "metric": OmegaConf.load(CONF / f"{name}.yaml")}
        batches = DataLoader(TensorDataset(self.x, self.y), 4)
        metric = instantiate(OmegaConf.create(config).metric)(
            self.model, batches, F.cross_entropy, "cpu", reduction=reduction
        )
        return metric.estimate(unit_groups, self.after_activation, **options)

    def masked(self, keep, layers=None):
        """The losses (samples,) with a mask of players on all the layers of the group."""
        with ExitStack() as stack:
            for layer in layers or self.rows:
                mask = torch.stack(
                    [
                        keep[unit_group] if unit_group >= 0 else torch.ones(())
                        for unit_group in self.rows[layer]
                    ]
                ).double()
                module = self.model.get_submodule(self.places[layer])
                hook = module.register_forward_hook(
                    lambda _module, _x, y, mask=mask: y * mask.view(-1, *[1] * (y.ndim - 2))
                )
                stack.callback(hook.remove)
            return F.cross_entropy(self.model(self.x), self.y, reduction="none")

    @torch.no_grad()
    def outputs(self):
        """Each layer of the group, and what is at the place where it is read."""
        for layer, place in self.places.items():
            seen = []
            module = self.model.get_submodule(place)
            hook = module.register_forward_hook(lambda _module, _x, y, seen=seen: seen.append(y))
            self.model(self.x)
            hook.remove()
            yield layer, seen[0]

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
        for unit_group in range(3):
            units = [
                (y[:, unit].detach().reshape(6, -1), y.grad[:, unit].reshape(6, -1))
                for layer, y in seen.items()
                for unit, owner in enumerate(self.rows[layer])
                if owner == unit_group
            ]
            yield tuple(torch.cat(each, 1) for each in zip(*units, strict=True))

    def by_evidence(self, formula):
        return torch.stack([formula(a, g) for a, g in self.evidence()], 1).numpy()

    def summed(self, scores):
        """The sums over each player's units of scores (..., units), by layer."""
        total = torch.zeros(*next(iter(scores.values())).shape[:-1], 3, dtype=torch.float64)
        for layer, row in self.rows.items():
            for unit, unit_group in enumerate(row):
                if unit_group >= 0:
                    total[..., unit_group] += scores[layer][..., unit]
        return total.detach().numpy()

    def by_weights(self, formula):
        """The same of scores (units,) made of each layer's weights (units, weights of each)."""
        weights = {name: self.model.get_submodule(name).weight.flatten(1) for name in self.rows}
        return self.summed({name: formula(weight) for name, weight in weights.items()})

    def moved(self):
        """By layer weight x gradient of each sample, (samples, units, weights of each)."""
        found = {name: [] for name in self.rows}
        for x, y in zip(self.x, self.y, strict=True):
            self.model.zero_grad(set_to_none=True)
            F.cross_entropy(self.model(x[None]), y[None]).backward()
            for name in self.rows:
                weight = self.model.get_submodule(name).weight
                found[name].append((weight * weight.grad).detach().flatten(1))
        self.model.zero_grad(set_to_none=True)
        return {name: torch.stack(each) for name, each in found.items()}
