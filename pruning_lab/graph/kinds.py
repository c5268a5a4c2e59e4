"""Kinds of modules and operations: what has units, what has widths, what is a non-linearity."""

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
"""What to say of a weight that is no parameter of its module."""

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
"""The modules whose attributes change when units go."""

WIDTHS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features",
          "num_channels", "num_groups", "normalized_shape", "num_parameters",
          "embedding_dim")  # fmt: skip
"""Their attributes."""

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
"""Elementwise, without parameters: every unit stays by itself."""

NON_LINEAR_FUNCTIONS = frozenset(
    {
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
)
NON_LINEAR_METHODS = frozenset({"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"})


def is_non_linearity(op: object) -> bool:
    """Whether a module, a function or a method's name is an elementwise non-linearity."""
    if isinstance(op, nn.Module):
        return isinstance(op, NON_LINEARITIES)
    return op in (NON_LINEAR_METHODS if isinstance(op, str) else NON_LINEAR_FUNCTIONS)


def units_of(layer: nn.Module) -> int:
    """How many units a Linear or a convolution has now, read off its weight."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(layer, TransposedConvolution):
        return weight.shape[1] * layer.groups
    return weight.shape[0]


def inputs_of(layer: nn.Module) -> int:
    """How many inputs a Linear, a convolution or a BatchNorm reads now."""
    if isinstance(layer, BatchNorm):
        return layer.num_features
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(layer, TransposedConvolution):
        return weight.shape[0]
    return weight.shape[1] * getattr(layer, "groups", 1)


def unit_axis(module: nn.Module) -> int:
    """The dimension of a module's output that holds the units: the last of a Linear's, else 1."""
    return -1 if isinstance(module, nn.Linear) else 1
