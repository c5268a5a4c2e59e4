"""Tasks run to the end on small real data, and are compared in the direction of their measure."""

import math

import numpy as np
import pytest
import torch

from pruning_lab import tracking
from pruning_lab.compare import comparable, measure_runs, quality_curves, sections
from pruning_lab.compare.runs import measure_of
from pruning_lab.datasets.diabetes import diabetes
from pruning_lab.datasets.digits import digits
from pruning_lab.errors import UserError
from pruning_lab.models.mlp import MLP
from pruning_lab.records import per_sample
from pruning_lab.records.step import MAIN
from pruning_lab.tasks import Multilabel, Regression
from tests.running import experiment

BASE = ["model=mlp", "model.hidden=[24,16]", "threads=1", "schedule.steps=2", "schedule.target=0.5",
        "baseline.training.epochs=3", "finetune.steps=20", "attributions=none"]  # fmt: skip
REGRESSION = [
    "dataset=diabetes",
    "task=regression",
    "baseline.training.lr=0.01",
    "finetune.lr=0.01",
]


@pytest.fixture(scope="module")
def regressions(tmp_path_factory):
    """Two criteria on two networks; the last experiment, and the frame of all runs."""
    folder = tmp_path_factory.mktemp("regression")
    for seed in (0, 1):
        for metric in ("random", "taylor"):
            done = experiment(folder, *REGRESSION, f"metric={metric}", f"seed={seed}", base=BASE)
            done.run()
    return done, tracking.read_runs(f"sqlite:///{folder / 'mlflow.db'}", "pruning_lab")


def test_a_regression_is_recorded_by_its_error(regressions):
    done, frame = regressions
    last = done.record.of(MAIN)[-1]
    splits = done.splits
    with torch.no_grad():
        errors = done.model.eval()(splits.test.inputs) - splits.test.targets
    assert last["test_rmse_after"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-6)
    assert last["test_rmse_after"] < 1  # what the mean of the targets gives is about 1
    assert measure_of(frame) == Regression().primary
    metrics = done.client.get_run(done.record.run.run_id).data.metrics
    assert metrics["rmse/test_rmse_after"] == last["test_rmse_after"]
    files = {file.path for file in done.client.list_artifacts(done.record.run.run_id, "figures")}
    assert "figures/rmse_vs_flops.png" in files
    place = done.client.download_artifacts(done.record.run.run_id, per_sample.FILE)
    correct, losses = per_sample.read(place).at(MAIN, 2, "after")
    assert correct is None
    assert losses.mean() == pytest.approx(last["test_loss_after"], rel=1e-3)


def test_lower_is_better_in_the_statistics(regressions):
    _, frame = regressions
    (runs,) = comparable(frame).values()
    area = measure_runs(runs).groupby("metric")["area_flops_after"].mean()
    found = {part.title: part for part in sections(runs)}
    (row,) = found["Comparison after fine-tuning"].tables["differences_after"].to_dict("records")
    assert [row["better"], row["worse"]] == [area.idxmin(), area.idxmax()]
    assert row["difference"] == pytest.approx(area.max() - area.min())
    assert found["RMSE over the share removed"].words == [
        "Test RMSE, lower is better; in the table before and after the fine-tuning of each step."
    ]
    assert quality_curves(runs).axes[0].get_ylabel() == "Test RMSE"


def test_an_error_that_rises_is_harm_and_undone(tmp_path):
    harmful = [*REGRESSION, "finetune.lr=0.2", "finetune.momentum=0.99", "metric=weight_norm"]
    done = experiment(tmp_path, *harmful, base=BASE)
    done.run()
    assert not all(row["finetune_kept"] for row in done.record.of(MAIN)[1:])
    for row in done.record.of(MAIN)[1:]:
        assert (row["val_rmse_after"] < row["val_rmse_before"]) == bool(row["finetune_kept"])
        assert row["val_rmse_after"] <= row["val_rmse_before"]


def test_a_multilabel_network_is_recorded_by_its_f1(tmp_path):
    done = experiment(
        tmp_path, "dataset=digits_multilabel", "dataset.size=8", "task=multilabel",
        "metric=shapley", "metric.samples=4", base=BASE,
    )  # fmt: skip
    result = done.run()
    last, split = done.record.of(MAIN)[-1], done.splits.val
    images, targets = split[list(range(len(split)))]
    with torch.no_grad():
        predicted = done.model.eval()(images) > 0
    scores = []
    for label in range(3):
        hits = (predicted[:, label] & (targets[:, label] == 1)).sum().item()
        scores.append(
            2 * hits / (predicted[:, label].sum().item() + targets[:, label].sum().item())
        )
    assert result == last["val_macro_f1_after"] == pytest.approx(np.mean(scores))
    assert result > 0.7


def test_targets_are_those_of_the_data():
    splits = digits(size=8, multilabel=True)
    assert splits.num_classes == 3
    whole = {tuple(target.tolist()) for _, target in (splits.test[i] for i in range(360))}
    expected = [(d % 2 == 0, d > 4, d in (0, 6, 8, 9)) for d in range(10)]
    assert whole == {tuple(map(int, labels)) for labels in expected}
    patients = diabetes()
    targets = patients.train.targets
    assert targets.mean().item() == pytest.approx(0, abs=1e-6)
    assert targets.std(correction=0).item() == pytest.approx(1)
    assert sum(len(getattr(patients, n)) for n in ("train", "score", "val", "test")) == 442


@pytest.mark.parametrize(
    ("task", "splits", "outputs", "message"),
    [
        (
            Regression(),
            digits(8, multilabel=True),
            3,
            "one or more numbers a sample, but those of this.* Choose task=multilabel",
        ),
        (Multilabel(), diabetes(), 1, "are 0 or 1 for each of sev.*Choose task=regression"),
        (Regression(), diabetes(), 2, r"it must give a tensor of shape \(2, 1\)"),
    ],
)
def test_what_a_task_is_not_for_is_refused(task, splits, outputs, message):
    with pytest.raises(UserError, match=message):
        task.check(MLP(outputs, splits.input_size, [4]), splits)


def test_a_network_for_pictures_says_so_of_other_inputs(tmp_path):
    with pytest.raises(UserError, match=r"the shape \(10,\), not that of pictures; model=mlp"):
        experiment(tmp_path, "dataset=diabetes", "task=regression", "model=convnet", base=[])


class Forgets(Regression):
    def measure(self, samples):
        return {"loss": 1.0}


class Never(Regression):
    """Its primary measure is never a number; the loss decides."""

    def measure(self, samples):
        return super().measure(samples) | {"rmse": float("nan")}


def test_a_task_without_a_measure_that_it_declares_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"Forgets.measure gives loss, without rmse, mae, r2: it must"
    ):
        experiment(tmp_path, f"task._target_={__name__}.Forgets", base=REGRESSION[:1] + BASE)


def test_fine_tuning_goes_by_the_loss_where_the_measure_is_no_number(tmp_path):
    done = experiment(tmp_path, f"task._target_={__name__}.Never", base=REGRESSION[:1] + BASE)
    assert math.isnan(done.run())
    before, after = (done.record.of(MAIN)[1][f"val_loss_{stage}"] for stage in ("before", "after"))
    assert after < before
