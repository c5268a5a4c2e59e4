"""Tables of the rules that follow units through torch's functions and modules."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pruning_lab.coupling.call import Call
from pruning_lab.coupling.rules import elementwise, layers, moves
from pruning_lab.graph.kinds import NON_LINEARITIES

Rule = Callable[[Call], Any]


def _names(text: str) -> list[str]:
    """Split a list of names; ``conv*d`` stands for conv1d, conv2d and conv3d."""
    return [
        name.replace("*", dimensions)
        for name in text.split()
        for dimensions in ("123" if "*" in name else "1")
    ]


FUNCTIONS: dict[str, Rule] = {
    name: rule
    for names, rule in {
        elementwise.NAMES: elementwise.elementwise,
        "flatten flip movedim permute repeat repeat_interleave swapaxes swapdims t tile transpose "
        "unsqueeze": moves.move,
        "squeeze": moves.squeeze,
        "pixel_shuffle pixel_unshuffle": moves.pixel_shuffle,
        "getitem narrow roll": moves.keep_whole,
        "expand reshape unflatten view": moves.reshape,
        "pad": moves.pad,
        "chunk": moves.chunk,
        "split": moves.split,
        "cat concat concatenate": moves.cat,
        "stack": moves.stack,
        "glu": moves.glu,
        "_patch_merging_pad": moves.quarters,
        "linear": layers.linear,
        "embedding": layers.embedding,
        "conv*d": layers.convolution,
        "conv_transpose*d": layers.transposed_convolution,
        "batch_norm instance_norm": layers.batch_norm,
        "group_norm": layers.group_norm,
        "layer_norm": layers.layer_norm,
        "prelu": layers.prelu,
        "bmm matmul": layers.matmul,
        "scaled_dot_product_attention": layers.attention,
        "log_softmax normalize softmax softmin": layers.normalised,
        "amax amin logsumexp mean prod std sum var": layers.reduction,
        "adaptive_avg_pool*d adaptive_max_pool*d avg_pool*d interpolate lp_pool1d lp_pool2d "
        "max_pool*d upsample": layers.over_space,
    }.items()
    for name in _names(names)
}
"""Rules by name of a function of torch, an operator of Python, or a method of a tensor."""

MODULES: dict[type[nn.Module], Rule] = dict.fromkeys(NON_LINEARITIES, elementwise.elementwise) | {
    getattr(nn, name): rule
    for names, rule in {
        "Identity": elementwise.elementwise,
        "Dropout Dropout*d AlphaDropout FeatureAlphaDropout": elementwise.dropout,
        "Flatten": moves.move,
        "PixelShuffle PixelUnshuffle": moves.pixel_shuffle,
        "Unflatten": moves.reshape,
        "GLU": moves.glu,
        "Linear": layers.linear,
        "Conv*d": layers.convolution,
        "ConvTranspose*d": layers.transposed_convolution,
        "Embedding": layers.embedding,
        "BatchNorm*d InstanceNorm*d SyncBatchNorm": layers.batch_norm,
        "GroupNorm": layers.group_norm,
        "LayerNorm RMSNorm": layers.layer_norm,
        "PReLU": layers.prelu,
        "LogSoftmax Softmax Softmin": layers.normalised,
        "AdaptiveAvgPool*d AdaptiveMaxPool*d AvgPool*d LPPool*d MaxPool*d Upsample "
        "UpsamplingBilinear2d UpsamplingNearest2d CircularPad*d ConstantPad*d ReflectionPad*d "
        "ReplicationPad*d ZeroPad*d": layers.over_space,
    }.items()
    for name in _names(names)
}
"""Rules by exact type: a subclass may do anything."""

TAKES_SIZES = (moves.reshape, moves.split)
"""Rules that accept a size that counts units; any other rule freezes these units."""

HAVE_WIDTHS = (
    layers.convolution,
    layers.transposed_convolution,
    layers.group_norm,
    layers.layer_norm,
)
"""Rules of functions that take widths of modules, which shrink; elsewhere they count as read."""

NAMESPACES = ("operator", "torch", "torch.nn.functional", "torchvision.ops",
              "torchvision.models.swin_transformer")  # fmt: skip
"""Modules of the functions; torchvision is imported by the models that use it."""


def rule_of(target: Any) -> Rule | None:
    """Return the rule of a function, method or module; None if there is no rule."""
    if isinstance(target, nn.Module):
        # a parametrized module has its own class; the rule of the plain class reports the reason
        kind = type(target).__bases__[0] if is_parametrized(target) else type(target)
        return MODULES.get(kind)
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and all(
        getattr(sys.modules.get(space), name, None) is not target for space in NAMESPACES
    ):
        return None
    plain = name if name.startswith("__") else name.rstrip("_")
    rule = FUNCTIONS.get(plain)
    # elementwise rules hold in place, too; a shape that changes in place is not followed
    return rule if plain == name or rule is elementwise.elementwise else None
