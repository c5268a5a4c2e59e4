"""Choose the layers that an experiment scores, and those that lose units."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from pruning_lab.attributions.base import at_rest
from pruning_lab.coupling.structure import STAYS, Structure
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.cut import has_rows, two_and_three
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.traced import trace

log = logging.getLogger(__name__)

Layers = dict[str, nn.Module]


def choose_layers(
    model: nn.Module, structure: Structure, input_size: Sequence[int]
) -> tuple[Layers, Layers]:
    """The layers that are scored and those that lose units, in order of execution.

    A layer that goes with others need not be scored itself: it is enough when every player of its
    group has a unit in one that is. All others are told of, with the reason. Raises UserError when
    nothing can go.
    """
    nothing = UserError(f"{type(model).__name__} has no layer whose units can be removed.")
    if not structure.units:
        raise nothing
    unread = _unreadable(model, structure, input_size)
    groups = structure.groups.values()
    readable = [layer for layer in structure.units if layer not in unread]
    home = {
        layer: group.name
        for group in groups
        if group.covered_by(readable)
        for layer in group.unit_groups
    }
    for layer, reason in structure.frozen.items():
        row = structure.units.get(layer, torch.tensor([STAYS]))
        kept = int((row == STAYS).sum())
        which = "all units" if kept == len(row) else f"{kept} of {len(row)} units"
        log.info("'%s' keeps %s, since %s.", layer, which, reason)
    for layer in (layer for group in groups for layer in group.unit_groups):
        if layer not in home:
            why = f"'{layer}' goes with units that cannot be scored."
            log.info("Left alone: %s", unread.get(layer, why))
        elif layer in unread:
            log.info("Pruned with '%s', not scored: %s", home[layer], unread[layer])
    if not home:
        raise nothing
    pruned = {layer: model.get_submodule(layer) for layer in structure.units if layer in home}
    return {layer: pruned[layer] for layer in pruned if layer not in unread}, pruned


@torch.no_grad()
def _unreadable(
    model: nn.Module, structure: Structure, input_size: Sequence[int]
) -> dict[str, str]:
    """Why a layer's activation cannot be read, for those where it cannot."""
    found, single = {}, {}
    like = next(model.parameters())
    one = torch.zeros(1, *input_size, dtype=like.dtype, device=like.device)
    with at_rest(model):
        graph = trace(model)
        for layer in structure.units:
            module = model.get_submodule(layer)
            try:
                graph.site(module)
                single[layer] = module
            except UserError as error:
                found[layer] = str(error)
        runs = HookedGraph(model, UserError())
        few, more = (runs.record(x, list(single.values()))[1] for x in two_and_three(one))
    for layer, two, three in zip(single, few, more, strict=True):
        if not has_rows(two, three):
            found[layer] = (
                f"'{layer}' does not give its samples in the first dimension: of two its output is "
                f"{tuple(two.shape)}."
            )
    return found
