"""Attributes of modules that are the size of a tensor: whoever slices it, they follow."""

from collections.abc import Mapping

from torch import nn

from pruning_lab.graph.call import Attribute, Findings
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
"""Attribute, parameter or buffer, dimension; a shape begins at that dimension. First match."""


def add_sizes(bones: nn.Module, findings: Findings, names: Mapping[int, str]) -> None:
    """Let the attributes follow that no rule has found; ``names`` are those of tensors by id.

    A rule sees a call of torch's; the forward of a subclass may compute the same in another way.
    """
    ranges = findings.slots.ranges()
    for path, module in bones.named_modules():
        kind = next((kind for kind in SIZES if isinstance(module, kind)), None)
        for attribute, tensor, dim in SIZES[kind] if kind else ():
            value = vars(module).get(attribute)
            shape = value if isinstance(value, tuple) else (value,)
            own = (module._parameters | module._buffers).get(tensor)
            for place, size in enumerate(shape):
                numbers = ranges.get((names.get(id(own), ""), dim + place))
                if numbers is None or not isinstance(size, int):
                    continue
                if not int.__eq__(size, len(numbers)):  # a Width does not notice it
                    continue
                index = place if isinstance(value, tuple) else None
                found = Attribute(path, attribute, index, numbers, 1)
                findings.attributes.setdefault((path, attribute, index), found)
