"""A step of training on all ranks: each has a share of the batch, all make the same step."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pruning_lab import ranks


def loss_share(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """This rank's share of the mean cross-entropy of a batch: the ranks' shares add up to it."""
    device, own = next(model.parameters()).device, ranks.share(len(x))
    part, wanted = x[own].to(device), target[own].to(device)
    if ranks.count() == 1:
        return F.cross_entropy(model(part), wanted)
    if len(part) == len(x):  # fewer samples than ranks: every rank has all of them
        return F.cross_entropy(model(part), wanted) / ranks.count()
    with WholeBatchNorm():
        return F.cross_entropy(model(part), wanted, reduction="sum") / len(x)


@torch.no_grad()
def add_up_gradients(model: nn.Module) -> None:
    """Every parameter's gradient becomes the sum over the ranks; None where it is on all."""
    if ranks.count() == 1:
        return
    wanted = [each for each in model.parameters() if each.requires_grad]
    used = torch.tensor([each.grad is not None for each in wanted]).to(wanted[0])
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in wanted]
    flat = torch.cat([used, *(part.flatten() for part in parts)])  # one message for all
    dist.all_reduce(flat)
    counts, *sums = flat.split([len(wanted), *(part.numel() for part in parts)])
    for each, part, summed, users in zip(wanted, parts, sums, counts.tolist(), strict=True):
        each.grad = part.copy_(summed.view_as(part)) if users else None


class Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; so is its gradient, as what each loses by it."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return Sum.forward(ctx, gradient)


class WholeBatchNorm(TorchFunctionMode):
    """While it is active BatchNorm takes its statistics from the samples of all ranks.

    Modules stay as they are: what they hand to ``F.batch_norm`` is normalised otherwise.
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
    """``F.batch_norm`` of the batch that the ranks have shares of; the shares may be uneven."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    others, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    count = x.new_tensor([x.numel() / x.shape[1]])
    summed, count = Sum.apply(torch.cat([x.sum(others), count])).split([x.shape[1], 1])
    mean = summed / count
    centred = x - mean.view(shape)
    var = Sum.apply((centred**2).sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    normal = centred * (var + eps).rsqrt().view(shape)
    normal = normal if weight is None else normal * weight.view(shape)
    return normal if bias is None else normal + bias.view(shape)
