"""Find the dimension of a module's output along which its units lie."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pruning_lab.attributions.observation.checks import drawn_alike
from pruning_lab.errors import UserError
from pruning_lab.graph.added_code import as_torch_wrote_it
from pruning_lab.graph.kinds import LAYERS, BatchNorm, unit_axis
from pruning_lab.profiling import passes
from pruning_lab.runtime.inputs import Inputs, call, length
from pruning_lab.runtime.model_state import state_kept

LAST = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Torch's own modules besides LAYERS whose units lie in the last dimension."""

Changes = Iterator[tuple[torch.Tensor, int]]
"""Outputs after a change to one unit, each with the number of units."""


@torch.no_grad()
@passes.checking()
def axis_of(model: nn.Module, module: nn.Module, example: Callable[[], Inputs]) -> int:
    """Return the dimension of ``module``'s output that holds its units.

    It is known for torch's own layers. For others one unit's weights, or one unit of the last layer
    that ran before, are changed on an example: the output then changes at a single index of the
    units' dimension. Raises UserError if this finds no dimension, or several.
    """
    known = _known(module) if as_torch_wrote_it(module) else None
    if known is not None:
        return known
    x = example()
    before, ran = _run(model, module, x)
    if not isinstance(before, torch.Tensor) or before.ndim < 3:
        return 1
    for changes in (_by_weights(model, module, x), _by_layer(model, module, x, ran[-1:])):
        axes = {axis for after, units in changes for axis in _changed(before, after, units)}
        if len(axes) == 1:
            return axes.pop()
    if isinstance(module, LAYERS) and as_torch_wrote_it(module):
        return unit_axis(module)
    raise UserError(
        f"Cannot tell which dimension of {type(module).__name__}'s output {tuple(before.shape)} "
        "holds the units. Score the Linear or the convolution before it, with "
        "find_best_evaluation_module=True to read what follows it directly."
    )


def _known(module: nn.Module) -> int | None:
    """Return the dimension that is known from torch's own code; None for all other modules."""
    of_torch = type(module).__module__.startswith("torch.nn.")
    if of_torch and isinstance(module, (*LAYERS, BatchNorm)):
        return unit_axis(module)
    one_dimension = len(getattr(module, "normalized_shape", "1")) == 1
    return -1 if type(module) in LAST and one_dimension else None


def _run(
    model: nn.Module, module: nn.Module, x: Inputs, at: nn.Module | None = None
) -> tuple[Any, list[nn.Module]]:
    """Return ``module``'s output and the layers run before, the last unit of ``at`` changed."""
    outputs: list[Any] = []
    ran: list[nn.Module] = []

    def hook(called: nn.Module, _: Any, output: Any) -> Any:
        if called is at:
            output = _with_another(output, _known(called) or 0)
        if called is module:
            outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)
        elif not outputs:
            ran.append(called)
        return output

    hooked = [m for m in model.modules() if m is module or _known(m) is not None]
    handles = [m.register_forward_hook(hook) for m in hooked]
    try:
        passes.forward(length(x))
        drawn_alike(call, model, x)
    finally:
        for handle in handles:
            handle.remove()
    return (outputs[0] if outputs else None), ran


def _by_weights(model: nn.Module, module: nn.Module, x: Inputs) -> Changes:
    """Change the last index of each dimension of the module's own weight and bias."""
    held = (module._parameters.get(kind) for kind in ("weight", "bias"))
    for tensor in (tensor for tensor in held if tensor is not None):
        for dim, units in enumerate(tensor.shape):
            changed = nn.Parameter(_with_another(tensor, dim), requires_grad=False)
            with state_kept(model):  # puts the weights back
                for own in (m._parameters for m in model.modules()):
                    own.update({name: changed for name, p in own.items() if p is tensor})
                after, _ = _run(model, module, x)
            yield after, units


def _by_layer(model: nn.Module, module: nn.Module, x: Inputs, last: list[nn.Module]) -> Changes:
    """Change the last unit of the layer that ran last, if there is one."""
    for layer in last:
        output, _ = _run(model, layer, x)
        after, _ = _run(model, module, x, at=layer)
        yield after, output.shape[_known(layer)]


def _with_another(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Return a copy with changes of both signs at the last index of a dimension."""
    changed = tensor.detach().clone()
    place, size = changed.select(dim, -1), max(1.0, tensor.abs().max().item())
    steps = torch.linspace(-2, 3, place.numel(), device=changed.device).to(changed.dtype)
    place.add_(size * steps.view_as(place) if place.ndim else 3 * size)
    return changed


def _changed(before: torch.Tensor, after: torch.Tensor, units: int) -> list[int]:
    """Return the dimensions after the samples' along which a single index has changed."""
    differs = (before != after) & ~(before.isnan() & after.isnan())
    return [
        dim
        for dim in range(1, differs.ndim)
        if (differs.shape[dim] == 1) == (units == 1)
        and differs.movedim(dim, 0).flatten(1).any(1).sum() == 1
    ]
