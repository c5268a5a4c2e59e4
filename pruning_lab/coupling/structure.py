"""Find coupled units, units that cannot be removed, and all tensors and attributes that shrink."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pruning_lab.coupling.call import Findings, tensors_of
from pruning_lab.coupling.follow import follow
from pruning_lab.coupling.slots import components
from pruning_lab.coupling.values import Key
from pruning_lab.coupling.widths import add_sizes, read_unnoticed, watch
from pruning_lab.graph.added_code import added_code, skeleton
from pruning_lab.graph.as_run import check_as_run
from pruning_lab.graph.kinds import LAYERS
from pruning_lab.graph.refusals import UntraceableError, check_initialised, told, untraceable
from pruning_lab.graph.tracing import constants_of, operations
from pruning_lab.runtime.model_state import state_kept

STAYS = -1
"""The class of everything that cannot be removed."""


@dataclass(frozen=True)
class CoupledLayers:
    """Layers whose units can only be removed together.

    A unit group is what is removed at once: usually one unit of each layer. ``unit_groups[layer]``
    (units,) is the number of each unit's unit group, or -1 where the unit cannot be removed.
    ``name`` is that of the first layer.
    """

    name: str
    unit_groups: dict[str, torch.Tensor]
    classes: torch.Tensor  # of each unit group

    def __len__(self) -> int:
        return len(self.classes)

    def covered_by(self, layers: Collection[str]) -> bool:
        """Return True if every unit group has a unit in one of these layers."""
        rows = (row for layer, row in self.unit_groups.items() if layer in layers)
        return len({number for row in rows for number in row.tolist()} - {STAYS}) == len(self)


@dataclass(frozen=True)
class Follows:
    """The attribute ``module.name`` (at ``index`` if it is a tuple) is ``len(classes) // per``."""

    module: str
    name: str
    index: int | None
    classes: torch.Tensor
    per: int


@dataclass(frozen=True)
class Structure:
    """The coupling of a model's units. It refers to no tensor of the model, so it fits all copies.

    Units that can only be removed together have the same class, an integer; STAYS is the class of
    what cannot be removed. ``tensors`` holds the classes along (parameter or buffer, dimension),
    ``units`` those of each layer's units, ``dropouts`` those that each Dropout sees, and ``frozen``
    the reason why some or all units of a layer cannot be removed. Equal rows are the same tensor,
    so that a result computed for one row can be reused for all.
    """

    tensors: dict[tuple[str, int], torch.Tensor]
    units: dict[str, torch.Tensor]
    follows: list[Follows]
    dropouts: dict[str, torch.Tensor]
    frozen: dict[str, str]
    count: int  # of classes

    def __str__(self) -> str:
        """List the coupled layers, then the layers with units that cannot be removed."""
        lines = [
            f"{name}: {len(group)} x {', '.join(group.unit_groups)}"
            for name, group in self.groups.items()
        ]
        stays = [f"  {layer}: {reason}" for layer, reason in self.frozen.items()]
        return "\n".join([*lines, "Units that cannot be removed:", *stays])

    def marked(self, classes: torch.Tensor) -> torch.Tensor:
        """Return a mask of all classes: ``mask[row]`` is True where ``row`` has one of these."""
        marks = torch.zeros(self.count + 1, dtype=torch.bool)  # the last entry is for STAYS, -1
        marks[classes] = True
        return marks

    def without(self, classes: torch.Tensor) -> "Structure":
        """Return the structure of the model after these classes are removed."""
        stays = ~self.marked(classes)
        remaining = cache(lambda row: row[stays[row]])
        return replace(
            self,
            tensors={key: remaining(row) for key, row in self.tensors.items()},
            units={layer: remaining(row) for layer, row in self.units.items()},
            follows=[replace(item, classes=remaining(item.classes)) for item in self.follows],
            dropouts={module: remaining(row) for module, row in self.dropouts.items()},
        )

    @cached_property
    def groups(self) -> dict[str, CoupledLayers]:
        """Coupled layers by the name of their first layer, in the order in which these run."""
        rows = {layer: row for layer, row in self.units.items() if (row != STAYS).any()}
        if not rows:
            return {}
        # layers that share a class are in the same component of a graph of layers and classes
        layer_of = np.arange(len(rows)).repeat([len(row) for row in rows.values()])
        classes = torch.cat(list(rows.values())).numpy()
        moves, size = classes != STAYS, len(rows) + self.count
        numbers = components(layer_of[moves], len(rows) + classes[moves], size)[: len(rows)]
        coupled: dict[int, dict[str, torch.Tensor]] = {}
        for number, (layer, row) in zip(numbers.tolist(), rows.items(), strict=True):
            coupled.setdefault(number, {})[layer] = row
        return {next(iter(rows)): self._group(rows) for rows in coupled.values()}

    def _group(self, rows: dict[str, torch.Tensor]) -> CoupledLayers:
        """Number the unit groups of coupled layers, in the order of their first units."""
        classes = dict.fromkeys(c for row in rows.values() for c in row.tolist() if c != STAYS)
        order = torch.tensor(list(classes))
        number = torch.full((self.count + 1,), STAYS)  # the last entry is for STAYS, -1
        number[order] = torch.arange(len(order))
        unit_groups = {layer: number[row] for layer, row in rows.items()}
        return CoupledLayers(next(iter(rows)), unit_groups, order)


