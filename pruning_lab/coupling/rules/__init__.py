"""Tables of the rules that follow units through torch's functions and modules."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pruning_lab.coupling.call import Call
from pruning_lab.coupling.rules import elementwise, layers, moves
from pruning_lab.graph.kinds import NON_LINEARITIES

Rule = Callable[[Call], Any]

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
        "conv1d conv2d conv3d": layers.convolution,
        "conv_transpose1d conv_transpose2d conv_transpose3d": layers.transposed_convolution,
        "batch_norm instance_norm": layers.batch_norm,
        "group_norm": layers.group_norm,
        "layer_norm": layers.layer_norm,
        "prelu": layers.prelu,
        "bmm matmul": layers.matmul,
        "scaled_dot_product_attention": layers.attention,
        "log_softmax normalize softmax softmin": layers.normalised,
        "amax amin logsumexp mean prod std sum var": layers.reduction,
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d interpolate "
        "lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d upsample": layers.over_space,
    }.items()
    for name in names.split()
}
"""Rules by name of a function of torch, an operator of Python, or a method of a tensor."""

MODULES: dict[type[nn.Module], Rule] = {
    kind: rule
    for kinds, rule in {
        (*NON_LINEARITIES, nn.Identity): elementwise.elementwise,
        (
            nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
            nn.FeatureAlphaDropout,
        ): elementwise.dropout,
        (nn.Flatten,): moves.move,
        (nn.PixelShuffle, nn.PixelUnshuffle): moves.pixel_shuffle,
        (nn.Unflatten,): moves.reshape,
        (nn.GLU,): moves.glu,
        (nn.Linear,): layers.linear,
        (nn.Conv1d, nn.Conv2d, nn.Conv3d): layers.convolution,
        (
            nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
        ): layers.transposed_convolution,
        (nn.Embedding,): layers.embedding,
        (
            nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
            nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
        ): layers.batch_norm,
        (nn.GroupNorm,): layers.group_norm,
        (nn.LayerNorm, nn.RMSNorm): layers.layer_norm,
        (nn.PReLU,): layers.prelu,
        (nn.Softmax, nn.LogSoftmax, nn.Softmin): layers.normalised,
        (
            nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
            nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
            nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d,
            nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
            nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d,
            nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
            nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
            nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
            nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
            nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
        ): layers.over_space,
    }.items()
    for kind in kinds
}  # fmt: skip
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

ARITHMETIC = (operator.mul, operator.floordiv)
"""Operations with a result that is still followed as a size that counts units."""

NAMESPACES = (operator, torch, F, torchvision.ops, torchvision.models.swin_transformer)


def rule_of(target: Any) -> Rule | None:
    """Return the rule of a function, method or module; None if there is no rule."""
    if isinstance(target, nn.Module):
        # a parametrized module has its own class; the rule of the plain class reports the reason
        kind = type(target).__bases__[0] if is_parametrized(target) else type(target)
        return MODULES.get(kind)
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and all(
        getattr(space, name, None) is not target for space in NAMESPACES
    ):
        return None
    plain = name if name.startswith("__") else name.rstrip("_")
    rule = FUNCTIONS.get(plain)
    # elementwise rules hold in place, too; a shape that changes in place is not followed
    return rule if plain == name or rule is elementwise.elementwise else None
