"""Attributes of modules that equal a size of a tensor, and shrink when it is sliced."""

from collections.abc import Mapping

from torch import nn

from pruning_lab.coupling.call import Attribute, Findings
from pruning_lab.graph.kinds import Convolution, Norm, TransposedConvolution

SIZES: dict[type[nn.Module] | tuple[type[nn.Module], ...], list[tuple[str, str, int]]] = {
    nn.Linear: [("in_features", "weight", 1), ("out_features", "weight", 0)],
    TransposedConvolution: [("in_channels", "weight", 0), ("out_channels", "weight", 1)],
    Convolution: [("in_channels", "weight", 1), ("out_channels", "weight", 0)],
    Norm: [("num_features", name, 0) for name in ("weight", "bias", "running_mean")],
    nn.Embedding: [("embedding_dim", "weight", 1)],
    nn.GroupNorm: [("num_channels", "weight", 0)],
    (nn.LayerNorm, nn.RMSNorm): [("normalized_shape", "weight", 0)],
    nn.PReLU: [("num_parameters", "weight", 0)],
}
"""Attribute, tensor, dimension; a shape begins at that dimension. The first match applies."""


def add_sizes(bones: nn.Module, findings: Findings, names: Mapping[int, str]) -> None:
    """Add the attributes that no rule has recorded; ``names`` maps a tensor's id to its name.

    Rules only see calls of torch; a subclass's forward may compute the same in another way.
    """
    ranges = findings.slots.ranges()
    for path, module in bones.named_modules():
        kind = next((kind for kind in SIZES if isinstance(module, kind)), None)
        for attribute, tensor, dim in SIZES[kind] if kind else ():
            value = vars(module).get(attribute)
            shape = value if isinstance(value, tuple) else (value,)
            stored = (module._parameters | module._buffers).get(tensor)
            for position, size in enumerate(shape):
                numbers = ranges.get((names.get(id(stored), ""), dim + position))
                if numbers is None or not isinstance(size, int):
                    continue
                if not int.__eq__(size, len(numbers)):  # does not count as a read of a Width
                    continue
                index = position if isinstance(value, tuple) else None
                added = Attribute(path, attribute, index, numbers, 1)
                findings.attributes.setdefault((path, attribute, index), added)
