"""Which units of a model go together, which cannot go, and everything that must follow them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pruning_lab.graph.added_code import added_code
from pruning_lab.graph.as_run import check_as_run
from pruning_lab.graph.call import Findings
from pruning_lab.graph.follow import follow, skeleton
from pruning_lab.graph.kinds import LAYERS
from pruning_lab.graph.refusals import UntraceableError, check_initialised, told, untraceable
from pruning_lab.graph.sizes import add_sizes
from pruning_lab.graph.slots import components
from pruning_lab.graph.trace import operations
from pruning_lab.graph.widths import read_unnoticed, watch
from pruning_lab.modes import state_kept

STAYS = -1
"""The class of what cannot go."""


@dataclass(frozen=True)
class Group:
    """Units of one or more layers that only go together.

    A player is what goes at once: usually one unit of each layer. ``players[layer]`` says for each
    unit of a layer which player it belongs to, or -1 when it cannot go. A group is named after the
    first of its layers.
    """

    name: str
    players: dict[str, torch.Tensor]
    classes: torch.Tensor  # of each player

    def __len__(self) -> int:
        return len(self.classes)

    def covered_by(self, layers: Collection[str]) -> bool:
        """Whether every player has a unit in one of these layers."""
        rows = [row for layer, row in self.players.items() if layer in layers]
        seen = torch.cat(rows).unique() if rows else torch.empty(0)
        return int((seen >= 0).sum()) == len(self)


@dataclass(frozen=True)
class Follows:
    """``module.name`` (at ``index`` if it is a tuple) is the number of ``classes`` over ``per``."""

    module: str
    name: str
    index: int | None
    classes: torch.Tensor
    per: int


@dataclass(frozen=True)
class Structure:
    """How the units of a model hang together.

    Units that only go together have one class, a whole number; STAYS is the class of what cannot
    go. ``tensors`` has the classes along (parameter or buffer, dimension), ``units`` those of the
    units of every layer, ``dropouts`` those that a Dropout sees; ``frozen`` says why units of a
    layer, some or all, cannot go. Equal rows are one tensor: what is worked out for one serves
    all. Nothing here refers to the model's own tensors: a structure fits every copy of the model.
    """

    tensors: dict[tuple[str, int], torch.Tensor]
    units: dict[str, torch.Tensor]
    follows: list[Follows]
    dropouts: dict[str, torch.Tensor]
    frozen: dict[str, str]
    count: int  # of classes

    def __str__(self) -> str:
        """The groups with their layers, then what cannot go."""
        lines = [
            f"{name}: {len(group)} x {', '.join(group.players)}"
            for name, group in self.groups.items()
        ]
        stays = [f"  {layer}: {reason}" for layer, reason in self.frozen.items()]
        return "\n".join([*lines, "Units that cannot go:", *stays])

    def marked(self, classes: torch.Tensor) -> torch.Tensor:
        """``marked(classes)[row]`` says which of a row's entries are of these classes."""
        marks = torch.zeros(self.count + 1, dtype=torch.bool)  # the last is that of STAYS, -1
        marks[classes] = True
        return marks

    def without(self, classes: torch.Tensor) -> "Structure":
        """The structure of the model when these classes are gone."""
        stays = ~self.marked(classes)
        left = cache(lambda row: row[stays[row]])
        return replace(
            self,
            tensors={key: left(row) for key, row in self.tensors.items()},
            units={layer: left(row) for layer, row in self.units.items()},
            follows=[replace(each, classes=left(each.classes)) for each in self.follows],
            dropouts={module: left(row) for module, row in self.dropouts.items()},
        )

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups by name, in order of execution of their first layers."""
        layers = [layer for layer, row in self.units.items() if (row != STAYS).any()]
        rows = [self.units[layer] for layer in layers]
        owner = [np.full(len(row), k) for k, row in enumerate(rows)]
        found: dict[int, list[str]] = {}
        for layer, part in zip(layers, _components(owner, rows), strict=True):
            found.setdefault(part, []).append(layer)
        return {members[0]: self._group(members[0], members) for members in found.values()}

    def _group(self, name: str, layers: list[str]) -> Group:
        rows = torch.cat([self.units[layer] for layer in layers]).tolist()
        number = {each: k for k, each in enumerate(dict.fromkeys(c for c in rows if c != STAYS))}
        players = {
            layer: torch.tensor([number.get(each, STAYS) for each in self.units[layer].tolist()])
            for layer in layers
        }
        return Group(name, players, torch.tensor(list(number)))


def _components(owner: list[np.ndarray], rows: list[torch.Tensor]) -> list[int]:
    """For each layer the number of its group: layers that share a class have the same."""
    if not rows:
        return []
    count = len(rows)
    classes = np.concatenate([row.numpy() for row in rows])
    moves = classes != STAYS
    size = int(count + classes.max() + 1)
    return components(np.concatenate(owner)[moves], count + classes[moves], size)[:count].tolist()


def find_structure(model: nn.Module, input_size: tuple[int, ...]) -> Structure:
    """Trace ``model`` in both modes and follow its units through every operation.

    The model takes one tensor of floats; ``input_size`` is without the batch dimension. Nothing of
    the model is read but shapes, nothing is run, and nothing changes. Raises UntraceableError when
    the model cannot be traced or does not take inputs of this size.
    """
    check_initialised(model)
    added = added_code(model)
    if "" in added:  # of the model as a whole
        layers = (name for name, each in model.named_modules() if isinstance(each, LAYERS))
        return Structure({}, {}, [], {}, dict.fromkeys(layers, added[""]), 0)
    findings, bones = Findings(), skeleton(model)
    widths = watch(bones, lambda key: findings.read.add(key))
    whole = {bones.get_submodule(name) for name in added}

    def traced() -> tuple[fx.Graph, str]:
        graph = operations(bones, whole)
        return graph, _described(bones, graph)

    dtype = next((each.dtype for each in model.parameters()), torch.float32)
    x = torch.empty(2, *input_size, dtype=dtype, device="meta")
    seen = set()
    for training in (False, True):  # heads that exist only in training count, too
        bones.train(training)
        graph, code = traced()
        if new := code not in seen:
            findings.read |= read_unnoticed(widths, code, lambda: traced()[1])
        read = set(findings.read)
        if new:
            _follow(bones, graph, x, findings, added)
            read |= findings.passed
            seen.add(code)
        check_as_run(bones, graph, x)
        findings.read = read  # what torch's own modules have read since is theirs
    names = {id(tensor): name for name, tensor in _tensors(bones)}
    _freeze_added(bones, findings, names, added)
    add_sizes(bones, findings, names)
    _freeze_read_widths(findings)
    _freeze_shared_memory(model, findings)
    return _structure(bones, findings)


def _freeze_added(
    bones: nn.Module, findings: Findings, names: Mapping[int, str], added: Mapping[str, str]
) -> None:
    """Code beside a module's forward may read all that the module holds."""
    for path, reason in added.items():
        for _, tensor in _tensors(bones.get_submodule(path)):
            for dim, size in enumerate(tensor.shape):
                findings.slots.freeze(findings.slots.of(names[id(tensor)], dim, size), reason)


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _freeze_read_widths(findings: Findings) -> None:
    """A width that the code calculates with would change the result with the units."""
    for key in findings.read:
        attribute = findings.attributes.get(key)
        if attribute is not None and attribute.numbers is not None:
            reason = f"the code calculates with {attribute.module}.{attribute.name}"
            findings.slots.freeze(attribute.numbers, reason)


