"""The same questions answered by forward hooks, for models that cannot be traced: slower."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning_lab import ledger
from pruning_lab.errors import UserError
from pruning_lab.graph.cut import State, samples_elsewhere
from pruning_lab.graph.parts import graded, masked_units
from pruning_lab.graph.shares import Share
from pruning_lab.graph.trace import Graph


@dataclass(frozen=True)
class Entering:
    """What goes into a module, as a node beside the modules, whose outputs are."""

    module: nn.Module


Runs = dict[nn.Module | Entering, list[torch.Tensor]]
"""Of every site the activations, one for each time that it runs."""


class HookedGraph:
    """Sites are modules; every evaluation runs the whole model, every way back counts as whole.

    ``traced`` knows what follows a module, where the model can be traced, if not exactly.
    """

    def __init__(self, model: nn.Module, reason: UserError, traced: Graph | None = None) -> None:
        self._model = model
        self._reason = reason
        self._traced = traced

    def site(self, module: nn.Module, behind: bool = False) -> nn.Module:
        """The module itself, or ``behind`` it the last of the modules that follow directly.

        UserError where nothing tells what follows, or where that is no module.
        """
        if behind:
            last = None if self._traced is None else self._traced.module_behind(module)
            if last is not None:
                return last
            raise UserError(
                f"The site behind {type(module).__name__} cannot be found. {self._reason} For "
                "scores, run(module_behind) with the module whose output you want read."
            )
        if all(module is not part for part in self._model.modules()):
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        return module

    def sites(self, module: nn.Module, behind: bool = False) -> list[nn.Module]:
        """The same as a list: its runs cannot be told apart."""
        return [self.site(module, behind)]

    def entering(self, module: nn.Module) -> Entering:
        """What goes into ``module``."""
        return Entering(self.site(module))

    def norm_behind(self, module: nn.Module) -> nn.Module | None:
        """The BatchNorm that directly follows; a UserError where nothing tells what does."""
        if self._traced is None:
            raise UserError(
                f"The BatchNorm behind {type(module).__name__} cannot be found. {self._reason}"
            )
        return self._traced.norm_behind(module)

    def share(self, site: nn.Module) -> Share:
        """Which share of a pass ``site`` takes, as far as can be told."""
        return Share(1.0, 1.0)

    def share_back(self, sites: Sequence[nn.Module]) -> float:
        """Which share of a whole backward pass leads to ``sites``, as far as can be told."""
        return 1.0

    def cut(self, sites: Sequence[tuple[nn.Module, int]]) -> "HookedCut":
        return HookedCut(self._model, sites)

    def record(
        self, x: torch.Tensor, sites: Sequence[nn.Module | Entering]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The model's output for ``x`` and the activations at ``sites``, connected by autograd."""
        output, runs = recorded(self._model, x, sites)
        for site in sites:
            if not runs[site]:
                raise UserError(f"{site} never runs in a forward pass: it has no activation.")
            if len(runs[site]) > 1:
                raise UserError(f"{site} runs more than once: its activation is not one.")
        return output, [runs[site][0] for site in sites]


def recorded(
    model: nn.Module, x: torch.Tensor, sites: Sequence[nn.Module | Entering]
) -> tuple[Any, Runs]:
    """The model's output for ``x``, and what is at ``sites`` whenever they run."""
    runs: Runs = {site: [] for site in sites}
    taped = torch.is_grad_enabled()  # which the model may switch off for a while

    def keep(site: nn.Module | Entering, value: torch.Tensor) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            raise samples_elsewhere(value)
        runs[site].append(graded(value) if taped else value)
        return value.clone()  # an in-place operation behind must not overwrite the record

    def entered(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if not given:
            raise UserError(f"{module} is not called with a tensor as its first argument.")
        return (keep(Entering(module), given[0]), *given[1:])

    handles = [
        each.module.register_forward_pre_hook(entered)
        for each in sites
        if isinstance(each, Entering)
    ]
    modules = [each for each in sites if isinstance(each, nn.Module)]
    try:
        output = _hooked(model, x, modules, lambda module, _, value: keep(module, value))
    finally:
        for handle in handles:
            handle.remove()
    return output, runs


class HookedCut:
    """``before`` and ``after`` as of Cut, by whole passes of the model."""

    entry = None
    share_before = share_after = Share(1.0, 1.0)

    def __init__(self, model: nn.Module, sites: Sequence[tuple[nn.Module, int]]) -> None:
        self._model = model
        self._axes = dict(sites)

    def prepare(self, state: State, many: bool) -> None:
        """Nothing can be made faster: every evaluation is a pass of the model."""

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def before(self, x: torch.Tensor) -> State:
        sites = list(self._axes)
        _, activations = HookedGraph(self._model, UserError()).record(x, sites)
        return State(list(activations), [x], [True], True)

    def after(self, state: State, samples: torch.Tensor, keep: Sequence[torch.Tensor]) -> Any:
        masks = dict(zip(self._axes, keep, strict=True))

        def mask(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
            return masked_units(output, masks[module], self._axes[module])

        return _hooked(self._model, state.rows(samples)[0], list(self._axes), mask)


def _hooked(
    model: nn.Module, x: torch.Tensor, modules: list[nn.Module], hook: Callable[..., torch.Tensor]
) -> Any:
    ledger.forward(len(x))
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        return model(x)
    finally:
        for handle in handles:
            handle.remove()
