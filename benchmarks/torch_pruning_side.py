"""Prune with Torch-Pruning as its README does, and build the masked twin of the result."""

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
    """Units that a module lost, numbered as in the unpruned model.

    ``side``: ``out``, ``in``, or ``both`` where one dimension is that of outputs and inputs.
    """

    module: str
    side: str
    units: tuple[int, ...]


def prune(model: nn.Module, x: torch.Tensor, share: float) -> tuple[list[Cut], float, float]:
    """Prune ``model`` in place; return cuts, seconds to find the groups, and seconds to prune.

    The constructor finds the groups; ``step`` visits them once more, draws units and prunes.
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
            cuts += notes.of(group)  # our bookkeeping: not timed
            started = time.perf_counter()
            group.prune()
        prune_seconds += time.perf_counter() - started
    return cuts, find_seconds, prune_seconds


def _output_layer(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Return the layer with weights that runs last; its output is the model's."""
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
    """Translates groups to the unit numbers of the unpruned model.

    Torch-Pruning renumbers a module's units after every group, and after a concatenation several
    groups reach one module.
    """

    def __init__(self, model: nn.Module, graph: Any) -> None:
        self.graph = graph
        self.names = {module: name for name, module in model.named_modules()}
        self.left: dict[tuple[str, str], list[int]] = {}

    def of(self, group: Any) -> list[Cut]:
        """Return the cuts of ``group``; call this before it is pruned."""
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
        before = self.left.setdefault((name, side), list(range(width(dependency.target))))
        removed = set(units)
        self.left[name, side] = [unit for place, unit in enumerate(before) if place not in removed]
        return Cut(name, side, tuple(before[place] for place in sorted(removed)))


@torch.no_grad()
def twin(original: nn.Module, cuts: list[Cut]) -> nn.Module:
    """Return a copy of the unpruned network that reads 0 for every removed unit."""
    model = copy.deepcopy(original)
    read: dict[str, set[int]] = {}
    for cut in cuts:
        if cut.side != "out":
            read.setdefault(cut.module, set()).update(cut.units)
    for name, units in read.items():
        module, removed = model.get_submodule(name), sorted(units)
        if isinstance(module, nn.Linear):
            module.weight[:, removed] = 0
        elif isinstance(module, _ConvNd):
            _silence(module, removed)
        elif isinstance(module, nn.LayerNorm):
            model.set_submodule(name, _KeptNorm(module, removed))
    return model


def _silence(layer: _ConvNd, units: list[int]) -> None:
    """Zero input channels: u is column u % width of the outputs of group u // width."""
    if layer.groups == layer.in_channels:
        return  # depthwise: it passes channels on one by one, and its readers read 0
    width, rows = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for unit in units:
        group, column = divmod(unit, width)
        layer.weight[group * rows : (group + 1) * rows, column] = 0


class _KeptNorm(nn.Module):
    """LayerNorm with statistics over the remaining units; channels are last, or dimension 1."""

    def __init__(self, norm: nn.LayerNorm, gone: list[int]) -> None:
        super().__init__()
        self.norm = norm
        self.left = sorted(set(range(norm.normalized_shape[0])) - set(gone))
        self.second = type(norm) is not nn.LayerNorm  # ConvNeXt's LayerNorm2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(1, -1) if self.second else x
        weight, bias, output = self.norm.weight, self.norm.bias, torch.zeros_like(x)
        output[..., self.left] = F.layer_norm(
            x[..., self.left], (len(self.left),), weight[self.left], bias[self.left], self.norm.eps
        )
        return output.movedim(-1, 1) if self.second else output
