"""BatchNorms folded into the convolutions before them: in eval mode both are one product."""

from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pruning_lab.graph.kinds import BatchNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def folded(part: fx.GraphModule) -> fx.GraphModule:
    """``part`` with every BatchNorm folded that directly follows a convolution, in place.

    The modules that it shares with a model stay as they are: folded ones are new. Left alone are
    modules with hooks or computed weights, and statistics that come from the batch.
    """
    for node in list(part.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution: Any = part.get_submodule(str(source.target))
        norm: Any = part.get_submodule(str(node.target))
        if can_be_replaced(convolution, CONVOLUTIONS) and _is_fixed(norm):
            name = f"folded_{node.name}"
            part.add_module(name, fuse_conv_bn_eval(convolution, norm))
            source.target = name
            node.replace_all_uses_with(source)
            part.graph.erase_node(node)
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
