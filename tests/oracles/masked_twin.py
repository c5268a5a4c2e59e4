"""The slow oracle of slicing: the original with the removed units at 0 where they are read.

Zeroing a layer's own output is not the same: behind a sigmoid or a BatchNorm, 0 is not 0 any more.
"""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and BatchNorm statistics: at their defaults they hide mistakes."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | _ConvNd):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, 1.5 / fan_in**0.5, generator=stream)
                if module.bias is not None:
                    module.bias.normal_(generator=stream)
            if isinstance(module, _BatchNorm):
                if module.affine:
                    module.weight.uniform_(0.5, 2, generator=stream)
                    module.bias.normal_(generator=stream)
                if module.track_running_stats:
                    module.running_mean.normal_(generator=stream)
                    module.running_var.uniform_(0.5, 2, generator=stream)
    return model


def masked_twin(model: nn.Sequential, cuts: dict[int, list[int]]) -> nn.Sequential:
    """A copy of a sequential network in which nobody reads the units in ``cuts[layer]``."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for index, units in cuts.items():
            reader = next_layer(twin, index)
            weight = (
                reader.weight
                if isinstance(reader, _ConvTransposeNd)
                else reader.weight.transpose(0, 1)
            )
            positions = weight.shape[0] // width(twin[index])
            for unit in units:
                weight[unit * positions : (unit + 1) * positions] = 0
    return twin


def next_layer(model: nn.Sequential, index: int) -> nn.Module:
    """The next Linear or convolution behind module ``index``."""
    return next(m for m in model[index + 1 :] if isinstance(m, nn.Linear | _ConvNd))


def width(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
