"""Replace modules in a part of a model by faster ones that compute the same."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pruning_lab.partial_forward.parts import called
from pruning_lab.partial_forward.small_maps import Dense, Products, faster

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

MATRICES = 160 * 2**20
"""Most bytes of matrices for small maps in one part. The last layers get them first: their maps are
the smallest, where a byte saves most time."""

Key = tuple[tuple[nn.Module, ...], tuple[int, int] | None]
"""The modules that one substitute replaces, and the map size if it is made for one size."""

Substitutes = dict[Key, nn.Module]
"""Faster modules, shared by the parts of one model."""

Seen = dict[str, set[tuple[int, int]]]
"""Module name -> the sizes of the maps that this 2d convolution sees."""


class ForSize(nn.Module):
    """Run ``fast`` on maps of one size, and on others the modules ``plain`` that it replaces."""

    def __init__(
        self, fast: Dense | Products, plain: Iterable[nn.Module], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.fast, self.plain, self.size = fast, nn.Sequential(*plain), size
        self.nbytes = fast.weight.nbytes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.fast(input) if input.shape[2:] == self.size else self.plain(input)


def made_faster(part: fx.GraphModule, seen: Seen, made: Substitutes) -> set[nn.Module]:
    """Put faster modules into ``part``, in place, and return them.

    Every BatchNorm is folded into the convolution that it directly follows: in eval mode both are
    one product. Convolutions that have ``seen`` only maps of one small size become matrix products.
    Modules that the part shares with a model are not changed: substitutes are new modules, or
    taken from ``made`` if already there.
    """
    used, bytes_left = set(), MATRICES
    for node in reversed(list(part.graph.nodes)):
        if node.op != "call_module":
            continue
        norm_node = norm_after(part, node)
        places = [node] if norm_node is None else [node, norm_node]
        modules = tuple(called(part, place) for place in places)
        module = _substitute(modules, seen.get(str(node.target), set()), made, bytes_left)
        if module is None:
            continue
        bytes_left -= getattr(module, "nbytes", 0)
        used.add(module)
        node.target = f"substitute for {node.name}"
        part.add_module(node.target, module)
        if norm_node is not None:
            norm_node.replace_all_uses_with(node)
            part.graph.erase_node(norm_node)
    part.delete_all_unused_submodules()
    part.recompile()
    return used


def norm_after(part: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the BatchNorm that can be folded into the convolution at ``node``, or None.

    Modules with hooks, computed weights or custom code, and BatchNorms that use the statistics of
    the batch, are not folded.
    """
    user = next(iter(node.users), node)
    alone = len(node.users) == 1 and user.op == "call_module" and user.args == (node,)
    if not alone or not can_be_replaced(called(part, node), CONVOLUTIONS):
        return None
    norm = called(part, user)
    return user if can_be_replaced(norm, NORMS) and norm.running_mean is not None else None


def _substitute(
    modules: tuple[Any, ...], sizes: set[tuple[int, int]], made: Substitutes, bytes_left: int
) -> nn.Module | None:
    """Return a faster module that computes the same as ``modules``, or None if there is none."""
    size = next(iter(sizes)) if len(sizes) == 1 else None
    known = made.get((modules, size))
    if known is not None and getattr(known, "nbytes", 0) <= bytes_left:
        return known
    folds = len(modules) > 1
    merged = made.get((modules, None)) or (fuse_conv_bn_eval(*modules) if folds else modules[0])
    if size is not None and (fast := faster(merged, size, bytes_left)) is not None:
        return made.setdefault((modules, size), ForSize(fast, modules, size))
    return made.setdefault((modules, None), merged) if folds else None


def can_be_replaced(module: Any, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether ``module`` is exactly of ``kinds``, in eval mode, with no hook or override."""
    return (
        type(module) in kinds
        and not module.training
        and all(name in module._parameters for name in ("weight", "bias"))
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    )
