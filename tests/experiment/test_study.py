"""The comparison for users of the library is the one of the command line."""

from functools import partial

import pytest
import torch
from torch import nn

from pruning_lab.attributions import (
    RandomAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
)
from pruning_lab.compare import quality_curves, sections
from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.statistics import by_block, differences
from pruning_lab.datasets.diabetes import diabetes
from pruning_lab.errors import UserError
from pruning_lab.experiment import stages
from pruning_lab.experiment.conditions import Conditions
from pruning_lab.experiment.study import compare_criteria
from pruning_lab.models.mlp import MLP
from pruning_lab.pruning.schedules import Geometric
from pruning_lab.tasks import Regression
from pruning_lab.training.recipe import Training
from tests.running import two_steps

CONVNET = ["model=convnet", "model.channels=[4,6]", "model.hidden=8", "attributions=none"]
SCHEDULE = Geometric(target=0.5, steps=2, of="flops")
NUMBERS = ["removed_flops", "test_accuracy_before", "test_accuracy_after", "test_loss_after"]


def test_rows_are_those_of_an_experiment(tmp_path, monkeypatch):
    done = two_steps(tmp_path, "attributions=none", "controls.untuned=true")
    monkeypatch.setattr(stages, "obtain_baseline", lambda _: None)  # as it was drawn
    before = {key: value.clone() for key, value in done.model.state_dict().items()}
    found = compare_criteria(
        done.model, done.splits, {"taylor": TaylorAttributionMetric}, done.schedule, done.finetune
    )
    assert all(torch.equal(before[key], value) for key, value in done.model.state_dict().items())
    done.run()
    for track in ("main", "untuned"):
        mine = found[found["track"] == track][NUMBERS].to_numpy().tolist()
        assert mine == [[row[key] for key in NUMBERS] for row in done.record.of(track)]
    assert found["step"].tolist() == [0, 1, 2] * 2


def test_a_baseline_is_measured_once(tmp_path, monkeypatch):
    done, seen, measure = two_steps(tmp_path, "attributions=none"), [], Conditions.measure

    def watched(conditions, network):
        seen.append(network.size().units)
        return measure(conditions, network)

    monkeypatch.setattr(Conditions, "measure", watched)
    criteria = {"random": RandomAttributionMetric, "taylor": TaylorAttributionMetric}
    compare_criteria(done.model, done.splits, criteria, SCHEDULE, Training(epochs=0), stale=True)
    assert seen.count(28) == 1


def test_several_baselines_are_blocks_of_a_comparison(tmp_path):
    done = two_steps(tmp_path, "attributions=none")
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)))
    criteria = {
        "random": RandomAttributionMetric,
        "shapley": partial(ShapleyAttributionMetric, samples=4, sv_samples=2),
    }
    frame = compare_criteria(
        models, done.splits, criteria, SCHEDULE, Training(epochs=0), batch_size=16
    )
    assert set(frame["track"]) == {"main"}
    assert frame["run_id"].nunique() == 6
    pairs = differences(by_block(measure_runs(frame), "area_flops_after"))
    assert pairs["pairs"].tolist() == [3]
    assert quality_curves(frame).get_suptitle() == "Sequential on given, Geometric schedule"


def test_a_baseline_is_scored_once_for_both_tracks(tmp_path):
    done, scored = two_steps(tmp_path, "attributions=none"), []

    class Counted(TaylorAttributionMetric):
        def estimate(self, *args, **options):
            scored.append(self)
            return super().estimate(*args, **options)

    frame = compare_criteria(
        done.model, done.splits, {"taylor": Counted}, SCHEDULE, Training(epochs=1)
    )
    assert set(frame["track"]) == {"main", "untuned"}
    assert len(scored) == 1 + 2  # the baseline, and the second step of each track


