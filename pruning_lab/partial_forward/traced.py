"""A model's operations, traced once: the sites where units are read, and cuts at them."""

from collections.abc import Sequence

import torch
from torch import fx, nn

from pruning_lab.errors import UserError
from pruning_lab.graph.in_place import use_results
from pruning_lab.graph.kinds import LAYERS, BatchNorm, is_non_linearity, units_of
from pruning_lab.graph.parts import descendants
from pruning_lab.graph.refusals import UntraceableError
from pruning_lab.graph.tracing import constants_of, traced
from pruning_lab.partial_forward.cut import Cut, record
from pruning_lab.partial_forward.folding import Substitutes
from pruning_lab.partial_forward.shares import Share, share_of, weigh


def trace(model: nn.Module) -> "Graph":
    """Trace ``model`` with torch.fx; raise UntraceableError, with torch's reason, if that fails."""
    tracer, constants = traced(model)
    _make_anew(tracer.graph)
    use_results(tracer.graph, model)
    vars(model).update(constants)
    try:
        return Graph(model, tracer.graph, tracer.outputs, tracer.kept)
    finally:
        for name in constants:
            del vars(model)[name]


def _make_anew(graph: fx.Graph) -> None:
    """Copy the constants in every pass, since the code creates them anew in every call."""
    for node in constants_of(graph):
        with graph.inserting_after(node):
            new = graph.call_method("clone", (node,))
        node.replace_all_uses_with(new, lambda user, new=new: user is not new)  # type: ignore[misc]


class Graph:
    """The operations of a model in order of execution; shares the model's modules.

    Trace again after pruning, since a width written as a number in the code is traced as that
    number, and after a change of weights, since cuts share modules made from the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        outputs: dict[nn.Module, list[fx.Node]],
        kept: dict[nn.Module, str],
    ) -> None:
        self.module = fx.GraphModule(model, graph)
        self._names = {module: name for name, module in model.named_modules()}
        self._outputs = outputs
        self._kept = kept
        self._made: Substitutes = {}

    def site(self, module: nn.Module, after_activation: bool = False) -> fx.Node:
        """Return the node at which the activation of ``module``'s units is read.

        That is its own output, or with ``after_activation`` the output of the BatchNorm and
        non-linearity that directly follow. Raises UserError unless it runs exactly once.
        """
        runs = self.sites(module, after_activation)
        if len(runs) != 1:
            times = "never runs" if not runs else f"runs {len(runs)} times"
            raise UserError(
                f"'{self._names[module]}' {times} in one forward pass: there is no single place "
                "where its activation could be read."
            )
        return runs[0]

    def sites(self, module: nn.Module, after_activation: bool = False) -> list[fx.Node]:
        """Return the node of ``site`` for every run of the module."""
        if module not in self._names:
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        return [
            self._last(node) if after_activation else node for node in self._outputs.get(module, [])
        ]

    def check_runs(self, module: nn.Module, times: int) -> None:
        """Raise UntraceableError unless there is a node for each of a module's ``times`` runs."""
        if len(self.sites(module)) == times:
            return
        name = self._names[module]
        enclosing = (m for m in reversed(self._kept) if name.startswith(f"{self._names[m]}."))
        around = next(enclosing, None)
        why = "" if around is None else f", '{self._names[around]}': {self._kept[around]}"
        raise UntraceableError(f"'{name}' runs inside a module that is kept whole{why}.")

    def module_after(self, module: nn.Module) -> nn.Module | None:
        """Return the module whose output is read after ``module``; None if it is a function."""
        runs = self.sites(module, after_activation=True)
        one = len(runs) == 1 and runs[0].op == "call_module"
        return self._called(runs[0]) if one else None

    def entering(self, module: nn.Module) -> fx.Node:
        """Return the node that is the input of ``module``, which runs once.

        Raises UserError if the module is traced into, or if its first argument is not a tensor.
        """
        node = self.site(module)
        given = node.args[0] if node.args else node.kwargs.get("input")
        if node.op != "call_module" or not isinstance(given, fx.Node):
            raise UserError(
                f"The input of '{self._names[module]}' cannot be read: it has code of its own, "
                "or is not called with a tensor as its first argument."
            )
        return given

    def norm_after(self, module: nn.Module) -> nn.Module | None:
        """Return the BatchNorm that directly follows ``module`` (which runs once), or None.

        None also if its channels are not the module's units: it may normalise another dimension.
        """
        node = self.site(module)
        user = next(iter(node.users)) if len(node.users) == 1 else node
        norm = self._called(user) if user.op == "call_module" else None
        if user is node or not isinstance(norm, BatchNorm) or not isinstance(module, LAYERS):
            return None
        return norm if norm.num_features == units_of(module) else None

    def _last(self, node: fx.Node) -> fx.Node:
        """Return the last of the BatchNorms and non-linearities that directly follow ``node``."""
        while len(node.users) == 1:
            user = next(iter(node.users))
            op = self._called(user) if user.op == "call_module" else user.target
            if not (isinstance(op, BatchNorm) or is_non_linearity(op)):
                break
            node = user
        return node

    def weigh(self, x: torch.Tensor) -> None:
        """Measure the share of a pass that each operation takes; cuts made afterwards use it."""
        weigh(self.module, x)

    def share(self, site: fx.Node) -> Share:
        """Return the share of a pass that the operation at ``site`` takes; 0 before ``weigh``."""
        return share_of([site])

    def share_back(self, sites: Sequence[fx.Node]) -> float:
        """Return the share of a backward pass that leads to ``sites``; 0 before ``weigh``."""
        users = [user for site in sites for user in site.users]
        return share_of(descendants(users)).backward

    def cut(self, sites: Sequence[tuple[fx.Node, int]]) -> Cut:
        """Split the model after ``sites``, each with the dimension of its units."""
        return Cut(self.module, sites, self._made)

    def record(
        self, x: torch.Tensor, sites: list[fx.Node]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the output for ``x`` and the activations at ``sites``, connected by autograd."""
        return record(self.module, x, sites)

    def _called(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))
