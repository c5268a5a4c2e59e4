"""Pictures and labels of one's own data set that no study can use."""

import pytest
import torch
from torch.utils.data import TensorDataset

from pruning_lab.datasets import Splits
from pruning_lab.schedules import OneShot
from pruning_lab.study import compare_criteria
from pruning_lab.training import Training
from tests.bad_inputs.attempts import check_refused


def given(**wrong):
    """Splits of eight pictures each, whose fingerprint is asked for; ``wrong`` goes into one."""
    parts = {}
    for name in ("train", "score", "val", "test"):
        x, y = torch.zeros(8, 1, 8, 8), torch.arange(8) % 4
        change = wrong.get(name)
        parts[name] = TensorDataset(*(change(x, y) if change else (x, y)))
    return Splits(**parts, num_classes=4, input_size=(1, 8, 8))


def with_label(label):
    return lambda x, y: (x, y.index_fill(0, torch.tensor([5]), label))


def with_pixel(value):
    return lambda x, y: (x.index_fill(0, torch.tensor([3]), value), y)


GIVEN = {
    "NaN": (
        lambda _: given(train=with_pixel(float("nan"))).fingerprint(),
        r"Sample 3 of dataset.train has shape \(1, 8, 8\) and is not all finite",
    ),
    "infinite": (
        lambda _: given(test=with_pixel(float("inf"))).fingerprint(),
        "Sample 3 of dataset.test .* is not all finite; .*Leave it out",
    ),
    "a label too large": (
        lambda _: given(val=with_label(4)).fingerprint(),
        "Sample 5 of dataset.val has label 4; the 4 classes have 0 to 3",
    ),
    "a label below 0": (
        lambda _: given(score=with_label(-1)).fingerprint(), "dataset.score has label -1;",
    ),
    "another size": (
        lambda _: given(test=lambda x, y: (x[..., :7], y)).fingerprint(),
        r"Sample 0 of dataset.test has shape \(1, 8, 7\) .* of shape \(1, 8, 8\)",
    ),
    "a criterion of nothing": (
        lambda _: compare_criteria([], given(), {}, OneShot(target=0.5), Training(epochs=0)),
        "0 baselines and 0 criteria",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVEN)
def test_own_data_that_cannot_be_used(case, tmp_path, monkeypatch):
    check_refused(GIVEN[case], tmp_path, monkeypatch)
