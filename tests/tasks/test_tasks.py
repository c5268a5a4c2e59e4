"""Losses and measures of the tasks against scikit-learn and hand counts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics

from pruning_lab.runtime.inputs import length, move, select
from pruning_lab.tasks import Classification, Measure, Multilabel, Regression
from pruning_lab.tasks.task import MEASURE, measure_from

N = 40


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(task):
    """An output and a target of N samples."""
    if isinstance(task, Classification):
        return draws(N, 5), torch.arange(N) % 5
    if isinstance(task, Multilabel):
        return draws(N, 3), (draws(N, 3, seed=1) > 0).long()
    return draws(N, 2), draws(N, 2, seed=1)


def measured(task):
    output, target = batch_of(task)
    samples = {"losses": task.loss(output, target, "none"), **task.observe(output, target)}
    return task.measure({key: value.numpy() for key, value in samples.items()})


TASKS = [Classification(), Multilabel(), Regression()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_the_loss_is_reduced_over_samples(task):
    output, target = batch_of(task)
    losses = task.loss(output, target, "none")
    assert losses.shape == (N,)
    torch.testing.assert_close(task.loss(output, target), losses.mean())
    torch.testing.assert_close(task.loss(output, target, "sum"), losses.sum())
    assert list(measured(task)) == [measure.name for measure in task.measures]
    assert measured(task)["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)


def test_regression_measures_are_scikit_learns():
    task = Regression()
    output, target = (each.numpy().astype(float) for each in batch_of(task))
    found = measured(task)
    assert found["rmse"] == pytest.approx(metrics.mean_squared_error(target, output) ** 0.5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(target, output))
    assert found["r2"] == pytest.approx(metrics.r2_score(target, output))
    torch.testing.assert_close(task.loss(*batch_of(task)), F.mse_loss(*batch_of(task)))


def test_multilabel_measures_are_scikit_learns():
    task = Multilabel()
    output, target = batch_of(task)
    predicted, found = (output > 0).numpy(), measured(task)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(target, predicted, average="macro"))
    assert found["subset_accuracy"] == metrics.accuracy_score(target, predicted)
    assert found["label_accuracy"] == pytest.approx((predicted == target.numpy()).mean())
    expected = F.binary_cross_entropy_with_logits(output, target.float())
    torch.testing.assert_close(task.loss(output, target), expected)


def test_a_label_that_never_occurs_and_is_never_predicted_is_right():
    never = np.zeros((4, 1), bool)
    samples = {"predicted": never, "targets": never, "correct": np.ones(4, bool),
               "losses": np.zeros(4)}  # fmt: skip
    assert Multilabel().measure(samples)["macro_f1"] == 1


def test_a_batch_is_a_tuple_or_a_dictionary_of_any_tensors():
    task, model = Regression(), torch.nn.Bilinear(2, 3, 1)
    one, two, target = draws(4, 2), draws(4, 3), draws(4, 1)
    expected = model(one, two)
    for batch in ((one, two, target), {"input1": one, "input2": two, "labels": target}):
        assert torch.equal(task.run(model, batch), expected)
        assert task.target(batch) is target
        assert length(batch) == 4
        half = select(batch, slice(0, 2))
        assert type(half) is type(batch)
        torch.testing.assert_close(task.run(model, half), expected[:2])
        on_meta = move(batch, torch.device("meta"))
        assert task.target(on_meta).is_meta


@pytest.mark.parametrize(
    ("higher", "value", "other", "better"),
    [
        (True, 0.9, 0.8, True), (True, 0.8, 0.8, False), (False, 0.9, 0.8, False),
        (False, 0.7, 0.8, True), (True, math.nan, 0.1, False), (False, 0.1, math.nan, True),
        (True, math.nan, math.nan, False),
    ],
)  # fmt: skip
def test_a_measure_knows_which_value_is_better(higher, value, other, better):
    assert Measure("quality", higher).is_better(value, other) is better


def test_a_measure_is_shown_with_its_unit_and_recorded_as_tags():
    share, error = Measure("accuracy", True, "%"), Measure("mean_error", False, "kg", label="error")
    assert [share.text(0.9722), error.text(1.23456)] == ["97.22 %", "1.235 kg"]
    assert [share.number(0.0123), error.number(0.5)] == ["1.23", "0.5000"]
    assert [share.axis, error.axis] == ["accuracy (%)", "error (kg)"]
    assert [share.points, error.points] == ["points", "kg"]
    for measure in (share, error):
        assert measure_from(measure.recorded()) == measure
    assert list(error.recorded().values()) == ["mean_error", "error", "kg", "lower"]
    assert measure_from({}) == Classification().primary  # of a version that did not record it
    assert list(MEASURE) == ["measure", "measure_label", "measure_unit", "measure_better"]