def test_several_recoveries_start_from_the_same_first_scores(tmp_path):
    done, scored, told = two_steps(tmp_path, *CONVNET), [], []

    class Counted(TaylorAttributionMetric):
        def estimate(self, *args, **options):
            scored.append(self)
            return super().estimate(*args, **options)

    def also(run, step, result):
        assert step == len(told) % 3
        told.append((run.name, len(result.test)))
        return {"mine": len(told)}

    recipes = {"short": Training(steps=1), "long": Training(steps=5)}
    frame = compare_criteria(
        done.model, done.splits, {"taylor": Counted}, SCHEDULE, recipes, stale=True,
        undo_harm=False, seeds=[7], also=also,
    )  # fmt: skip
    assert len(scored) == 1 + 4  # the baseline, and the second step of each track
    tracks = frame.groupby(["finetune", "track"], sort=False).size().to_dict()
    assert tracks == {
        (recipe, track): 3 for recipe in recipes for track in ("main", "untuned", "stale")
    }
    assert frame["run_id"].unique().tolist() == ["taylor-short-7", "taylor-long-7"]
    assert frame["mine"].tolist() == [*range(1, 10), *range(10, 13), *range(4, 10)]
    controls = frame[frame["track"] != "main"].drop(columns=["run_id", "finetune"])
    assert controls.iloc[:6].reset_index(drop=True).equals(controls.iloc[6:].reset_index(drop=True))
    assert told[1] == ("main", 3)  # after the cut, recalibrated, fine-tuned
    first = frame[frame["step"] == 1].set_index(["finetune", "track"])
    assert first["test_loss_cut"].nunique() == 1
    assert first["test_loss_before"].nunique() == 2  # the stale one
    assert first["test_loss_after"].nunique() == 4
    alone = compare_criteria(
        done.model, done.splits, {"taylor": TaylorAttributionMetric}, SCHEDULE, recipes["long"],
        untuned=False, undo_harm=False, seeds=[7],
    )  # fmt: skip
    mine = frame[(frame["finetune"] == "long") & (frame["track"] == "main")]
    mine = mine[NUMBERS].to_numpy().tolist()
    assert mine == alone[NUMBERS].to_numpy().tolist()
    ends = compare_criteria(
        done.model, done.splits, {"taylor": TaylorAttributionMetric}, SCHEDULE, recipes["long"],
        untuned=False, stale=True, undo_harm=False, every_stage=False, seeds=[7],
    )  # fmt: skip
    whole = frame[(frame["finetune"] == "long") & (frame["track"] != "untuned")]
    numbers = [name for name in NUMBERS if not name.endswith(("_cut", "_before"))]
    assert len(numbers) < len(NUMBERS)
    assert ends[numbers].to_numpy().tolist() == whole[numbers].to_numpy().tolist()
    assert ends["test_loss_cut"].notna().tolist() == 2 * [True, False, False]
    with pytest.raises(UserError, match="undo_harm=True compares the network before and after"):
        compare_criteria(done.model, done.splits, {"taylor": Counted}, SCHEDULE, recipes,
                         every_stage=False)  # fmt: skip
    with pytest.raises(UserError, match=r"The runs differ in finetune \(long, short\); keep one"):
        measure_runs(frame)
    for seeds in ([7, 8], []):
        with pytest.raises(UserError, match="are not possible for 1 baselines: give each"):
            compare_criteria(done.model, done.splits, {"taylor": Counted}, SCHEDULE, recipes,
                             seeds=seeds)  # fmt: skip


@pytest.mark.parametrize(
    ("baselines", "criteria", "message"),
    [([], {"random": RandomAttributionMetric}, "0 baselines, 1"), ([nn.ReLU()], {}, "1 .* 0")],
)
def test_nothing_to_compare_is_refused(baselines, criteria, message, tmp_path):
    splits = two_steps(tmp_path, "attributions=none").splits
    with pytest.raises(UserError, match=message):
        compare_criteria(baselines, splits, criteria, SCHEDULE, Training(epochs=0))


def test_a_comparison_goes_by_the_measure_of_its_task():
    splits, models = diabetes(), [MLP(1, (10,), [8]) for _ in range(2)]
    found = compare_criteria(
        models, splits, {"taylor": TaylorAttributionMetric, "random": RandomAttributionMetric},
        SCHEDULE, Training(steps=2), task=Regression(),
    )  # fmt: skip
    assert set(found["measure_better"]) == {"lower"}
    assert "RMSE over the share removed" in [section.title for section in sections(found)]
    with pytest.raises(UserError, match="2 baselines, 1 criteria and 0 ways of fine-tuning"):
        compare_criteria(
            models, splits, {"taylor": TaylorAttributionMetric}, SCHEDULE, {}, task=Regression()
        )
