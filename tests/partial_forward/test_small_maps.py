"""The modules for small maps compute what torch's convolution does."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from pruning_lab.partial_forward import small_maps
from pruning_lab.partial_forward.small_maps import Dense, Products, faster

SETTINGS = settings(max_examples=100, deadline=None)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def error(module, convolution, x):
    """The distance to the exact output, relative to its largest value."""
    weight, bias = convolution.weight.double(), convolution.bias
    options = convolution.stride, convolution.padding, convolution.dilation
    expected = F.conv2d(x.double(), weight, None if bias is None else bias.double(), *options)
    with torch.no_grad():
        found = module(x)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert found.is_contiguous()
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


@SETTINGS
@given(
    channels=pairs(1, 4),
    size=pairs(1, 5),
    kernel=pairs(1, 5),
    stride=pairs(1, 3),
    padding=pairs(0, 3),
    dilation=pairs(1, 2),
    bias=st.booleans(),
    rows=st.integers(1, 4),
)
def test_one_matrix_is_any_convolution(
    channels, size, kernel, stride, padding, dilation, bias, rows
):
    for n, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        assume(n + 2 * p > d * (k - 1))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias}
    convolution = nn.Conv2d(*channels, kernel, **options).double()
    x = torch.randn(rows, channels[0], *size).double()
    assert error(Dense(convolution, size), convolution, x) < 1e-10


@SETTINGS
@given(
    channels=pairs(1, 4),
    size=pairs(1, 7),
    reach=pairs(0, 3),
    bias=st.booleans(),
    rows=st.integers(1, 4),
)
def test_frequencies_are_any_convolution_that_keeps_the_size(channels, size, reach, bias, rows):
    kernel = tuple(2 * n + 1 for n in reach)
    convolution = nn.Conv2d(*channels, kernel, padding=reach, bias=bias).double()
    x = torch.randn(rows, channels[0], *size).double()
    module = Products(convolution, small_maps._fourier(size, kernel))
    assert error(module, convolution, x) < 1e-10


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("size", "kernel", "channels", "products"),
    [
        ((2, 2), 3, (64, 96), 9),
        ((4, 4), 3, (96, 128), 37),
        ((8, 8), 3, (192, 256), 121),
        ((3, 5), 3, (128, 96), 34),
        ((4, 4), 5, (64, 64), 52),
    ],
)
def test_fewer_products_give_the_same(size, kernel, channels, products, rows, dtype):
    convolution = nn.Conv2d(*channels, kernel, padding=kernel // 2).to(dtype)
    x = torch.randn(rows, channels[0], *size, dtype=dtype).relu()
    module = faster(convolution, size)
    assert isinstance(module, Products)
    assert len(module.weight) == products
    assert error(module, convolution, x) < (1e-10 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2)])
def test_a_map_smaller_than_the_kernel_takes_one_matrix(size, dtype):
    convolution = nn.Conv2d(16, 20, 3, padding=1).to(dtype)
    module = faster(convolution, size)
    assert isinstance(module, Dense)
    bounds = {torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 1e-2}
    x = torch.randn(5, 16, *size, dtype=dtype)
    assert error(module, convolution, x) < bounds[dtype]


def test_any_layout_of_the_rows_will_do():
    for channels, size in ((8, (2, 2)), (128, (2, 2)), (128, (4, 4))):
        convolution = nn.Conv2d(channels, 128, 3, padding=1).double()
        x = torch.randn(3, channels, *size).double()
        module = faster(convolution, size)
        assert error(module, convolution, x.to(memory_format=torch.channels_last)) < 1e-10
        assert error(module, convolution, x[::2]) < 1e-10
        assert error(module, convolution, x[:1].expand(4, -1, -1, -1)) < 1e-10


def test_rows_beyond_the_cache_go_in_parts(monkeypatch):
    convolution = nn.Conv2d(128, 64, 3, padding=1).double()
    module = faster(convolution, (4, 4))
    for cache in (1, 37 * 128 * 8 * 3, 37 * 128 * 8 * 100):
        monkeypatch.setattr(small_maps, "CACHE", cache)
        assert error(module, convolution, torch.randn(10, 128, 4, 4).double()) < 1e-10


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_may_be_given_by_name():
    same = nn.Conv2d(128, 128, 3, padding="same").double()
    valid = nn.Conv2d(4, 4, 3, padding="valid", stride=2).double()
    even = nn.Conv2d(4, 4, 4, padding="same").double()
    for convolution, kind, size in ((same, Products, (4, 4)), (even, Dense, (2, 3))):
        module = faster(convolution, size)
        assert isinstance(module, kind)
        x = torch.randn(2, convolution.in_channels, *size).double()
        assert error(module, convolution, x) < 1e-10
    x = torch.randn(2, 4, 5, 5).double()
    assert error(Dense(valid, (5, 5)), valid, x) < 1e-10


def test_later_changes_of_the_weights_do_not_reach_it():
    for channels, size in ((8, (2, 2)), (128, (4, 4))):
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        x = torch.randn(2, channels, *size)
        module = faster(convolution, size)
        before = module(x)
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.bias.zero_()
        assert torch.equal(module(x), before)
        assert not module(x).requires_grad


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    convolution = nn.Conv2d(8, 8, 3, padding=1)
    convolution.register_forward_hook(lambda module, args, output: 2 * output)
    return convolution


@pytest.mark.parametrize(
    "convolution",
    [
        Doubled(8, 8, 3, padding=1),
        hooked(),
        parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 8, 3, padding=1, device="meta"),
        nn.Conv2d(8, 8, 3, padding=1).half(),
        nn.Conv2d(8, 8, 1),
    ],
)
def test_other_modules_stay(convolution):
    assert faster(convolution, (2, 2)) is None


def test_where_torch_is_faster_it_stays():
    wide = nn.Conv2d(128, 128, 3, padding=1)
    assert faster(wide, (4, 4)) is not None
    assert faster(wide, (16, 16)) is None
    assert faster(wide, (1000, 1000)) is None
    assert faster(nn.Conv2d(16, 16, 3, padding=1), (4, 4)) is None
    assert faster(nn.Conv2d(128, 128, 3, padding=1, stride=2), (4, 4)) is None
    assert faster(nn.Conv2d(128, 128, 3, padding=2, dilation=2), (4, 4)) is None
    assert faster(nn.Conv2d(128, 128, 3), (4, 4)) is None
    assert faster(nn.Conv2d(16, 16, 7, padding=3), (6, 6)) is None
    assert faster(wide.bfloat16(), (4, 4)) is None


def test_weights_that_take_too_much_memory_are_not_made():
    many, few = nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    for convolution, size in ((many, (4, 4)), (few, (2, 2))):
        taken = faster(convolution, size).weight.nbytes
        assert faster(convolution, size, taken) is not None
        assert faster(convolution, size, taken - 1) is None
