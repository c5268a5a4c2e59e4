"""Along which dimension of a module's output its units lie."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pruning_lab import ledger
from pruning_lab.attributions.apart import drawn_alike
from pruning_lab.errors import UserError
from pruning_lab.graph import unit_axis
from pruning_lab.graph.added_code import as_torch_wrote_it
from pruning_lab.graph.kinds import LAYERS, BatchNorm

LAST = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Torch's own modules, but for LAYERS, whose units lie in the last dimension."""


@torch.no_grad()
@ledger.checking()
def axis_of(model: nn.Module, module: nn.Module, example: Callable[[], torch.Tensor]) -> int:
    """The dimension of ``module``'s output that holds its units.

    Of torch's own layers it is known. Of others it is seen on an example: when one unit's weights
    change, or one unit of the layer that ran last before the output, then the output changes at one
    place of the units' dimension only. UserError where that tells of no dimension, or of several.
    """
    known = _known(module) if as_torch_wrote_it(module) else None
    if known is not None:
        return known
    x = example()
    before, ran = drawn_alike(partial(_run, model, module), x)
    if not isinstance(before, torch.Tensor) or before.ndim < 3:
        return 1
    by_weights, by_layer = _by_weights(model, module, x), _by_layer(model, module, x, ran[-1:])
    for changes in (by_weights, by_layer):
        axes = {axis for after, units in changes for axis in _changed(before, after, units)}
        if len(axes) == 1:
            return axes.pop()
    if isinstance(module, LAYERS) and as_torch_wrote_it(module):
        return unit_axis(module)
    raise UserError(
        f"Which dimension of {type(module).__name__}'s output {tuple(before.shape)} holds the "
        "units cannot be told. Score the Linear or the convolution in front of it, with "
        "find_best_evaluation_module=True for what follows it directly."
    )


def _known(module: nn.Module) -> int | None:
    """The dimension where torch's own code says it; None for others, and where it does not."""
    own = type(module).__module__.startswith("torch.nn.")
    if own and isinstance(module, (*LAYERS, BatchNorm)):
        return unit_axis(module)
    return (
        -1 if type(module) in LAST and len(getattr(module, "normalized_shape", "1")) == 1 else None
    )


def _run(
    model: nn.Module, module: nn.Module, x: torch.Tensor, at: nn.Module | None = None
) -> tuple[Any, list[nn.Module]]:
    """The output of ``module``, and which layers ran before; the last unit of ``at`` is another."""
    found: list[Any] = []
    ran: list[nn.Module] = []

    def hook(each: nn.Module, _: Any, output: Any) -> Any:
        if each is at:
            output = _with_another(output, _known(each) or 0)
        if each is module:
            found.append(output.clone() if isinstance(output, torch.Tensor) else output)
        elif not found:
            ran.append(each)
        return output

    hooked = [each for each in model.modules() if each is module or _known(each) is not None]
    handles = [each.register_forward_hook(hook) for each in hooked]
    try:
        ledger.forward(len(x))
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else None), ran


Changes = Iterator[tuple[torch.Tensor, int]]
"""The output when one unit is another, and how many there are."""


def _by_weights(model: nn.Module, module: nn.Module, x: torch.Tensor) -> Changes:
    """For each dimension of the module's own weight and bias."""
    (name,) = (name for name, each in model.named_modules() if each is module)
    held = module._parameters
    for kind, tensor in ((kind, held.get(kind)) for kind in ("weight", "bias")):
        for dim in range(0 if tensor is None else tensor.ndim):
            assert tensor is not None
            changed = {f"{name}.{kind}".lstrip("."): _with_another(tensor, dim)}

            def run(x: torch.Tensor, changed: Any = changed) -> Any:
                read = _Reads(model, module)
                functional_call(read, {f"model.{key}": each for key, each in changed.items()}, (x,))
                return read.found

            yield drawn_alike(run, x), tensor.shape[dim]


class _Reads(nn.Module):
    """A model whose call tells a module's output."""

    def __init__(self, model: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.model, self._of, self.found = model, [module], None

    def forward(self, x: torch.Tensor) -> None:
        self.found, _ = _run(self.model, self._of[0], x)


def _by_layer(
    model: nn.Module, module: nn.Module, x: torch.Tensor, last: list[nn.Module]
) -> Changes:
    """For the layer that ran last, if there is one."""
    for layer in last:
        output, _ = drawn_alike(partial(_run, model, layer), x)
        after, _ = drawn_alike(partial(_run, model, module, at=layer), x)
        yield after, output.shape[_known(layer)]


def _with_another(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The same with other numbers of both signs at the last place of a dimension."""
    found = tensor.detach().clone()
    place, size = found.select(dim, -1), max(1.0, tensor.abs().max().item())
    steps = torch.linspace(-2, 3, place.numel(), device=found.device).to(found.dtype)
    place.add_(size * steps.view_as(place) if place.ndim else 3 * size)
    return found


def _changed(before: torch.Tensor, after: torch.Tensor, units: int) -> list[int]:
    """The dimensions, but the samples', along which one place alone has changed."""
    other = (before != after) & ~(before.isnan() & after.isnan())
    return [
        dim
        for dim in range(1, other.ndim)
        if (other.shape[dim] == 1) == (units == 1)
        and other.movedim(dim, 0).flatten(1).any(1).sum() == 1
    ]
