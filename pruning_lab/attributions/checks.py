"""Whether a model can be scored, and whether what is run in its place computes the same."""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pruning_lab import ledger
from pruning_lab.errors import UserError
from pruning_lab.graph import Graph
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.graph.trace import untraceable
from pruning_lab.random_streams import seed_all, streams_kept


def check_samples_apart(model: nn.Module) -> None:
    """UserError for a model in which a sample's loss depends on the others of its batch."""
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            raise UserError(
                f"'{name}' takes its statistics from the batch (track_running_stats=False): a "
                "sample's loss depends on the others, so there are no scores by sample."
            )


@torch.no_grad()
def check_trace(model: nn.Module, graph: Graph, x: torch.Tensor) -> None:
    """UntraceableError unless the traced operations give the model's output for ``x``."""
    expected = _drawn_alike(model, x)
    try:
        found = _drawn_alike(graph.module, x)
    except Exception as error:  # the user's code: anything may be raised
        raise untraceable(model, error) from error
    if len(expected) != len(found) or not all(map(same, expected, found)):
        raise untraceable(
            model,
            "its operations, traced, give another output: a tensor is changed in place under two "
            "names, perhaps, or the code depends on the data",
        )


def _drawn_alike(run: nn.Module, x: torch.Tensor) -> list[Any]:
    """What is in the output for a copy of ``x``; some models draw at random even in eval mode."""
    ledger.forward(len(x))
    with streams_kept([x.device]):
        seed_all(0)
        return tree_leaves(run(x.clone()))


def same(one: Any, other: Any, scale: float | None = None) -> bool:
    """Whether two values are the same up to rounding.

    That goes with ``scale``, or else with the largest entry of a tensor.
    """
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one[one.isfinite()].abs()
    largest = scale or (finite.max().item() if len(finite) else 0.0)
    eps = torch.finfo(one.dtype).eps
    bound = largest * (1e-9 if one.dtype == torch.float64 else max(1e-3, 16 * eps))
    return torch.allclose(one, other, rtol=0, atol=bound, equal_nan=True)
