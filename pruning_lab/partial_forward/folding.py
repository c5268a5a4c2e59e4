"""Replace modules in a part of a model by faster ones that compute the same."""

import copy
from collections.abc import Iterable
from itertools import count
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

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

    def __init__(self, fast: nn.Module, plain: Iterable[nn.Module], size: tuple[int, int]) -> None:
        super().__init__()
        self.fast, self.plain, self.size = fast, nn.Sequential(*plain), size

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
        modules = tuple(part.get_submodule(str(place.target)) for place in places)
        module = _substitute(modules, seen.get(str(node.target), set()), made, bytes_left)
        if module is None:
            continue
        bytes_left -= _bytes_of_matrices(module)
        used.add(module)
        node.target = _added(part, module)
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
    if not can_be_replaced(part.get_submodule(str(node.target)), CONVOLUTIONS):
        return None
    users = [user for user in node.users if user.op == "call_module" and user.args == (node,)]
    if len(node.users) != 1 or not users or not _is_fixed(part.get_submodule(str(users[0].target))):
        return None
    return users[0]


def fused(convolution: Any, norm: Any) -> nn.Module:
    """Return one convolution that computes both modules, with its own weights."""
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip
    merged = copy.deepcopy(convolution, {id(convolution.weight): weight})  # weight: not copied
    merged.bias = bias
    return merged


def _substitute(
    modules: tuple[nn.Module, ...],
    sizes: set[tuple[int, int]],
    made: Substitutes,
    bytes_left: int,
) -> nn.Module | None:
    """Return a faster module that computes the same as ``modules``, or None if there is none."""
    size = next(iter(sizes)) if len(sizes) == 1 else None
    known = made.get((modules, size))
    if known is not None and _bytes_of_matrices(known) <= bytes_left:
        return known
    merged = made.get((modules, None)) or (fused(*modules) if len(modules) > 1 else modules[0])
    fast = faster(merged, size, bytes_left) if size is not None else None
    if fast is not None and size is not None:
        return made.setdefault((modules, size), ForSize(fast, modules, size))
    return made.setdefault((modules, None), merged) if len(modules) > 1 else None


def _bytes_of_matrices(module: nn.Module) -> int:
    return sum(
        child.weight.nbytes for child in module.modules() if isinstance(child, Dense | Products)
    )


def _added(part: fx.GraphModule, module: nn.Module) -> str:
    """Add ``module`` to ``part`` under a new name, and return the name."""
    names = (f"substitute_{number}" for number in count())
    name = next(name for name in names if not hasattr(part, name))
    part.add_module(name, module)
    return name


class Sizes(fx.Interpreter):
    """Run a part and record the sizes of the maps that each 2d convolution sees."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__(part)
        self.seen: Seen = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if args and isinstance(self.fetch_attr(str(target)), nn.Conv2d) and args[0].ndim == 4:
            self.seen.setdefault(str(target), set()).add(tuple(args[0].shape[2:]))
        return super().call_module(target, args, kwargs)


def can_be_replaced(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether ``module`` is exactly of ``kinds``, in eval mode, with no hook or override."""
    computed = any(name not in module._parameters for name in ("weight", "bias"))
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in kinds and not module.training and not computed and not changed


def _is_fixed(norm: nn.Module) -> bool:
    """Return whether ``norm`` is a BatchNorm that uses its running statistics."""
    return can_be_replaced(norm, NORMS) and norm.running_mean is not None
