"""The interface of ``traced``, by forward hooks: slower, for models that cannot be traced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruning_lab.errors import UserError
from pruning_lab.partial_forward.cut import State, recordable
from pruning_lab.partial_forward.parts import Share, masked_units
from pruning_lab.partial_forward.traced import Graph
from pruning_lab.profiling import passes
from pruning_lab.runtime.inputs import Inputs, call, copied, length


@dataclass(frozen=True)
class Entering:
    """A site at the input of a module; a module itself as a site stands for its output."""

    module: nn.Module


Runs = dict[nn.Module | Entering, list[torch.Tensor]]
"""Site -> its activations, one for each time that it runs."""

WHOLE = Share(1.0, 1.0)


@dataclass(frozen=True)
class HookedGraph:
    """Graph with modules as sites; every evaluation is a pass through the whole model.

    ``traced`` is an inexact trace, if there is one: it tells which module follows another.
    """

    model: nn.Module
    reason: UserError
    traced: Graph | None = None

    def site(self, module: nn.Module, after_activation: bool = False) -> nn.Module:
        """Return the module itself, or with ``after_activation`` the last that follows directly.

        Raises UserError if it is unknown what follows, or if that is not a module.
        """
        if after_activation:
            last = None if self.traced is None else self.traced.module_after(module)
            if last is not None:
                return last
            raise UserError(
                f"The site after {type(module).__name__} cannot be found: call run() with the "
                "module whose output is to be read, without find_best_evaluation_module. "
                f"{self.reason}"
            )
        if all(module is not known for known in self.model.modules()):
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        return module

    def sites(self, module: nn.Module, after_activation: bool = False) -> list[nn.Module]:
        """Return the site in a list: several runs of it cannot be told apart."""
        return [self.site(module, after_activation)]

    def entering(self, module: nn.Module) -> Entering:
        """Return the site at the input of ``module``."""
        return Entering(self.site(module))

    def norm_after(self, module: nn.Module) -> nn.Module | None:
        """Return the BatchNorm that directly follows, or None; UserError if that is unknown."""
        if self.traced is None:
            raise UserError(
                f"The BatchNorm after {type(module).__name__} cannot be found. {self.reason}"
            )
        return self.traced.norm_after(module)

    def share(self, site: nn.Module) -> Share:
        """Return the share of a pass that ``site`` takes: unknown here, so all of it."""
        return WHOLE

    def share_back(self, sites: Sequence[nn.Module]) -> float:
        """Return the share of a backward pass that leads to ``sites``: unknown, so all of it."""
        return 1.0

    def cut(self, sites: Sequence[tuple[nn.Module, int]]) -> "HookedCut":
        return HookedCut(self.model, sites)

    def record(
        self, x: Inputs, sites: Sequence[nn.Module | Entering]
    ) -> tuple[Any, list[torch.Tensor]]:
        """Return the output for ``x`` and the activations at ``sites``, connected by autograd."""
        output, runs = recorded(self.model, x, sites)
        for site in sites:
            if not runs[site]:
                raise UserError(f"{site} never runs in a forward pass: it has no activation.")
            if len(runs[site]) > 1:
                raise UserError(f"{site} runs more than once: it has several activations.")
        return output, [runs[site][0] for site in sites]


def recorded(
    model: nn.Module, x: Inputs, sites: Sequence[nn.Module | Entering]
) -> tuple[Any, Runs]:
    """Return the model's output for ``x``, and the activations of every run of ``sites``."""
    runs: Runs = {site: [] for site in sites}
    taped = torch.is_grad_enabled()  # read here: the model may switch it off for a while

    def keep(site: nn.Module | Entering, value: torch.Tensor) -> torch.Tensor:
        runs[site].append(recordable(value, taped))
        return value.clone()  # a later in-place operation must not overwrite the record

    def entered(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if not given:
            raise UserError(f"{module} is not called with a tensor as its first argument.")
        return (keep(Entering(module), given[0]), *given[1:])

    hooks = [
        site.module.register_forward_pre_hook(entered)
        if isinstance(site, Entering)
        else site.register_forward_hook(lambda module, _, value: keep(module, value))
        for site in sites
    ]
    return _run(model, x, hooks), runs


class HookedCut:
    """``before`` and ``after`` of Cut, by passes through the whole model."""

    entry = None
    share_before = share_after = WHOLE

    def __init__(self, model: nn.Module, sites: Sequence[tuple[nn.Module, int]]) -> None:
        self._model = model
        self._axes = dict(sites)

    def prepare(self, state: State, many: bool) -> None:
        """Do nothing: every evaluation is a pass through the model as it is."""

    def close(self) -> None:
        """Do nothing: no modules are held."""

    @torch.no_grad()
    def before(self, x: Inputs) -> State:
        graph = HookedGraph(self._model, UserError())
        _, activations = graph.record(copied(x), list(self._axes))
        return State(list(activations), [x], [True], True)

    def after(self, state: State, samples: torch.Tensor, keep: Sequence[torch.Tensor]) -> Any:
        masks = dict(zip(self._axes, keep, strict=True))

        def mask(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
            return masked_units(output, masks[module], self._axes[module])

        hooks = [module.register_forward_hook(mask) for module in self._axes]
        return _run(self._model, state.rows(samples)[0], hooks)


def _run(model: nn.Module, x: Inputs, hooks: Sequence[RemovableHandle]) -> Any:
    """Return the model's output for ``x``; remove the hooks afterwards."""
    try:
        passes.forward(length(x))
        return call(model, x)
    finally:
        for hook in hooks:
            hook.remove()
