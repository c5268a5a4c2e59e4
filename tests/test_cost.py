"""FLOPs and parameters against counts by hand."""

import pytest
import torch
import torchvision
from torch import nn

from pruning_lab import cost


@pytest.mark.parametrize(
    ("layer", "input_size", "macs"),
    [
        (nn.Linear(7, 5), (7,), 7 * 5),
        (nn.Conv2d(3, 8, 3), (3, 10, 10), 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 10 * 10 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), (3, 10, 10), 5 * 5 * 8 * 3 * 9),
        (nn.Conv2d(6, 8, 3, groups=2), (6, 5, 5), 3 * 3 * 8 * 3 * 9),
        (nn.Conv1d(4, 6, 5), (4, 20), 16 * 6 * 4 * 5),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), (3, 5, 5), 5 * 5 * 3 * 8 * 4),
    ],
)
def test_flops_are_twice_the_multiply_accumulates(layer, input_size, macs):
    assert cost.flops(nn.Sequential(layer), input_size) == 2 * macs


def test_flops_by_module_add_up_and_name_the_layers():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))
    found = cost.flops_by_module(model, (1, 8, 8))
    assert found["0"] == 2 * 36 * 2 * 9
    assert found["3"] == 2 * 72 * 3
    assert sum(found.values()) == cost.flops(model, (1, 8, 8))


def test_attention_is_counted_although_its_fused_kernel_hides_it():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    # hand count: patches + 12 blocks of projections, attention products and MLP + head
    tokens, width = 197, 768
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2
    macs = 196 * width * 3 * 16 * 16 + 12 * block + width * 1000
    assert cost.flops(model, (3, 224, 224)) == 2 * macs


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_the_same_with_numbers_and_without(device):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.heads(x, x, x, need_weights=False)[0]

    macs = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8  # four projections, two products of 5 x 5 tokens
    assert cost.flops(Attention().to(device), (5, 8)) == 2 * macs


def test_counting_leaves_mode_and_statistics_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost.flops(model, (1, 5, 5))
    cost.latency_ms(model, (1, 5, 5), runs=1)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_parameters_count_a_shared_one_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert cost.parameters(model) == 9 + 3 + 3


def test_latency_is_a_time():
    assert cost.latency_ms(nn.Sequential(nn.Linear(2, 2)), (2,), runs=3) > 0


def test_flops_come_in_the_order_of_definition():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    names = list(cost.flops_by_module(model, (2,)))
    assert names == [*map(str, range(12)), ""]
