"""A model's operations, traced once: the sites where units are read, and cuts at them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS, BatchNorm, is_non_linearity, units_of
from pruning_lab.graph.refusals import UntraceableError
from pruning_lab.graph.tracing import Tracer, constants_of, traced
from pruning_lab.partial_forward.cut import Cut, recordable
from pruning_lab.partial_forward.folding import Substitutes
from pruning_lab.partial_forward.parts import Share, called, descendants, share_of, weigh
from pruning_lab.profiling import passes


def trace(model: nn.Module) -> "Graph":
    """Trace ``model`` with torch.fx; raise UntraceableError, with torch's reason, if that fails."""
    tracer = traced(model)
    try:
        return Graph(model, tracer)
    finally:
        for name in tracer.constants:
            del vars(model)[name]


class Graph:
    """The operations of a model in order of execution; shares the model's modules.

    Trace again after pruning, since a width written as a number in the code is traced as that
    number, and after a change of weights, since cuts share modules made from the weights.
    """

    def __init__(self, model: nn.Module, tracer: Tracer) -> None:
        for node in constants_of(tracer.graph):  # the code creates them anew in every call
            with tracer.graph.inserting_after(node):
                new = tracer.graph.call_method("clone", (node,))
            node.replace_all_uses_with(new, lambda user, new=new: user is not new)  # type: ignore[misc]
        self.module = fx.GraphModule(model, tracer.graph)
        self._names = {module: name for name, module in model.named_modules()}
        self._outputs, self._kept = tracer.outputs, tracer.kept
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
        kept = [path for path in self._kept if name.startswith(f"{path}.")]
        why = f", '{kept[-1]}': {self._kept[kept[-1]]}" if kept else ""
        raise UntraceableError(f"'{name}' runs inside a module that is kept whole{why}.")

    def module_after(self, module: nn.Module) -> nn.Module | None:
        """Return the module whose output is read after ``module``; None if it is a function."""
        runs = self.sites(module, after_activation=True)
        last = called(self.module, runs[0]) if len(runs) == 1 else None
        return last if isinstance(last, nn.Module) else None

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
        norm = self._next(self.site(module))[1]
        fits = isinstance(norm, BatchNorm) and isinstance(module, LAYERS)
        return norm if fits and norm.num_features == units_of(module) else None

    def _last(self, node: fx.Node) -> fx.Node:
        """Return the last of the BatchNorms and non-linearities that directly follow ``node``."""
        user, op = self._next(node)
        follows = isinstance(op, BatchNorm) or is_non_linearity(op)
        return self._last(user) if follows else node

    def _next(self, node: fx.Node) -> tuple[fx.Node, Any]:
        """Return the only node that reads ``node``, and what it calls; None if there are others."""
        user = next(iter(node.users), node)
        return user, called(self.module, user) if len(node.users) == 1 else None

    def weigh(self, x: torch.Tensor) -> None:
        """Measure the share of a pass that each operation takes; cuts made afterwards use it."""
        weigh(self.module, x)

    def share(self, site: fx.Node) -> Share:
        """Return the share of a pass that the operation at ``site`` takes; 0 before ``weigh``."""
        return share_of([site])

    def share_back(self, sites: Sequence[fx.Node]) -> float:
        """Return the share of a backward pass that leads to ``sites``; 0 before ``weigh``."""
        return share_of(descendants(user for site in sites for user in site.users)).backward

    def cut(self, sites: Sequence[tuple[fx.Node, int]]) -> Cut:
        """Split the model after ``sites``, each with the dimension of its units."""
        return Cut(self.module, sites, self._made)

    def record(
        self, x: torch.Tensor, sites: list[fx.Node]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the output for ``x`` and the activations at ``sites``, connected by autograd."""
        passes.forward(len(x))
        wanted, recorded = set(sites), {}
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        interpreter.env, interpreter.args_iter = {}, iter((x,))
        for node in self.module.graph.nodes:
            value = interpreter.run_node(node)
            if node in wanted:
                recorded[node] = recordable(value, graded=torch.is_grad_enabled())
                value = value.clone()  # an in-place ReLU may follow
            interpreter.env[node] = value
        return value, [recorded[site] for site in sites]
