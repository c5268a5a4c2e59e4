"""The peer: Torch-Pruning as its README calls it, and the twin of what it removed."""

import copy
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Cut:
    """What a module lost: its outputs, its inputs, or where one dimension is both, ``both``.

    ``units`` are numbered as in the unpruned model.
    """

    module: str
    side: str
    units: tuple[int, ...]


def prune(model: nn.Module, x: torch.Tensor, share: float) -> tuple[list[Cut], float, float]:
    """Prune ``model`` in place; what went, seconds to find the groups, seconds to prune.

    The constructor finds the groups; ``step`` goes through them once more, draws and prunes.
    """
    cuts: list[Cut] = []
    ignored = [_output_layer(model, x)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        pruner = tp.pruner.BasePruner(
            model,
            (x,),  # a bare tensor is first tried as model(*x), its images as separate arguments
            importance=tp.importance.RandomImportance(),
            pruning_ratio=share,
            global_pruning=False,
            ignored_layers=ignored,
            # the defaults are dictionaries that all pruners share
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            customized_pruners={},
        )
        find_seconds = time.perf_counter() - started
        notes, prune_seconds = _Notes(model, pruner.DG), 0.0
        started = time.perf_counter()
        for group in pruner.step(interactive=True):
            prune_seconds += time.perf_counter() - started
            cuts += notes.of(group)  # not its work
            started = time.perf_counter()
            group.prune()
        prune_seconds += time.perf_counter() - started
    return cuts, find_seconds, prune_seconds


def _output_layer(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The layer with weights that runs last: its output is the model's."""
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda layer, *_: called.append(layer))
        for module in model.modules()
        if isinstance(module, nn.Linear | _ConvNd)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return called[-1]


class _Notes:
    """Groups in the numbers of the unpruned model.

    Torch-Pruning numbers a module's units anew after every group, and behind a concatenation
    several groups reach one module.
    """

    def __init__(self, model: nn.Module, graph: Any) -> None:
        self.graph = graph
        self.names = {module: name for name, module in model.named_modules()}
        self.left: dict[tuple[str, str], list[int]] = {}

    def of(self, group: Any) -> list[Cut]:
        """The cuts of ``group``, asked for before it is pruned."""
        reached = [(dependency, list(units)) for dependency, units in group]
        return [
            self._cut(self.names[dependency.target.module], dependency, units)
            for dependency, units in reached
            if units and dependency.target.module in self.names
        ]

    def _cut(self, name: str, dependency: Any, units: list[int]) -> Cut:
        outward = self.graph.is_out_channel_pruning_fn(dependency.handler)
        inward = self.graph.is_in_channel_pruning_fn(dependency.handler)
        side = "both" if outward and inward else "out" if outward else "in"
        width = self.graph.get_out_channels if outward else self.graph.get_in_channels
        left = self.left.setdefault((name, side), list(range(width(dependency.target))))
        gone = set(units)
        self.left[name, side] = [unit for place, unit in enumerate(left) if place not in gone]
        return Cut(name, side, tuple(left[place] for place in sorted(gone)))


@torch.no_grad()
def twin(original: nn.Module, cuts: list[Cut]) -> nn.Module:
    """A copy of the unpruned network that reads 0 for every unit that was removed."""
    model = copy.deepcopy(original)
    read: dict[str, set[int]] = {}
    for cut in cuts:
        if cut.side != "out":
            read.setdefault(cut.module, set()).update(cut.units)
    for name, units in read.items():
        module, gone = model.get_submodule(name), sorted(units)
        if isinstance(module, nn.Linear):
            module.weight[:, gone] = 0
        elif isinstance(module, _ConvNd):
            _silence(module, gone)
        elif isinstance(module, nn.LayerNorm):
            model.set_submodule(name, _KeptNorm(module, gone))
    return model


def _silence(layer: _ConvNd, units: list[int]) -> None:
    """Input channel u is column u % width of the outputs of group u // width."""
    if layer.groups == layer.in_channels:
        return  # depthwise: it hands units on one by one, and whoever reads it reads 0
    width, rows = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for unit in units:
        group, column = divmod(unit, width)
        layer.weight[group * rows : (group + 1) * rows, column] = 0


class _KeptNorm(nn.Module):
    """A LayerNorm with statistics over the units that are left; the channels may lie second."""

    def __init__(self, norm: nn.LayerNorm, gone: list[int]) -> None:
        super().__init__()
        self.norm = norm
        self.left = sorted(set(range(norm.normalized_shape[0])) - set(gone))
        self.second = type(norm) is not nn.LayerNorm  # ConvNeXt's LayerNorm2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(1, -1) if self.second else x
        weight, bias, found = self.norm.weight, self.norm.bias, torch.zeros_like(x)
        found[..., self.left] = F.layer_norm(
            x[..., self.left], (len(self.left),), weight[self.left], bias[self.left], self.norm.eps
        )
        return found.movedim(-1, 1) if self.second else found
