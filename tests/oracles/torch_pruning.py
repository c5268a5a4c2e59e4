"""What Torch-Pruning says of a layer's units, by the layer alone."""

import torch_pruning as tp


def importance(model, layer, x, scorer):
    """The scorer's numbers (units,) for a Linear or convolution of the model."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    linear = layer.weight.ndim == 2
    prune = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
    group = graph.get_pruning_group(layer, prune, idxs=list(range(len(layer.weight))))
    return scorer(group)
