"""The slow oracle of slicing for any architecture: the original in which removed units are 0.

Zeroed is everything that a removed unit owns: the columns through which it is read (which decides:
behind a sigmoid, 0 is not 0 any more), and its own rows, for a product of two activations has no
columns. Where a normalisation takes statistics over units, they run over the kept ones.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from pruning_lab.coupling.structure import Structure

NORMS = ("layer_norm", "group_norm", "rms_norm")


class Twin(nn.Module):
    """``model`` itself, changed in place (give it a copy), without the units of ``classes``."""

    def __init__(self, model: nn.Module, structure: Structure, classes: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self._masks: list[dict[int, torch.Tensor]] = [{}]
        self.zero(structure, classes)
        for name, masks in _masks(structure, classes).items():
            module = model.get_submodule(name)
            if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
                continue  # whole groups go: the others' statistics stay
            module.register_forward_pre_hook(lambda *_, masks=masks: self._masks.append(masks))
            module.register_forward_hook(lambda *_: self._masks.pop() and None)

    @torch.no_grad()
    def zero(self, structure: Structure, classes: torch.Tensor) -> None:
        """Put everything that belongs to removed units to 0."""
        for (name, dim), row in structure.tensors.items():
            gone = structure.marked(classes)[row].nonzero().flatten()
            if len(gone):
                tensor_of(self.model, name).index_fill_(dim, gone, 0)

    def forward(self, x):
        with _KeptStatistics(self._masks):
            return self.model(x)


class _KeptStatistics(TorchFunctionMode):
    """Normalisations of the module that runs take their statistics over its kept units."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name not in NORMS or not self.masks[-1]:
            return function(*args, **(kwargs or {}))
        return _normalised(name, self.masks[-1], *args, **(kwargs or {}))


def _normalised(name, masks, x, shape, weight=None, bias=None, eps=None, **_):
    """The statistics run over the kept entries; then the weights apply as ever."""
    first = 1 if name == "group_norm" else x.ndim - len(shape)
    dims, keep = list(range(first, x.ndim)), torch.ones(x.shape[first:], dtype=x.dtype)
    for dim, mask in masks.items():
        sizes = [1] * keep.ndim
        sizes[dim] = -1
        keep = keep * mask.view(sizes)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mean = 0 if name == "rms_norm" else (x * keep).sum(dims, keepdim=True) / keep.sum()
    variance = ((x - mean).square() * keep).sum(dims, keepdim=True) / keep.sum()
    x = (x - mean) / (variance + eps).sqrt()
    if name == "group_norm":
        weight, bias = (p if p is None else p.view(-1, *[1] * (x.ndim - 2)) for p in (weight, bias))
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _masks(structure, classes):
    """Module -> dimension of its normalised shape -> which entries are kept."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    for each in structure.follows:
        gone = structure.marked(classes)[each.classes]
        if each.name in ("normalized_shape", "num_channels") and gone.any():
            found.setdefault(each.module, {})[each.index or 0] = ~gone
    return found


def tensor_of(model, name):
    """A parameter or buffer by its qualified name."""
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


def kept_part(tensor, name, structure, classes):
    """What is left of a tensor of the twin's: to compare with the sliced one."""
    for dim in range(tensor.ndim):
        row = structure.tensors.get((name, dim))
        if row is not None:
            keep = (~structure.marked(classes)[row]).nonzero().flatten()
            tensor = tensor.index_select(dim, keep)
    return tensor


def random_plan(structure, share, seed):
    """A random ``share`` of the players of every group, at least one where two are left."""
    stream = torch.Generator().manual_seed(seed)
    plan = {}
    for name, group in structure.groups.items():
        count = min(len(group) - 1, max(1, round(share * len(group))))
        order = torch.randperm(len(group), generator=stream)
        plan[name] = _leaving_one(group, order, count)
    return plan


def _leaving_one(group, order, count):
    """The first ``count`` unit_groups of ``order`` that leave every layer a unit."""
    left = {layer: len(row) for layer, row in group.unit_groups.items()}
    chosen = []
    for unit_group in order.tolist():
        takes = {layer: int((row == unit_group).sum()) for layer, row in group.unit_groups.items()}
        if len(chosen) < count and all(left[layer] > n or n == 0 for layer, n in takes.items()):
            left = {layer: left[layer] - n for layer, n in takes.items()}
            chosen.append(unit_group)
    return chosen


def tensors_in(output):
    """All tensors of a model's output, in order: segmentation gives a dict, inception a tuple."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts if part is not None for tensor in tensors_in(part)]


def randomise_all(model, seed=0):
    """Random weights, biases, statistics, layer scales: at their defaults they hide mistakes."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (module._parameters | module._buffers).items():
                if tensor is None or not tensor.is_floating_point():
                    continue
                if name == "running_var" or (name == "weight" and tensor.ndim == 1):
                    tensor.uniform_(0.5, 1.5, generator=stream)
                elif name in ("weight", "in_proj_weight") and tensor.ndim > 1:
                    fan_in = tensor[0].numel() if isinstance(module, _ConvNd) else tensor.shape[-1]
                    tensor.normal_(0, 1.3 / fan_in**0.5, generator=stream)
                else:
                    tensor.normal_(0, 0.3, generator=stream)
    return model


@torch.no_grad()
def keep_in_range(model, x, seed=0):
    """Running statistics near those of ``x``: deep networks otherwise magnify rounding errors."""
    stream = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(x)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        shape, dtype = norm.running_var.shape, norm.running_var.dtype
        noise = torch.randn(shape, dtype=dtype, generator=stream)
        norm.running_var.clamp_(min=0.1)
        norm.running_mean += 0.3 * noise * norm.running_var.sqrt()
        norm.running_var *= 0.5 + torch.rand(shape, dtype=dtype, generator=stream)
    return model
