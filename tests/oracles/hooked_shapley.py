"""Shapley values of any model by forward hooks alone: one sample, one mask at a time."""

import numpy as np
import torch


def masked_loss(model, site, keep, x, target, loss):
    """The loss of one sample when the output of ``site`` keeps these units (dimension 1) alone."""

    def mask(module, args, output):
        return output * keep.view(1, -1, *[1] * (output.ndim - 2))

    handle = site.register_forward_hook(mask)
    try:
        return loss(model(x.clone()), target).item()
    finally:
        handle.remove()


@torch.no_grad()
def shapley(model, site, units, data, loss, orders):
    """Per-sample values (samples, units) of the units at the output of ``site``."""
    rows = []
    for batch, targets in data:
        for x, target in zip(batch.split(1), targets.split(1), strict=True):
            rises = np.zeros(units)
            for order in orders:
                keep = torch.ones(units, dtype=x.dtype)
                before = masked_loss(model, site, keep, x, target, loss)
                for unit in order:
                    keep[unit] = 0
                    after = masked_loss(model, site, keep, x, target, loss)
                    rises[unit] += (after - before) / len(orders)
                    before = after
            rows.append(rises)
    return np.array(rows)