def _freeze_shared_memory(model: nn.Module, findings: Findings) -> None:
    """Two parameters that are views of the same numbers would part when they are sliced."""
    owners: dict[int, list[str]] = {}
    for name, tensor in _tensors(model):
        if not tensor.is_meta and tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    shared = {name: names for names in owners.values() if len(names) > 1 for name in names}
    for (name, _), numbers in findings.slots.ranges().items():
        if name in shared:
            reason = f"{' and '.join(shared[name])} share their memory"
            findings.slots.freeze(numbers, reason)


def _follow(
    bones: nn.Module,
    graph: fx.Graph,
    x: torch.Tensor,
    findings: Findings,
    added: Mapping[str, str],
) -> None:
    size = "x".join(map(str, x.shape[1:]))
    try:
        with state_kept(bones):
            follow(bones, graph, x, findings, added)
    except Exception as error:  # the user's code runs on shapes: anything may be raised
        if x.is_floating_point() and _followed(bones, graph, x.long(), added):
            raise untraceable(
                bones, f"its input of {size} is whole numbers; one tensor of floats can be followed"
            ) from error
        without = "".join(f"; {reason}" for reason in list(added.values())[:1])
        raise untraceable(bones, f"with inputs of {size}, {told(error)}{without}") from error


def _followed(bones: nn.Module, graph: fx.Graph, x: torch.Tensor, added: Mapping[str, str]) -> bool:
    try:
        _follow(bones, graph, x, Findings(), added)
    except UntraceableError:
        return False
    return True


