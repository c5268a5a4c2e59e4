"""Samples of one's own data set that no study can use, and what is said of them before any work."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pruning_lab.attributions import RandomAttributionMetric
from pruning_lab.datasets import Images, Splits
from pruning_lab.experiment.study import compare_criteria
from pruning_lab.pruning.schedules import OneShot
from pruning_lab.training.recipe import Training
from tests.bad_inputs.attempts import check_refused

NAMES = ("train", "score", "val", "test")
WHOLE = {
    name: TensorDataset(
        torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(8) % 4
    )
    for seed, name in enumerate(NAMES)
}


class Changed(Dataset):
    """Eight samples, one of which a function makes another."""

    def __init__(self, name, change, length=8, which=3):
        self.whole, self.change, self.length, self.which = WHOLE[name], change, length, which

    def __len__(self):
        if isinstance(self.length, Exception):
            raise self.length
        return self.length

    def __getitem__(self, index):
        x, y = self.whole[index]
        return self.change(x, y) if index == self.which else (x, y)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(WHOLE["train"])


def given(num_classes=4, input_size=(1, 8, 8), **parts):
    return Splits(**WHOLE | parts, num_classes=num_classes, input_size=input_size).fingerprint()


def sample(change, name="train"):
    return lambda _: given(**{name: Changed(name, change)})


def image(change):
    return sample(lambda x, y: (change(x), y))


def label(change):
    return sample(lambda x, y: (x, change(y)))


def fails(*_):
    raise KeyError("picture 3")


def drawn(draw):
    return lambda _: given(val=Changed("val", lambda x, y: (draw(x), y)))


OWN = torch.Generator().manual_seed(0)
VARIED = Changed("train", lambda x, y: (torch.rand_like(x), y))
STORED = torch.ones(1, 8, 8)
IMAGE = "Sample 3 of dataset.train: the image"
MUST = r"; it must be a finite float32 tensor of shape \(1, 8, 8\). "
CLASS = "Sample 3 of dataset.train: the class is"
ANOTHER = "Sample 3 of dataset.val changes when it is read again .* Draw from torch's, numpy's"
SPLITS = r"divide the images into four parts"
GIVEN = {
    "float64": (image(lambda x: x.double()), rf"{IMAGE} is of torch.float64{MUST}Use x.float\(\)"),
    "float16": (image(lambda x: x.half()), rf"{IMAGE} is of torch.float16{MUST}Use x.float\(\)\."),
    "uint8": (image(lambda x: x.byte()), rf"{IMAGE} is of torch.uint8{MUST}Use x.float\(\) / 255"),
    "complex": (image(lambda x: x + 1j), rf"{IMAGE} is of torch.complex64{MUST}Use x.abs\(\)"),
    "an array": (
        image(lambda x: x.numpy()),
        rf"{IMAGE} is a numpy.ndarray of float32 and shape \(1, 8, 8\){MUST}Use torch.from_numpy",
    ),
    "a picture": (
        image(lambda x: Image.new("L", (8, 8))), rf"{IMAGE} is a PIL.*{MUST}.*ToImage\(\)",
    ),
    "a list": (image(lambda x: x.tolist()), rf"{IMAGE} is a list of 1{MUST}Use torch.tensor"),
    "nothing": (image(lambda x: None), f"{IMAGE} is a NoneType"),
    "sparse": (image(lambda x: x.to_sparse()), rf"{IMAGE} is stored as torch.sparse_coo.*to_dense"),
    "elsewhere": (image(lambda x: x.to("meta")), rf"{IMAGE} is on meta{MUST}Use x.cpu\(\)"),
    "a parameter": (image(nn.Parameter), rf"{IMAGE} is part of .*gradients{MUST}Use x.detach"),
    "NaN": (image(lambda x: x / 0 * 0), f"{IMAGE} has NaN{MUST}Leave it out"),
    "infinite": (image(lambda x: x / 0), f"{IMAGE} has infinite numbers{MUST}Leave it out"),
    "another size": (image(lambda x: x[..., :7]), rf"{IMAGE} has shape \(1, 8, 7\){MUST}Resize"),
    "a label too large": (label(lambda y: 4), "train has class 4; the 4 classes are 0 to 3"),
    "a label below 0": (label(lambda y: y - 4), "Sample 3 of dataset.train has class -1;"),
    "a float label": (label(float), f"{CLASS} 3.0; .*an int or an integer tensor"),
    "one-hot": (label(lambda y: nn.functional.one_hot(y, 4)), rf"{CLASS} a .*shape \(4,\).*argmax"),
    "a label of shape (1,)": (label(lambda y: y[None]), rf"{CLASS} a .*shape \(1,\)"),
    "in words": (label(lambda y: "cat"), f"{CLASS} 'cat'; the 4 classes are 0 to 3"),
    "three": (sample(lambda x, y: (x, y, 1)), "dataset.train is a tuple of 3; a sample is a pair"),
    "a mapping": (sample(lambda x, y: {"image": x}), "is a dict of image; a sample is a pair"),
    "an image alone": (sample(lambda x, y: x), "is a torch.Tensor of .*; a sample is a pair"),
    "fails": (
        sample(fails), "Sample 3 of dataset.train of 8 cannot be read: KeyError: 'picture 3'. Put",
    ),
    "too short": (
        lambda _: given(test=Changed("test", None, 2**40, 9)),
        f"Sample 8 of dataset.test of {2**40} cannot be read: IndexError",
    ),
    "a length that fails": (
        lambda _: given(test=Changed("test", None, OSError("no disk"))),
        "length of dataset.test cannot be told: OSError: no disk. Give",
    ),
    "empty": (lambda _: given(val=[]), "dataset.val has 0 samples; it needs at least 1"),
    "one to train": (lambda _: given(train=Subset(WHOLE["train"], [0])), "train has 1 samples"),
    "a stream": (lambda _: given(score=Stream()), "dataset.score is a .*Stream, which has no"),
    "no data": (lambda _: given(score=None), "dataset.score is a NoneType, which has no samples"),
    "images in memory": (
        lambda _: given(val=Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4),
                                   (0.5,), (0.0,))),
        "Sample 0 of dataset.val: the image has infinite numbers",
    ),
    "numpy's new stream": (
        drawn(lambda x: x * float(np.random.default_rng().random())), ANOTHER,
    ),
    "a generator of its own": (drawn(lambda x: x * torch.rand((), generator=OWN)), ANOTHER),
    "the time": (drawn(lambda x: torch.full_like(x, time.perf_counter_ns() % 2**20)), ANOTHER),
    "in place": (drawn(lambda x: STORED.mul_(0.5)), ANOTHER),
    "one set four times": (
        lambda _: given(**dict.fromkeys(NAMES, WHOLE["val"])),
        f"All 8 images of dataset.train are in dataset.score, too.*{SPLITS}",
    ),
    "the same images": (
        lambda _: given(test=TensorDataset(*WHOLE["train"][2:7])),
        f"All 5 images of dataset.test are in dataset.train, too.*{SPLITS}",
    ),
    "the same places": (
        lambda _: given(
            train=Subset(VARIED, range(2, 8)), test=Subset(Subset(VARIED, range(4)), [3]),
        ),
        "All 1 images of dataset.test are in dataset.train",
    ),
    "one class": (lambda _: given(num_classes=1), "num_classes=1 .*a whole number from 2 on"),
    "classes in words": (lambda _: given(num_classes=["a", "b"]), r"num_classes=\['a', 'b'\] is"),
    "size a number": (lambda _: given(input_size=64), "input_size=64 .*the shape of an image"),
    "size 0": (lambda _: given(input_size=(1, 0, 8)), "input_size=0 .*a whole number from 1 on"),
    "size in words": (lambda _: given(input_size="1x8x8"), "input_size=1x8x8 .*shape of an image"),
    "a criterion of nothing": (
        lambda _: compare_criteria([], Splits(**WHOLE, num_classes=4, input_size=(1, 8, 8)), {},
                                   OneShot(target=0.5), Training(epochs=0)),
        "0 baselines, 0 criteria",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVEN)
def test_own_data_that_cannot_be_used(case, tmp_path, monkeypatch):
    check_refused(GIVEN[case], tmp_path, monkeypatch)


class Squeezed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze()


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ({"test": Changed("test", fails)}, nn.Sequential, "Sample 3 of dataset.test of 8 cannot"),
        ({}, Squeezed, r"For one image the model gives \(4,\)"),
    ],
)
def test_a_comparison_refuses_data_and_models_before_it_prunes(parts, kind, message):
    splits = Splits(**WHOLE | parts, num_classes=4, input_size=(1, 8, 8))
    net = kind(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(ValueError, match=message):
        compare_criteria(
            net,
            splits,
            {"random": RandomAttributionMetric},
            OneShot(target=0.3),
            Training(epochs=1),
        )