def find_structure(model: nn.Module, input_size: tuple[int, ...]) -> Structure:
    """Trace ``model`` in both modes and follow its units through every operation.

    The model takes one tensor of floats; ``input_size`` excludes the batch dimension. Only shapes
    of the model are read; it is neither run nor changed. Raises UntraceableError if it cannot be
    traced or does not take inputs of this size, UserError if it does not take one tensor or has
    parameters without a shape.
    """
    check_initialised(model)
    added = added_code(model)
    if "" in added:  # concerns the whole model
        layers = (name for name, m in model.named_modules() if isinstance(m, LAYERS))
        return Structure({}, {}, [], {}, dict.fromkeys(layers, added[""]), 0)
    bones = skeleton(model)
    findings, noticed = Findings(bones, added), set[Key]()
    widths = watch(bones, noticed.add)
    opaque = {bones.get_submodule(name) for name in added}

    def traced() -> tuple[fx.Graph, str]:
        graph = operations(bones, opaque)
        return graph, _described(bones, graph)

    dtype = next((tensor.dtype for tensor in model.parameters()), torch.float32)
    x = torch.empty(2, *input_size, dtype=dtype, device="meta")
    seen = set()
    for training in (False, True):  # some heads exist only in training
        bones.train(training)
        noticed.clear()
        graph, code = traced()
        new = code not in seen
        if new:
            noticed |= read_unnoticed(widths, code, lambda: traced()[1])
        findings.read |= noticed  # not what torch's own modules read below
        if new:
            _follow(graph, x, findings)
            seen.add(code)
        check_as_run(bones, graph, x)
    _freeze_added(findings)
    add_sizes(findings)
    _freeze_read_widths(findings)
    _freeze_shared_memory(model, findings)
    return _structure(findings)


def _freeze_added(findings: Findings) -> None:
    """Freeze all tensors of modules with added code, which may read any of them."""
    for path, reason in findings.added.items():
        for _, tensor in tensors_of(findings.model.get_submodule(path)):
            findings.freeze(findings.labelled(tensor), reason)


def _freeze_read_widths(findings: Findings) -> None:
    """Freeze units whose number the code calculates with: removing some would change the result."""
    for key in findings.read:
        numbers, _ = findings.attributes.get(key, (None, 1))
        if numbers is not None:
            findings.slots.freeze(numbers, f"the code calculates with {key[0]}.{key[1]}")


def _freeze_shared_memory(model: nn.Module, findings: Findings) -> None:
    """Freeze parameters that share their memory: slicing would make separate copies."""
    owners: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model):
        if not tensor.is_meta and tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    shared = {name: names for names in owners.values() if len(names) > 1 for name in names}
    for (name, _), numbers in findings.slots.ranges().items():
        if name in shared:
            reason = f"{' and '.join(shared[name])} share their memory"
            findings.slots.freeze(numbers, reason)


def _follow(graph: fx.Graph, x: torch.Tensor, findings: Findings) -> None:
    bones, size = findings.model, "x".join(map(str, x.shape[1:]))
    try:
        with state_kept(bones):
            follow(graph, x, findings)
    except Exception as error:  # the user's code runs on shapes: anything may be raised
        without = "".join(f"; {reason}" for reason in list(findings.added.values())[:1])
        reason = f"with inputs of {size}, {told(error)}{without}"
        if x.is_floating_point():
            with suppress(UntraceableError):
                _follow(graph, x.long(), Findings(bones, findings.added))
                reason = (
                    f"its input of {size} must be integers; only a tensor of floats is supported"
                )
        raise untraceable(bones, reason) from error


def _described(bones: nn.Module, graph: fx.Graph) -> str:
    """Return the code's operations and constants as text that does not depend on the widths."""
    order = {node: number for number, node in enumerate(graph.nodes)}

    def named(value: Any) -> Any:
        return f"%{order[value]}" if isinstance(value, fx.Node) else getattr(value, "key", value)

    def arguments(node: fx.Node) -> Any:
        return fx.node.map_aggregate((node.args, node.kwargs), named)

    constants = constants_of(graph)

    def target(node: fx.Node) -> Any:
        if node not in constants:
            return node.target
        constant = getattr(bones, str(node.target))
        return constant.shape if constant.is_meta else (constant.dtype, constant.tolist())

    return str([(node.op, target(node), arguments(node)) for node in graph.nodes])


def _structure(findings: Findings) -> Structure:
    classes = findings.slots.classes()
    reasons = findings.slots.reasons()
    stays = torch.ones(int(classes.max()) + 1, dtype=torch.bool)
    for numbers in findings.units.values():  # slots that belong to no layer's unit stay
        stays[classes[numbers]] = False
    stays[list(reasons)] = True
    left = torch.where(stays[classes], STAYS, classes)
    ranges = findings.slots.ranges()
    equal: dict[bytes, torch.Tensor] = {}

    def row(numbers: torch.Tensor) -> torch.Tensor:
        entries = left[numbers]
        return equal.setdefault(entries.numpy().tobytes(), entries)

    rows = {key: row(numbers) for key, numbers in ranges.items()}
    units = {layer: row(numbers) for layer, numbers in findings.units.items()}
    follows = [
        Follows(*key, row(numbers), per)
        for key, (numbers, per) in findings.attributes.items()
        if numbers is not None
    ]
    dropouts = {module: row(numbers) for module, numbers in findings.dropouts.items()}
    frozen = {
        layer: reasons[int(classes[numbers[units[layer] == STAYS][0]])]
        for layer, numbers in findings.units.items()
        if (units[layer] == STAYS).any()
    }
    for name, module in findings.model.named_modules():
        if isinstance(module, LAYERS) and name not in units:
            keys = [(findings.names[id(tensor)], 0) for _, tensor in tensors_of(module)]
            seen = [c for key in keys if key in ranges for c in classes[ranges[key]].tolist()]
            uncalled = "its weight is used by other code, it is not called itself"
            known = filter(None, map(reasons.get, seen))
            frozen[name] = next(known, uncalled if seen else "it never runs")
    return Structure(rows, units, follows, dropouts, frozen, len(stays))