def _described(bones: nn.Module, graph: fx.Graph) -> str:
    """The operations and the constants of the code as text, whatever the widths are."""
    order = {node: number for number, node in enumerate(graph.nodes)}

    def named(each: Any) -> Any:
        return f"%{order[each]}" if isinstance(each, fx.Node) else getattr(each, "key", each)

    def target(node: fx.Node) -> Any:
        if node.op != "get_attr" or not str(node.target).startswith("_tensor_constant"):
            return node.target
        constant = getattr(bones, str(node.target))
        return constant.shape if constant.is_meta else (constant.dtype, constant.tolist())

    arguments = fx.node.map_aggregate
    return str(
        [
            (node.op, target(node), arguments(node.args, named), arguments(node.kwargs, named))
            for node in graph.nodes
        ]
    )


def _structure(model: nn.Module, findings: Findings) -> Structure:
    classes = findings.slots.classes()
    reasons = findings.slots.reasons(classes)
    left = classes.clone()
    stays = torch.ones(int(classes.max()) + 1, dtype=torch.bool)
    for numbers in findings.units.values():  # what belongs to no unit of a layer stays, too
        stays[classes[numbers]] = False
    stays[list(reasons)] = True
    left[stays[classes]] = STAYS
    ranges = findings.slots.ranges()
    equal: dict[bytes, torch.Tensor] = {}

    def row(numbers: torch.Tensor) -> torch.Tensor:
        found = left[numbers]
        return equal.setdefault(found.numpy().tobytes(), found)

    rows = {key: row(numbers) for key, numbers in ranges.items()}
    units = {layer: row(numbers) for layer, numbers in findings.units.items()}
    follows = [
        Follows(each.module, each.name, each.index, row(each.numbers), each.per)
        for each in findings.attributes.values()
        if each.numbers is not None
    ]
    dropouts = {module: row(numbers) for module, numbers in findings.dropouts.items()}

    def reason(numbers: torch.Tensor) -> str:
        return reasons[int(classes[numbers[left[numbers] == STAYS][0]])]

    frozen = {
        layer: reason(numbers)
        for layer, numbers in findings.units.items()
        if (units[layer] == STAYS).any()
    }
    names = {id(tensor): name for name, tensor in _tensors(model)}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and name not in units:
            own = [(names[id(tensor)], 0) for _, tensor in _tensors(module)]
            seen = [each for key in own if key in ranges for each in classes[ranges[key]].tolist()]
            other = "its weight is used by other code, it is not called itself"
            known = filter(None, map(reasons.get, seen))
            frozen[name] = next(known, other if seen else "it never runs")
    return Structure(rows, units, follows, dropouts, frozen, len(stays))
