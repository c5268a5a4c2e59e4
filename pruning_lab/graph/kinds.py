"""Kinds of modules and operations: those with units, those with widths, and non-linearities."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout

Convolution = conv._ConvNd
TransposedConvolution = conv._ConvTransposeNd
BatchNorm = batchnorm._BatchNorm
Norm = batchnorm._NormBase
Dropout = dropout._DropoutNd

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, Convolution)
"""The modules whose units can be removed."""

COMPUTED = (
    "is computed from other tensors and cannot be sliced. Make it a plain parameter first: torch."
    "nn.utils.parametrize.remove_parametrizations, remove_weight_norm or prune.remove"
)
"""Error text for a weight that is not a parameter of its module."""

WITH_WIDTHS: tuple[type[nn.Module], ...] = (
    *LAYERS,
    Dropout,
    Norm,
    nn.Embedding,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
    nn.RMSNorm,
)
"""The modules whose attributes change when units are removed."""

WIDTHS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features",
          "num_channels", "num_groups", "normalized_shape", "num_parameters",
          "embedding_dim")  # fmt: skip
"""The attributes of these modules that hold a width."""

NON_LINEARITIES: tuple[type[nn.Module], ...] = (
    activation.CELU,
    activation.ELU,
    activation.GELU,
    activation.Hardshrink,
    activation.Hardsigmoid,
    activation.Hardswish,
    activation.Hardtanh,
    activation.LeakyReLU,
    activation.LogSigmoid,
    activation.Mish,
    activation.ReLU,
    activation.ReLU6,
    activation.RReLU,
    activation.SELU,
    activation.SiLU,
    activation.Sigmoid,
    activation.Softplus,
    activation.Softshrink,
    activation.Softsign,
    activation.Tanh,
    activation.Tanhshrink,
    activation.Threshold,
)
"""Elementwise, without parameters: no unit affects another."""

NON_LINEAR_FUNCTIONS = {
    F.celu,
    F.elu,
    F.gelu,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.leaky_relu,
    F.mish,
    F.relu,
    F.relu6,
    F.selu,
    F.sigmoid,
    F.silu,
    F.softplus,
    F.tanh,
    torch.relu,
    torch.relu_,
    torch.sigmoid,
    torch.tanh,
}
NON_LINEAR_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}


def is_non_linearity(op: object) -> bool:
    """Return True for an elementwise non-linearity: a module, a function, or a method's name."""
    if isinstance(op, nn.Module):
        return isinstance(op, NON_LINEARITIES)
    return op in (NON_LINEAR_METHODS if isinstance(op, str) else NON_LINEAR_FUNCTIONS)


def units_of(layer: nn.Module) -> int:
    """Return the current number of units of a Linear or a convolution, read off its weight."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(layer, TransposedConvolution):
        return weight.shape[1] * layer.groups
    return weight.shape[0]


def inputs_of(layer: nn.Module) -> int:
    """Return the current number of inputs of a Linear, a convolution or a BatchNorm."""
    if isinstance(layer, BatchNorm):
        return layer.num_features
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(layer, TransposedConvolution):
        return weight.shape[0]
    return weight.shape[1] * getattr(layer, "groups", 1)


def unit_axis(module: nn.Module) -> int:
    """Return the dimension of a module's output that holds the units: -1 for a Linear, else 1."""
    return -1 if isinstance(module, nn.Linear) else 1
