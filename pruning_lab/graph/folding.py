"""Modules of a part of a model put in the place of others that compute the same, slower."""

from collections.abc import Hashable
from itertools import count
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.graph.small_maps import faster

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


Substitutes = dict[Hashable, nn.Module | None]
"""Modules that several parts of one model may use, by what they stand for."""


def folded(part: fx.GraphModule, made: Substitutes) -> fx.GraphModule:
    """``part`` with every BatchNorm folded into the convolution that it directly follows, in place.

    In eval mode both are one product. The modules that the part shares with a model stay as they
    are: folded ones are new, and taken from ``made`` where they are already there. Left alone are
    modules with hooks or computed weights, and statistics that come from the batch.
    """
    for node in list(part.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution: Any = part.get_submodule(str(source.target))
        norm: Any = part.get_submodule(str(node.target))
        if can_be_replaced(convolution, CONVOLUTIONS) and _is_fixed(norm):
            which = (source.target, node.target)
            if which not in made:
                made[which] = fuse_conv_bn_eval(convolution, norm)
            source.target = _added(part, made[which])
            node.replace_all_uses_with(source)
            part.graph.erase_node(node)
    part.recompile()
    return part


def _added(part: fx.GraphModule, module: nn.Module | None) -> str:
    """The name, new in ``part``, under which it has ``module`` now."""
    names = (f"substitute_{number}" for number in count())
    name = next(name for name in names if not hasattr(part, name))
    part.add_module(name, module)
    return name


class Sizes(fx.Interpreter):
    """Runs a part and remembers the sizes of the maps that each 2d convolution sees."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__(part)
        self.seen: dict[str, set[tuple[int, int]]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if args and isinstance(self.fetch_attr(str(target)), nn.Conv2d) and args[0].ndim == 4:
            self.seen.setdefault(str(target), set()).add(tuple(args[0].shape[2:]))
        return super().call_module(target, args, kwargs)


class ForSize(nn.Module):
    """``fast`` on maps of one size, on others the convolution that it stands for."""

    def __init__(self, fast: nn.Module, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.fast, self.convolution, self.size = fast, convolution, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fast(x) if x.shape[2:] == self.size else self.convolution(x)


def for_small_maps(
    part: fx.GraphModule, seen: dict[str, set[tuple[int, int]]], made: Substitutes
) -> fx.GraphModule:
    """``part`` with convolutions that ``seen`` small maps alone as matrix products, in place."""
    for node in part.graph.nodes:
        sizes = seen.get(str(node.target), set()) if node.op == "call_module" else set()
        if len(sizes) == 1:
            (size,) = sizes
            convolution: Any = part.get_submodule(str(node.target))
            which = (convolution, size)
            if which not in made:
                fast = faster(convolution, size)
                made[which] = None if fast is None else ForSize(fast, convolution, size)
            if made[which] is not None:
                node.target = _added(part, made[which])
    part.recompile()
    return part


def can_be_replaced(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module is exactly of one of these kinds and does nothing besides."""
    computed = any(name not in module._parameters for name in ("weight", "bias"))
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in kinds and not module.training and not computed and not hooked


def _is_fixed(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm that uses its running statistics."""
    plain = isinstance(norm, BatchNorm) and not (norm._forward_hooks or norm._forward_pre_hooks)
    return plain and not norm.training and norm.running_mean is not None
