"""What tells the samples of one's own data apart, and what kinds of them are one data set."""

import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import Dataset, TensorDataset
from torchvision.tv_tensors import Image

from pruning_lab.datasets import Splits, loader
from pruning_lab.datasets.digits import digits
from pruning_lab.datasets.synthetic import synthetic
from pruning_lab.errors import UserError
from pruning_lab.experiment.parts import build_data

X, Y = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
PARTS = {"train": slice(0, 10), "score": slice(10, 20), "val": slice(20, 30), "test": slice(30, 40)}


class Kind(Dataset):
    """Samples of one kind, varied by ``noise()``."""

    def __init__(self, part, image=lambda x: x, label=lambda y: y, noise=lambda: 0):
        self.x, self.y, self.image, self.label = X[part], Y[part], image, label
        self.noise = noise

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return self.image(self.x[index] + float(self.noise())), self.label(self.y[index])


def splits(input_size=(1, 2, 2), num_classes=4, **kind):
    parts = {name: Kind(part, **kind) for name, part in PARTS.items()}
    return Splits(**parts, num_classes=num_classes, input_size=input_size)


@pytest.mark.parametrize(
    "label",
    [int, torch.Tensor.int, torch.Tensor.byte, lambda y: y.numpy()[()], lambda y: y.numpy()],
)
def test_any_whole_number_is_a_class(label):
    given = splits(label=label, image=Image)
    assert given.fingerprint() == splits().fingerprint()
    ((x, y),) = loader(given.val, 10)
    assert type(x) is torch.Tensor
    assert torch.equal(x, X[20:30])
    assert torch.equal(y, Y[20:30])
    assert y.dtype == torch.int64


def test_sizes_may_be_a_list_and_numbers_numpys():
    for size in ([1, 2, 2], X.shape[1:], OmegaConf.create([1, 2, 2])):
        given = splits(size, num_classes=np.int64(4))
        assert (given.input_size, given.num_classes) == ((1, 2, 2), 4)
        assert type(given.num_classes) is type(given.input_size[0]) is int
        assert given.fingerprint() == splits().fingerprint()


@pytest.mark.parametrize("noise", [np.random.normal, random.random, lambda: torch.rand(())])
def test_samples_drawn_from_any_stream_have_one_fingerprint(noise):
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        prints.append(splits(noise=noise).fingerprint())
    assert prints[0] == prints[1] != splits().fingerprint()


def test_packaged_data_have_the_fingerprints_they_had():
    assert synthetic().fingerprint() == "8c41d889d5a8"
    assert digits(size=8).fingerprint() == "5ae3404a14a8"


def test_equal_images_are_counted_where_a_part_is_not_all_another_has(caplog):
    x, y = X.clone(), Y
    x[35:] = x[5:10]
    parts = {name: TensorDataset(x[part], y[part]) for name, part in PARTS.items()}
    Splits(**parts, num_classes=4, input_size=(1, 2, 2)).fingerprint()
    assert caplog.messages == ["5 of the 10 images of dataset.test are in dataset.train, too."]


def test_toy_data_whose_images_repeat_are_only_warned_of(caplog):
    synthetic(noise=0).fingerprint()  # four images in all
    assert "64 of the 64 images of dataset.test are in dataset.train, too." in caplog.messages


def build(target):
    return build_data(OmegaConf.create({"_target_": f"{__name__}.{target}"}))


def noisy():
    """Draws while it is built."""
    noise = np.random.normal()  # noqa: NPY002
    return splits(noise=lambda: noise)


def unseeded():
    noise = np.random.default_rng().random()
    return splits(noise=lambda: noise)


def test_data_are_built_with_seeded_streams_that_are_put_back():
    prints = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        prints.append(build("noisy").fingerprint())
    assert prints[0] == prints[1]
    after = np.random.random()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002


def test_data_that_are_others_each_time_they_are_built_are_refused():
    with pytest.raises(UserError, match=r"unseeded gives other samples .*default_rng\(seed\)"):
        build("unseeded")
