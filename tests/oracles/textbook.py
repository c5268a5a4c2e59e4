"""The original algorithm as a textbook has it: one layer and one criterion at a time.

For models that are a chain of modules. Every criterion runs the data through the whole model and
back through all of it; Shapley values start from the activation at the site, put one unit after
another to 0, and share their orders of removal between all samples.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FORMULAS = {
    "apoz": lambda activation, gradient: (activation > 0).double().mean(2),
    "sensitivity": lambda activation, gradient: gradient.abs().sum(2),
    "taylor": lambda activation, gradient: (activation * gradient).sum(2).abs(),
    "taylor_signed": lambda activation, gradient: -(activation * gradient).sum(2),
}


def chain(model):
    """The modules without children, in the order in which they stand: that of execution."""
    return [module for module in model.modules() if not list(module.children())]


def sites(modules):
    """Layer -> the place of the module behind whose output its units are read."""
    found = {}
    for index, module in enumerate(modules[:-1]):
        if isinstance(module, nn.Conv2d | nn.Linear):
            place = index
            while isinstance(modules[place + 1], nn.BatchNorm2d | nn.ReLU):
                place += 1
            found[module] = place
    return found


def score(model, site, batches, criterion):
    """Per-sample scores (samples, units) of one of FORMULAS at the output of ``site``."""
    seen, found = [], []
    handle = site.register_forward_hook(lambda *call: seen.append(call[2]))
    for x, target in batches:
        seen.clear()
        loss = F.cross_entropy(model(x), target, reduction="sum")
        seen[0].retain_grad()
        loss.backward()
        activation, gradient = (
            each.detach().reshape(*seen[0].shape[:2], -1) for each in (seen[0], seen[0].grad)
        )
        found.append(FORMULAS[criterion](activation, gradient).cpu().numpy())
        model.zero_grad()
    handle.remove()
    return np.concatenate(found)


@torch.no_grad()
def shapley(modules, place, batches, orders):
    """Per-sample Shapley values (samples, units) behind ``modules[place]``, over given orders."""
    prefix, suffix = nn.Sequential(*modules[: place + 1]), nn.Sequential(*modules[place + 1 :])
    found = []
    for x, target in batches:
        activation = prefix(x)
        rises = torch.zeros(activation.shape[:2], dtype=torch.float64, device=x.device)
        for order in orders:
            masked = activation.clone()
            before = F.cross_entropy(suffix(masked), target, reduction="none")
            for unit in order:
                masked[:, unit] = 0
                after = F.cross_entropy(suffix(masked), target, reduction="none")
                rises[:, unit] += (after - before).double()
                before = after
        found.append((rises / len(orders)).cpu().numpy())
    return np.concatenate(found)
