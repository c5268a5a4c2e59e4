"""Modules of a part of a model put in the place of others that compute the same, slower."""

import copy
from collections.abc import Iterable
from itertools import count
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pruning_lab.graph.small_maps import Dense, Products, faster

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

MATRICES = 160 * 2**20
"""How many bytes the matrices for small maps may take in one part. The last layers come first: on
the smallest maps a byte gains most."""

Key = tuple[tuple[nn.Module, ...], tuple[int, int] | None]
"""The modules of the model that one computes at once, and the maps' size where it is for one."""

Substitutes = dict[Key, nn.Module]
"""Modules that several parts of one model may use."""

Seen = dict[str, set[tuple[int, int]]]
"""The sizes of the maps that each 2d convolution sees."""


class ForSize(nn.Module):
    """``fast`` on maps of one size, on others the modules of the model that it stands for."""

    def __init__(self, fast: nn.Module, plain: Iterable[nn.Module], size: tuple[int, int]) -> None:
        super().__init__()
        self.fast, self.plain, self.size = fast, nn.Sequential(*plain), size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.fast(input) if input.shape[2:] == self.size else self.plain(input)


def made_faster(part: fx.GraphModule, seen: Seen, made: Substitutes) -> set[nn.Module]:
    """Put faster modules into ``part``, in place; these are returned.

    Every BatchNorm is folded into the convolution that it directly follows: in eval mode both are
    one product. Convolutions that have ``seen`` small maps alone become matrix products. The
    modules that the part shares with a model stay as they are: faster ones are new, and taken from
    ``made`` where they are already there.
    """
    used, bytes_left = set(), MATRICES
    for node in reversed(list(part.graph.nodes)):
        if node.op != "call_module":
            continue
        norm_node = norm_behind(part, node)
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


def norm_behind(part: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The BatchNorm that can be folded into the convolution at ``node``; None without one.

    Left alone are modules with hooks, computed weights or code of their own, and statistics that
    come from the batch.
    """
    if not can_be_replaced(part.get_submodule(str(node.target)), CONVOLUTIONS):
        return None
    users = [user for user in node.users if user.op == "call_module" and user.args == (node,)]
    if len(node.users) != 1 or not users or not _is_fixed(part.get_submodule(str(users[0].target))):
        return None
    return users[0]


def fused(convolution: Any, norm: Any) -> nn.Module:
    """One convolution that computes what both do, with weights of its own."""
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip
    found = copy.deepcopy(convolution, {id(convolution.weight): weight})  # which is not copied
    found.bias = bias
    return found


def _substitute(
    modules: tuple[nn.Module, ...],
    sizes: set[tuple[int, int]],
    made: Substitutes,
    bytes_left: int,
) -> nn.Module | None:
    """What computes the same as ``modules`` in less time; None where there is nothing better."""
    size = next(iter(sizes)) if len(sizes) == 1 else None
    found = made.get((modules, size))
    if found is not None and _bytes_of_matrices(found) <= bytes_left:
        return found
    one = made.get((modules, None)) or (fused(*modules) if len(modules) > 1 else modules[0])
    fast = faster(one, size, bytes_left) if size is not None else None
    if fast is not None and size is not None:
        return made.setdefault((modules, size), ForSize(fast, modules, size))
    return made.setdefault((modules, None), one) if len(modules) > 1 else None


def _bytes_of_matrices(module: nn.Module) -> int:
    return sum(
        each.weight.nbytes for each in module.modules() if isinstance(each, Dense | Products)
    )


def _added(part: fx.GraphModule, module: nn.Module) -> str:
    """The name, new in ``part``, under which it has ``module`` now."""
    names = (f"substitute_{number}" for number in count())
    name = next(name for name in names if not hasattr(part, name))
    part.add_module(name, module)
    return name


class Sizes(fx.Interpreter):
    """Runs a part and remembers the sizes of the maps that each 2d convolution sees."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__(part)
        self.seen: Seen = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if args and isinstance(self.fetch_attr(str(target)), nn.Conv2d) and args[0].ndim == 4:
            self.seen.setdefault(str(target), set()).add(tuple(args[0].shape[2:]))
        return super().call_module(target, args, kwargs)


def can_be_replaced(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module is exactly of one of these kinds and does nothing besides."""
    computed = any(name not in module._parameters for name in ("weight", "bias"))
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in kinds and not module.training and not computed and not changed


def _is_fixed(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm that uses its running statistics."""
    return can_be_replaced(norm, NORMS) and norm.running_mean is not None
