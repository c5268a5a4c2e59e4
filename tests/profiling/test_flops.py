"""FLOPs and parameters against counts by hand."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning_lab.coupling.structure import find_structure
from pruning_lab.graph.added_code import skeleton
from pruning_lab.profiling.flops import (
    FORMULAS,
    copy_to_count,
    count_flops,
    count_parameters,
    counting,
    flops_by_module,
    latency_ms,
)
from pruning_lab.pruner.trial import Trial


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
    assert count_flops(nn.Sequential(layer), input_size) == 2 * macs


def test_flops_by_module_add_up_and_name_the_layers():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))
    found = flops_by_module(model, (1, 8, 8))
    assert found["0"] == 2 * 36 * 2 * 9
    assert found["3"] == 2 * 72 * 3
    assert sum(found.values()) == count_flops(model, (1, 8, 8))


def test_attention_is_counted_although_its_fused_kernel_hides_it():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    # hand count: patches + 12 blocks of projections, attention products and MLP + head
    tokens, width = 197, 768
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2
    macs = 196 * width * 3 * 16 * 16 + 12 * block + width * 1000
    assert count_flops(model, (3, 224, 224)) == 2 * macs


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_the_same_with_numbers_and_without(device):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.heads(x, x, x, need_weights=False)[0]

    macs = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8  # four projections, two products of 5 x 5 tokens
    assert count_flops(Attention().to(device), (5, 8)) == 2 * macs


def test_counting_leaves_mode_and_statistics_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_flops(model, (1, 5, 5))
    latency_ms(model, (1, 5, 5), runs=1)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_parameters_count_a_shared_one_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 9 + 3 + 3


def test_latency_is_a_time():
    assert latency_ms(nn.Sequential(nn.Linear(2, 2)), (2,), runs=3) > 0


def test_flops_come_in_the_order_of_definition():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    names = list(flops_by_module(model, (2,)))
    assert names == [*map(str, range(12)), ""]


class Reader(nn.Module):
    """A recurrent layer and what is read off its last step."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def recurrent(kind, gates, layers=1, both=1, projected=0, steps=7, inputs=5, hidden=6):
    settings = {"proj_size": projected} if projected else {}
    layer = kind(
        inputs, hidden, layers, batch_first=True, bidirectional=both == 2, dropout=0.1, **settings
    )
    state = projected or hidden
    macs = 0
    for depth in range(layers):
        read = inputs if depth == 0 else both * state
        macs += both * steps * (gates * hidden * (read + state) + hidden * projected)
    return Reader(layer), (steps, inputs), 2 * macs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(1, 1, 0), (2, 2, 0), (2, 2, 3)])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count_by_hand_on_every_device_and_in_every_kernel(kind, gates, shape):
    if shape[2] and kind is not nn.LSTM:
        return
    model, size, flops = recurrent(kind, gates, *shape)
    assert count_flops(model, size) == count_flops(skeleton(model), size) == flops
    for real in (model, model.double()):
        with torch.no_grad(), counting() as counter:
            real.eval()(torch.zeros(1, *size, dtype=next(real.parameters()).dtype))
        assert counter.get_total_flops() == flops


class Products(nn.Module):
    """What torch's counter leaves out."""

    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.ones(5, 12)), nn.Parameter(torch.ones(12))
        self.pair = nn.Bilinear(3, 4, 7)

    def forward(self, x):
        row = x.flatten()
        many = torch.addmv(self.matrix[:, 0], self.matrix, row).sum() + row @ self.vector
        many = many + torch.vdot(row, self.vector)
        many = many + torch.addbmm(row[:2, None], row.view(3, 2, 2), row.view(3, 2, 2)).sum()
        q = x.view(1, 1, 12, 1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            attended = F.scaled_dot_product_attention(q, q, q).sum()
        return self.pair(row[None, :3], row[None, 3:7]) + many + attended


def test_products_with_vectors_and_bilinear_layers_count():
    macs = 12 * 5 + 12 + 12 + 3 * 2 * 2 * 2 + 3 * 4 * 7 + 2 * 12 * 12
    assert count_flops(Products(), (12,)) == 2 * macs
    with counting() as counter, torch.no_grad():  # with numbers, in the kernel of the CPU
        Products()(torch.zeros(1, 12))
    assert counter.get_total_flops() == 2 * macs


def test_a_model_without_products_costs_none():
    assert flops_by_module(nn.Sequential(nn.BatchNorm1d(3)), (3,)) == {"": 0}


def test_the_kernel_of_cuda_counts_its_matrices_once_a_step():
    count = FORMULAS[torch.ops.aten._cudnn_rnn]
    _, (steps, inputs), flops = recurrent(nn.LSTM, 4, 2, 2)
    shapes = [weight.shape for weight in nn.LSTM(5, 6, 2, bidirectional=True).parameters()]
    assert count((steps, 1, inputs), shapes, 4, None, out_val=None) == flops
    assert count((steps, inputs), shapes, 4, None) == flops  # packed


def test_code_that_needs_numbers_or_makes_tensors_is_counted_the_same():
    class Bounded(nn.Module):
        def __init__(self, read):
            super().__init__()
            self.layer, self.read = nn.Linear(4, 4), read
            self.table = [torch.ones(4)]

        def forward(self, x):
            shift = torch.arange(4) + self.table[0]
            return self.layer(x + shift) * (x.sum().item() if self.read else 1)

    for read in (False, True):
        assert count_flops(Bounded(read), (4,)) == 2 * 16
        planned = copy_to_count(Bounded(read), (4,))
        assert count_flops(planned, (4,)) == 2 * 16


def test_what_a_hook_computes_is_counted_in_the_model_and_in_its_plans():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 2))
    model[3].register_forward_hook(lambda module, args, output: output @ torch.ones(2, 7))
    assert count_flops(model, (4,)) == 2 * (24 + 30 + 15 + 6 + 14)
    planned = Trial(model, (4,), find_structure(model, (4,))).after({"0": [0]})
    assert count_flops(planned, (4,)) == 2 * (20 + 25 + 15 + 6 + 14)
    assert model[0].out_features == 6
