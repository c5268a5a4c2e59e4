"""Random sequential networks for Hypothesis."""

from hypothesis import strategies as st
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.MaxPool1d, 2: nn.AvgPool2d, 3: nn.MaxPool3d}
NON_LINEARITIES = [nn.ReLU, nn.Sigmoid, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Softplus, nn.Identity]
SIZE = 4


@st.composite
def networks(draw):
    """(model, input size, indices of the layers whose units may go)."""
    dimensions, modules, prunable = draw(st.integers(0, 3)), [], []
    features = inputs = draw(st.integers(1, 4))
    size = (inputs, *[SIZE] * dimensions)
    if dimensions:
        features = _convolutions(draw, dimensions, inputs, modules, prunable)
        pooled = draw(st.booleans())
        if pooled:
            modules.append(POOLS[dimensions](2))
        modules.append(nn.Flatten())
        features *= (SIZE // 2 if pooled else SIZE) ** dimensions
    for _ in range(draw(st.integers(1, 2))):
        outputs = draw(st.integers(2, 6))
        prunable.append(len(modules))
        modules.append(nn.Linear(features, outputs, bias=draw(st.booleans())))
        _between(draw, nn.BatchNorm1d, outputs, modules)
        features = outputs
    return nn.Sequential(*modules, nn.Linear(features, 3)), size, prunable


def _convolutions(draw, dimensions, channels, modules, prunable):
    for _ in range(draw(st.integers(1, 2))):
        outputs = draw(st.integers(2, 5))
        kind = draw(st.sampled_from([CONVOLUTIONS, TRANSPOSED]))[dimensions]
        prunable.append(len(modules))
        modules.append(kind(channels, outputs, 3, padding=1, bias=draw(st.booleans())))
        _between(draw, NORMS[dimensions], outputs, modules)
        channels = outputs
    return channels


def _between(draw, norm, width, modules):
    if draw(st.booleans()):
        affine = draw(st.booleans())
        modules.append(norm(width, affine=affine, track_running_stats=draw(st.booleans())))
    modules.append(draw(st.sampled_from(NON_LINEARITIES))())
    if draw(st.booleans()):
        modules.append(nn.Dropout(0.0))


@st.composite
def cuts(draw, layer_widths):
    """For some layers some of their units, never all."""
    chosen = draw(st.lists(st.sampled_from(sorted(layer_widths)), min_size=1, unique=True))
    return {
        layer: sorted(
            draw(
                st.sets(
                    st.integers(0, layer_widths[layer] - 1),
                    min_size=1,
                    max_size=layer_widths[layer] - 1,
                )
            )
        )
        for layer in chosen
    }
