"""Data-parallel training: ranks compute shares of a batch and make the same optimizer step."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pruning_lab.runtime import distributed
from pruning_lab.runtime.inputs import length, move, select
from pruning_lab.tasks.task import Task


def loss_share(model: nn.Module, batch: Any, task: Task) -> torch.Tensor:
    """Return this rank's share of the mean loss of a batch; the ranks' shares add up to it."""
    samples, device = length(batch), next(model.parameters()).device
    share = move(select(batch, distributed.share(samples)), device)
    ranks = distributed.count()
    if ranks == 1:
        return task.loss(task.run(model, share), task.target(share))
    if length(share) == samples:  # fewer samples than ranks: every rank has all of them
        return task.loss(task.run(model, share), task.target(share)) / ranks
    with WholeBatchNorm():
        return task.loss(task.run(model, share), task.target(share), reduction="sum") / samples


@torch.no_grad()
def add_up_gradients(model: nn.Module) -> None:
    """Replace each parameter's gradient by its sum over the ranks; None if it is None on all."""
    if distributed.count() == 1:
        return
    trained = [param for param in model.parameters() if param.requires_grad]
    used = torch.tensor([param.grad is not None for param in trained]).to(trained[0])
    grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in trained]
    flat = torch.cat([used, *(grad.flatten() for grad in grads)])  # one message for all
    dist.all_reduce(flat)
    counts, *sums = flat.split([len(trained), *(grad.numel() for grad in grads)])
    for param, grad, summed, users in zip(trained, grads, sums, counts.tolist(), strict=True):
        param.grad = grad.copy_(summed.view_as(grad)) if users else None


class Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return Sum.forward(ctx, gradient)


class WholeBatchNorm(TorchFunctionMode):
    """While active, BatchNorm takes its statistics from the samples of all ranks.

    Modules are not changed: their calls of ``F.batch_norm`` are replaced.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``F.batch_norm`` over the shares of all ranks, which may differ in size."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    dims, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    count = x.new_tensor([x.numel() / x.shape[1]])
    summed, count = Sum.apply(torch.cat([x.sum(dims), count])).split([x.shape[1], 1])
    mean = summed / count
    centred = x - mean.view(shape)
    var = Sum.apply((centred**2).sum(dims)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    normal = centred * (var + eps).rsqrt().view(shape)
    normal = normal if weight is None else normal * weight.view(shape)
    return normal if bias is None else normal + bias.view(shape)
