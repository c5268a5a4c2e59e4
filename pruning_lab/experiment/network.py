"""The network of an experiment: which layers are scored, which units may go, what it costs."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.unit_groups import UnitGroups, alike, unit_groups_of, units_of_module
from pruning_lab.coupling.structure import CoupledLayers
from pruning_lab.experiment.removable import choose_layers
from pruning_lab.graph.kinds import units_of
from pruning_lab.profiling.flops import count_flops, count_parameters, flops_by_module, latency_ms
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.trial import Trial
from pruning_lab.pruning.plan import GroupScores, Plan, make_plan
from pruning_lab.pruning.schedules import TOGETHER, Schedule, Step, ToTarget


class Network:
    """A model on its way to a smaller one.

    ``layers`` are scored, ``pruned`` are all that lose units, both by name; ``original`` is what
    the cost of the unpruned model. Raises UserError if no unit can be removed.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: Sequence[int],
        device: torch.device,
        rescale_dropout: bool = True,
    ) -> None:
        self.model, self.input_size = model, tuple(input_size)
        self.pruner = Pruner(model, input_size, device, rescale_dropout=rescale_dropout)
        self.layers, self.pruned = choose_layers(model, self.pruner.structure, input_size)
        self.original = self.size()

    def copy(self) -> "Network":
        """Another one with weights of its own, as this one stands before its first cut."""
        assert not self.pruner.kept
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.pruner = Pruner(
            other.model, self.input_size, self.pruner.device, structure=self.pruner.structure,
            rescale_dropout=self.pruner.rescale_dropout,
        )  # fmt: skip
        other.layers, other.pruned = (
            {name: other.model.get_submodule(name) for name in names}
            for names in (self.layers, self.pruned)
        )
        return other

    def groups(self, layers: Collection[str] | None = None) -> dict[str, CoupledLayers]:
        """The groups of units that can be scored, as the model stands; those of some layers."""
        found = self.pruner.structure.groups.items()
        return {
            name: group
            for name, group in found
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
            return 1 - self._size(trial.after(plan), of)[of] / self.original[of]

        groups = self.groups(step.layers)
        penalised = isinstance(schedule, ToTarget) and schedule.flops_penalty > 0
        flops = self._flops_of_unit_groups(groups, trial) if penalised else None
        return make_plan(scores, groups, step, schedule, removed_share, flops)

    def _flops_of_unit_groups(
        self, groups: Mapping[str, CoupledLayers], trial: Trial
    ) -> dict[str, np.ndarray]:
        """Return the FLOPs saved by removing each unit group alone, (unit groups,) by layer."""
        whole = self._size(self.model, "flops")["flops"]
        found = {}
        for name, group in groups.items():
            found[name] = np.zeros(len(group))
            rows = list(group.unit_groups.values())
            for kind in alike(rows, len(group)):
                takes = zip(rows, kind.units, strict=True)
                if any(units.shape[1] == len(row) for row, units in takes):
                    continue  # it would empty a layer, and stays
                without = trial.after({name: kind.unit_groups[:1].numpy()})
                found[name][kind.unit_groups] = whole - self._size(without, "flops")["flops"]
        return found

    def size(self) -> dict[str, float]:
        """FLOPs, parameters and units."""
        return self._size(self.model, "flops", "parameters", "units")

    def _size(self, model: nn.Module, *wanted: str) -> dict[str, float]:
        ways: dict[str, Callable[[], float]] = {
            "flops": lambda: count_flops(model, self.input_size),
            "parameters": lambda: count_parameters(model),
            "units": lambda: sum(units_of(model.get_submodule(layer)) for layer in self.pruned),
        }
        return {name: ways[name]() for name in wanted}

    def widths(self) -> dict[str, int]:
        """Return the number of units of each layer."""
        return {name: units_of(layer) for name, layer in self.pruned.items()}

    def latency_ms(self) -> float:
        """The time of one forward pass of one sample in milliseconds."""
        return latency_ms(self.model, self.input_size)

    def work_after(self) -> dict[str, float]:
        """Return the FLOPs after each layer: the cost of evaluating its units once."""
        flops = flops_by_module(self.model, self.input_size)
        after, left = {}, float(sum(flops.values()))
        for name, count in flops.items():
            left -= count
            after[name] = left
        return after
