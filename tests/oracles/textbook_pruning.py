"""The original's way of pruning as a textbook has it: one layer at a time, what follows by NaNs.

For models that are a chain of modules. The removed units of a layer are NaN for one run of the
whole model; the inputs that arrive as NaN at the modules behind it are those that go, too.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from tests.oracles.textbook import chain


@torch.no_grad()
def prune(model, optimizer, layers_and_units, x):
    """Remove units of layers, pair after pair; ``x`` is the batch of every trial run."""
    training = model.training
    model.eval()  # NaNs must not enter the statistics of BatchNorms
    modules = chain(model)
    for layer, units in layers_and_units:
        arrived = nan_inputs(model, layer, units, followers(modules, layer), x)
        for module, gone in arrived.items():
            prune_inputs(module, gone, optimizer)
        prune_outputs(layer, units, optimizer)
    model.train(training)


def followers(modules, layer):
    """The BatchNorms and Dropouts behind ``layer``, up to and with the next layer."""
    found = []
    for module in modules[modules.index(layer) + 1 :]:
        if isinstance(module, nn.Linear | _ConvNd | _BatchNorm | _DropoutNd):
            found.append(module)
        if isinstance(module, nn.Linear | _ConvNd):
            break
    return found


def nan_inputs(model, layer, units, modules, x):
    """For each of ``modules`` which of its inputs are NaN when ``units`` of ``layer`` are."""
    found = {}

    def record(module, inputs, output):
        found[module] = inputs[0].isnan().transpose(0, 1).flatten(1).any(1)

    unit_indices = torch.as_tensor(units)
    hooks = [
        layer.register_forward_hook(lambda *call: call[2].index_fill_(1, unit_indices, torch.nan)),
        *(module.register_forward_hook(record) for module in modules),
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def prune_inputs(module, gone, optimizer):
    """Slice what ``module`` has for each of its inputs; ``gone`` says which of them go."""
    keep = (~gone).nonzero().flatten()
    if isinstance(module, _DropoutNd):
        module.p *= len(keep) / len(gone)
    elif isinstance(module, _BatchNorm):
        for name in ("weight", "bias", "running_mean", "running_var"):
            cut(module, name, 0, keep, optimizer)
        module.num_features = len(keep)
    else:
        cut(module, "weight", 1, keep, optimizer)
        setattr(
            module, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(keep)
        )


def prune_outputs(layer, units, optimizer):
    """Slice what ``layer`` has for each of its units."""
    stays = torch.ones(len(layer.weight), dtype=torch.bool)
    stays[units] = False
    keep = stays.nonzero().flatten()
    for name in ("weight", "bias"):
        cut(layer, name, 0, keep, optimizer)
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(keep))


def cut(module, name, axis, keep, optimizer):
    """Leave ``keep`` of a parameter or buffer along ``axis``, of its gradient and its momentum."""
    tensor = getattr(module, name)
    if tensor is None:
        return
    tensor.data = tensor.data.index_select(axis, keep)
    if tensor.grad is not None:
        tensor.grad = tensor.grad.index_select(axis, keep)
    momentum = optimizer.state.get(tensor, {}).get("momentum_buffer")
    if momentum is not None:
        optimizer.state[tensor]["momentum_buffer"] = momentum.index_select(axis, keep)
