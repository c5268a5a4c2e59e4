"""One sample at a time: its activation at a layer, and its own loss's gradient there."""

import torch
import torch.nn.functional as F


def activation_and_gradient(model, index, x, y):
    """Per-sample activations and gradients at the output of ``model[index]``, by a plain loop."""
    activations, gradients = [], []
    for sample, target in zip(x, y, strict=True):
        activation = model[: index + 1](sample[None]).detach().requires_grad_()
        loss = F.cross_entropy(model[index + 1 :](activation), target[None])
        (gradient,) = torch.autograd.grad(loss, activation)
        activations.append(activation.detach()[0])
        gradients.append(gradient[0])
    return torch.stack(activations), torch.stack(gradients)
