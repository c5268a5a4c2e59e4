"""Running a traced model in two parts: up to a site, and again and again behind it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pruning_lab.errors import UserError


@dataclass(frozen=True)
class State:
    """What the first part leaves for the second: the site's activation, and what else crosses."""

    activation: torch.Tensor
    live: dict[Any, Any]


class Cut:
    """A model split behind one site.

    ``before(x)`` runs what the site needs, once; ``after(state, activation)`` runs only the
    operations that depend on the site, with any activation in its place. Other values that cross
    the cut (a residual branch, say) are kept in the state.
    """

    def __init__(self, module: fx.GraphModule, site: fx.Node) -> None:
        self._module = module
        self._site = site
        nodes = list(module.graph.nodes)
        batched = _descendants([node for node in nodes if node.op == "placeholder"])
        behind = _descendants([site])
        self._behind = [node for node in nodes if node in behind and node is not site]
        if not self._behind or self._behind[-1].op != "output":
            raise UserError(f"The model's output does not depend on `{site}`: nothing to score.")
        inputs = {source for node in self._behind for source in node.all_input_nodes}
        self._live = [node for node in nodes if node in inputs and node not in behind]
        self._batched = batched
        needed = _ancestors([site, *self._live])
        self._before = [node for node in nodes if node in needed]

    def before(self, x: torch.Tensor) -> State:
        """Run the part of the model that the site, and what lies behind it, needs from ``x``."""
        env = _run(self._module, self._before, {}, x)
        return State(env[self._site], {node: env[node] for node in self._live})

    def stackable(self, state: State) -> bool:
        """Whether several copies of the batch may go through ``after`` at once.

        They may not when a number that was read off the batch's shape crosses the cut.
        """
        return all(
            isinstance(value, torch.Tensor) and len(value) == len(state.activation)
            for node, value in state.live.items()
            if node in self._batched
        )

    def after(self, state: State, activation: torch.Tensor) -> Any:
        """The model's output if the site carried ``activation``: one or more stacked batches."""
        copies = len(activation) // len(state.activation)
        env: dict[fx.Node, Any] = {self._site: activation}
        for node, value in state.live.items():
            if isinstance(value, torch.Tensor) and node in self._batched:
                # repeat() copies: an in-place operation behind the cut must not reach the state
                value = value.repeat(copies, *[1] * (value.ndim - 1))
            env[node] = value
        return _run(self._module, self._behind, env)[self._behind[-1]]


def record(
    module: fx.GraphModule, x: torch.Tensor, sites: list[fx.Node]
) -> tuple[Any, list[torch.Tensor]]:
    """The output for ``x`` and the activations at ``sites``, connected by autograd."""
    nodes = list(module.graph.nodes)
    env = _run(module, nodes, {}, x, recorded=(found := dict.fromkeys(sites)))
    activations = [found[site] for site in sites]
    return env[nodes[-1]], [value for value in activations if value is not None]


def _run(
    module: fx.GraphModule,
    nodes: list[fx.Node],
    env: dict[fx.Node, Any],
    x: torch.Tensor | None = None,
    recorded: dict[fx.Node, torch.Tensor | None] | None = None,
) -> dict[fx.Node, Any]:
    """Run ``nodes`` in order on the values in ``env``, which is filled and returned."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    interpreter.env = env
    interpreter.args_iter = iter(() if x is None else (x,))
    for node in nodes:
        value = interpreter.run_node(node)
        if recorded is not None and node in recorded:
            if torch.is_grad_enabled() and not value.requires_grad:
                value.requires_grad_()
            recorded[node] = value
            # a copy goes on, since an in-place ReLU behind the site would overwrite the record
            value = value.clone()
        env[node] = value
    return env


def _descendants(nodes: list[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda node: list(node.users))


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda node: node.all_input_nodes)


def _closure(nodes: list[fx.Node], neighbours: Any) -> set[fx.Node]:
    found, waiting = set(nodes), list(nodes)
    while waiting:
        for node in neighbours(waiting.pop()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found
