"""The network of an experiment: which layers are scored and lose units, and what it costs."""

import copy
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import at_rest
from pruning_lab.attributions.unit_groups import UnitGroups, alike, unit_groups_of, units_of_module
from pruning_lab.coupling.structure import STAYS, CoupledLayers, Structure
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import units_of
from pruning_lab.partial_forward.cut import has_rows, two_and_three
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.traced import trace
from pruning_lab.profiling.flops import count_flops, count_parameters, flops_by_module
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.trial import Trial
from pruning_lab.pruning.plan import GroupScores, Plan, make_plan
from pruning_lab.pruning.schedules import TOGETHER, Schedule, Step, ToTarget
from pruning_lab.records.step import Size

log = logging.getLogger(__name__)

Layers = dict[str, nn.Module]


class Network:
    """A model that is pruned step by step.

    ``layers`` are scored, ``pruned`` are all that lose units, both by name; ``original`` is the
    size of the unpruned model. Raises UserError if no unit can be removed.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: Sequence[int],
        device: torch.device,
        rescale_dropout: bool = True,
    ) -> None:
        self.model, self.input_size = model, tuple(input_size)
        # a resumed run makes its cuts without the forwards between them
        self.pruner = Pruner(
            model, input_size, device, rescale_dropout=rescale_dropout, watch=False
        )
        self.layers, self.pruned = choose_layers(model, self.pruner.structure, input_size)
        self.original = self.size()

    def copy(self) -> "Network":
        """Return a copy with weights of its own; only possible before the first cut."""
        assert not self.pruner.kept
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.pruner = Pruner(
            other.model, self.input_size, self.pruner.device, structure=self.pruner.structure,
            rescale_dropout=self.pruner.rescale_dropout, watch=False,
        )  # fmt: skip
        other.layers, other.pruned = (
            {name: other.model.get_submodule(name) for name in names}
            for names in (self.layers, self.pruned)
        )
        return other

    def groups(self, layers: Collection[str] | None = None) -> dict[str, CoupledLayers]:
        """Return the coupled layers that can be scored, in the model's present state.

        With ``layers`` only those that contain one of them.
        """
        return {
            name: group
            for name, group in self.pruner.structure.groups.items()
            if group.covered_by(self.layers)
            and (layers is None or not group.unit_groups.keys().isdisjoint(layers))
        }

    def unit_groups(self, layers: Collection[str], coupled: str) -> dict[str, UnitGroups]:
        """Return what is scored: the unit groups of coupled layers, or each layer alone."""
        if coupled != TOGETHER:
            return {layer: units_of_module(self.layers[layer]) for layer in layers}
        groups = self.groups(layers).items()
        return {name: unit_groups_of(self.model, group) for name, group in groups}

    def plan(self, scores: GroupScores, step: Step, schedule: Schedule) -> Plan:
        """Choose the units to remove so that the step's share of the original is removed."""
        trial = Trial(self.model, self.input_size, self.pruner.structure)
        of = schedule.of if isinstance(schedule, ToTarget) else "units"

        def removed_share(plan: Plan) -> float:
            return 1 - self._amount(trial.after(plan), of) / getattr(self.original, of)

        groups = self.groups(step.layers)
        penalised = isinstance(schedule, ToTarget) and schedule.flops_penalty > 0
        flops = self._flops_of_unit_groups(groups, trial) if penalised else None
        return make_plan(scores, groups, step, schedule, removed_share, flops)

    def _flops_of_unit_groups(
        self, groups: Mapping[str, CoupledLayers], trial: Trial
    ) -> dict[str, np.ndarray]:
        """Return the FLOPs saved by removing each unit group alone, (unit groups,) by layer."""
        whole = count_flops(self.model, self.input_size)
        saved = {}
        for name, group in groups.items():
            saved[name] = np.zeros(len(group))
            rows = list(group.unit_groups.values())
            for kind in alike(rows, len(group)):
                takes = zip(rows, kind.units, strict=True)
                if any(units.shape[1] == len(row) for row, units in takes):
                    continue  # it would empty a layer, and stays
                without = trial.after({name: kind.unit_groups[:1].numpy()})
                saved[name][kind.unit_groups] = whole - count_flops(without, self.input_size)
        return saved

    def size(self) -> Size:
        """Return the size of the model in its present state."""
        return Size(*(self._amount(self.model, of) for of in Size._fields))

    def _amount(self, model: nn.Module, of: str) -> float:
        """Return one field of the size of ``model``, this one or a pruned copy."""
        if of == "flops":
            return count_flops(model, self.input_size)
        if of == "parameters":
            return count_parameters(model)
        return sum(units_of(model.get_submodule(layer)) for layer in self.pruned)

    def widths(self) -> dict[str, int]:
        """Return the number of units of each layer."""
        return {name: units_of(layer) for name, layer in self.pruned.items()}

    def work_after(self) -> dict[str, float]:
        """Return the FLOPs after each layer: the cost of evaluating its units once."""
        flops = flops_by_module(self.model, self.input_size)
        until = np.cumsum(list(flops.values()), dtype=float)
        return dict(zip(flops, (until[-1] - until).tolist(), strict=True))


def choose_layers(
    model: nn.Module, structure: Structure, input_size: Sequence[int]
) -> tuple[Layers, Layers]:
    """Return the layers that are scored and those that lose units, in order of execution.

    A layer can lose units without being scored itself if each unit group of its coupled layers has
    a unit in a scored one. The others are logged, with the reason. Raises UserError if no unit can
    be removed.
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
            why = f"'{layer}' is coupled to units that cannot be scored."
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
    """Return the reason for each layer whose activation cannot be read."""
    reasons, single = {}, {}
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
                reasons[layer] = str(error)
        runs = HookedGraph(model, UserError())
        few, more = (runs.record(x, list(single.values()))[1] for x in two_and_three(one))
    for layer, two, three in zip(single, few, more, strict=True):
        if not has_rows(two, three):
            reasons[layer] = (
                f"'{layer}' does not give its samples in the first dimension: of two its output is "
                f"{tuple(two.shape)}."
            )
    return reasons
