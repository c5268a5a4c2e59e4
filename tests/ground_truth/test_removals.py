"""Harm as it is kept, and the cap of the loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning_lab.attributions.evidence.removals import sets_of
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from pruning_lab.ground_truth.recalibrated import RecalibratedRemovals
from pruning_lab.ground_truth.removals import Removals, at_shares, capped, check_task
from pruning_lab.tasks import Classification, Measure

TASK = Classification()


def test_numbers_of_units():
    assert at_shares(16, (0.1, 0.3, 0.5)).tolist() == [2, 5, 8]
    assert at_shares(5, (0.1, 0.2, 0.3, 0.4)).tolist() == [1, 2]  # 0.5, 1, 1.5 and 2
    assert at_shares(2, (0.1, 0.9)).tolist() == [1]  # one is left
    assert at_shares(1, (0.5,)).tolist() == [0]


def test_the_cap_is_the_loss_of_knowing_nothing():
    uniform = F.cross_entropy(torch.zeros(1, 10), torch.tensor([3])).item()
    found = capped(np.array([[0.5, 5.6], [2.4, 2.2]]), np.log(10))
    np.testing.assert_allclose(found, [[0.5, uniform], [uniform, 2.2]], rtol=1e-6)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4),
        nn.ReLU(), nn.Linear(4, 2),
    ).double().eval()  # fmt: skip
    nn.init.normal_(model[-1].weight, 0, 8)  # some losses are above the cap
    x = torch.randn(9, 3, dtype=torch.float64)
    return model, DataLoader(TensorDataset(x, torch.tensor([0, 1, 1] * 3)), 4)


def removals(network, folder, samples=6, pictures=(3.0,)):
    model, batches = network
    some = [torch.arange(12).view(4, 3).double().cos() * value for value in pictures]
    return Removals(model, batches, torch.device("cpu"), samples, TASK, np.log(2), some, folder)


def test_harm_by_hand(network, tmp_path):
    model, batches = network
    unit_groups, sets = units_of_module(model[0]), sets_of(5, 2)
    (found,) = removals(network, tmp_path, pictures=()).harm(unit_groups, [sets])
    x, target = next(iter(DataLoader(batches.dataset, 6)))
    with torch.no_grad():
        inside = model[:3](x)
        outputs = [model[3:](inside)]
        outputs += [model[3:](inside * torch.tensor(~gone)) for gone in sets]
    losses = [F.cross_entropy(o, target, reduction="none").clamp(max=np.log(2)) for o in outputs]
    right = [(o.argmax(1) == target).double() for o in outputs]
    for number in range(len(sets)):
        np.testing.assert_allclose(found.nats[:, number], losses[number + 1] - losses[0])
        np.testing.assert_allclose(found.lost[:, number], right[0] - right[number + 1])
    assert np.abs(found.lost).max() == 1
    assert max(loss.max() for loss in losses) == pytest.approx(np.log(2))


def test_what_was_measured_is_kept(network, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    unit_groups, sets = units_of_module(network[0][0]), [sets_of(5, 2), sets_of(5, 1)]
    found = removals(network, folder).harm(unit_groups, sets)
    for each, harm in zip(sets, found, strict=True):
        assert harm.lost.shape == harm.nats.shape == (6, len(each))
    asked, measure = [], RecalibratedRemovals.outcomes

    def watched(self, unit_groups, removed, pictures):
        asked.append(len(removed))
        return measure(self, unit_groups, removed, pictures)

    monkeypatch.setattr(RecalibratedRemovals, "outcomes", watched)
    again = removals(network, folder).harm(unit_groups, [sets[1], sets_of(5, 3), sets[0]])
    assert asked == [10]  # the sets of three alone
    np.testing.assert_array_equal(again[0].nats, found[1].nats)
    np.testing.assert_array_equal(again[2].lost, found[0].lost)
    removals(network, folder, samples=5).harm(unit_groups, sets)
    removals(network, folder, pictures=(2.0,)).harm(unit_groups, sets)
    removals(network, folder, pictures=()).harm(unit_groups, sets)
    assert asked == [10, 16, 16, 16]  # both, and the whole network


def test_a_damaged_file_is_named(network, tmp_path):
    measured = removals(network, tmp_path)
    unit_groups = units_of_module(network[0][0])
    measured.outcomes(unit_groups, [sets_of(5, 1)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        measured.outcomes(unit_groups, [sets_of(5, 1)])


class Hits(Classification):
    """Calls its share of right answers otherwise."""

    measures = (Measure("hits", higher_is_better=True, unit="%"),)

    def measure(self, samples):
        return {"hits": samples["correct"].sum() / len(samples["correct"])}


class Worst(Classification):
    """Is judged by its worst class, not by a share of all samples."""

    measures = Classification.measures[2:]


class Fixed(Hits):
    """Has a measure that only happens to be the share of right answers."""

    def measure(self, samples):
        return {"hits": 2 / 3}


def test_tasks_whose_measure_counts_right_samples_can_be_judged(network):
    model, batches = network
    for task in (TASK, Hits()):
        check_task(task, model, batches.dataset)
    for task, measure in ((Worst(), "worst class accuracy"), (Fixed(), "hits")):
        with pytest.raises(UserError, match=f"task={type(task).__name__} .* but {measure}, the"):
            check_task(task, model, batches.dataset)
