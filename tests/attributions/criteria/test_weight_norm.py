"""Sums of absolute weights, counted by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import WeightNormAttributionMetric


def norm(layer):
    model = nn.Sequential(layer)
    return WeightNormAttributionMetric(model, [], F.cross_entropy, "cpu").run(layer)


def filled(layer, weight):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if layer.bias is not None:
            layer.bias.fill_(100)
    return layer


def test_linear():
    assert norm(filled(nn.Linear(2, 2), [[1.0, -2.0], [0.0, 0.5]])).tolist() == [3, 0.5]


def test_convolution():
    weight = [[[[1.0, -1.0], [2.0, 0.0]]], [[[0.0, 0.0], [0.0, -3.0]]]]
    assert norm(filled(nn.Conv2d(1, 2, 2), weight)).tolist() == [4, 3]


def test_transposed_convolution_whose_weight_has_the_units_second():
    weight = [[[1.0], [2.0]], [[-3.0], [4.0]]]  # (inputs, units, 1)
    assert norm(filled(nn.ConvTranspose1d(2, 2, 1), weight)).tolist() == [4, 6]


def test_grouped_transposed_convolution():
    weight = [[[1.0], [2.0]], [[-3.0], [4.0]]]  # two groups of one input and two units
    layer = filled(nn.ConvTranspose1d(2, 4, 1, groups=2), weight)
    assert norm(layer).tolist() == [1, 2, 3, 4]


def test_batchnorm_has_one_weight_a_unit():
    layer = nn.BatchNorm1d(2)
    layer.weight = nn.Parameter(torch.tensor([-2.0, 0.5]))
    np.testing.assert_array_equal(norm(layer), [2, 0.5])


def test_data_is_not_needed_but_weights_are():
    with pytest.raises(ValueError, match="Flatten has no weights"):
        norm(nn.Flatten())
