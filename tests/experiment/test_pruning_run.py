"""Beside the main track: the same without fine-tuning, and what is left trained from scratch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pruning_lab import tracking
from pruning_lab.errors import UserError
from pruning_lab.experiment import labels, recovery, stages
from pruning_lab.experiment.conditions import Measured
from pruning_lab.models.mlp import MLP
from pruning_lab.pruner.saved_model import save_state
from pruning_lab.records import per_sample
from pruning_lab.records.step import MAIN, SCRATCH, STAGES, STALE, UNTUNED
from pruning_lab.runtime.random_streams import seed_of, seeded
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import Evaluation, evaluate
from pruning_lab.training.fit import fit
from tests.running import two_steps

TASK = Classification()

CHEAP = ["attributions=none", "controls.untuned=true"]
MEASURED = ["removed_flops", "test_accuracy_before", "test_accuracy_after", "test_loss_after"]


def rows(done, track):
    return [[row[key] for key in MEASURED] for row in done.record.of(track)]


def test_the_untuned_track_is_the_experiment_without_fine_tuning(tmp_path):
    both = two_steps(tmp_path, *CHEAP)
    both.run()
    alone = two_steps(tmp_path, *CHEAP, "finetune=none", "finetune.epochs=0")
    alone.run()
    assert rows(both, UNTUNED) == rows(alone, MAIN)
    assert rows(both, MAIN) != rows(alone, MAIN)
    assert not alone.record.of(UNTUNED)  # it is the main track already
    frame = tracking.read_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "pruning_lab")
    assert frame.groupby(["finetune", "track"]).size().to_dict() == {
        ("none", MAIN): 3, ("sgd", MAIN): 3, ("sgd", UNTUNED): 3,
    }  # fmt: skip
    history = both.client.get_metric_history(
        both.record.run.run_id, "accuracy/untuned_test_accuracy_after"
    )
    assert [m.value for m in history] == [row[2] for row in rows(both, UNTUNED)]


def test_the_main_track_is_the_same_with_controls_and_without(tmp_path):
    found = []
    for controls in ("true", "false"):
        done = two_steps(
            tmp_path, *CHEAP, f"controls.untuned={controls}", f"controls.scratch={controls}"
        )
        found.append((done.run(), rows(done, MAIN)))
    assert found[0] == found[1]
    assert {row["track"] for row in done.record.rows} == {MAIN}


def test_what_is_left_is_trained_from_scratch_as_the_baseline_was(tmp_path):
    done = two_steps(tmp_path, *CHEAP, "controls.untuned=false", "controls.scratch=true")
    result = done.run()
    (row,) = done.record.of(SCRATCH)
    last = done.record.of(MAIN)[-1]
    assert result == last["val_accuracy_after"]
    for key in ("step", "flops", "parameters", "width/1", "width/3"):
        assert row[key] == last[key]
    # by hand: other weights than the baseline's, the same units of them, the same training
    torch.manual_seed(int(np.random.SeedSequence([0, 1]).generate_state(1)[0]))
    fresh = MLP(4, (1, 8, 8), [16, 12])
    one, three = (torch.tensor(done.network.pruner.kept[name]) for name in ("1", "3"))
    small = MLP(4, (1, 8, 8), [len(one), len(three)])
    with torch.no_grad():
        for layer, units, inputs in (
            (1, one, slice(None)),
            (3, three, one),
            (5, slice(None), three),
        ):
            small[layer].weight.copy_(fresh[layer].weight[units][:, inputs])
            small[layer].bias.copy_(fresh[layer].bias[units])
    order = seeded(0, 0)
    fit(
        small,
        done.training.optimizer(small),
        done.splits.train,
        done.training,
        TASK,
        order,
        "by hand",
    )
    found = evaluate(small, done.splits.test, TASK)
    assert (row["test_accuracy_after"], row["test_loss_after"]) == pytest.approx(
        (found.values["accuracy"], found.values["loss"]), rel=1e-6
    )
    assert row["test_accuracy_after"] > 0.5 > row["test_accuracy_before"]


def test_the_run_is_kept_when_a_control_fails(tmp_path, monkeypatch):
    done = two_steps(tmp_path, *CHEAP, "controls.scratch=true")
    monkeypatch.setattr(stages, "train_from_scratch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        done.run()
    files = {file.path for file in done.client.list_artifacts(done.record.run.run_id)}
    assert {"pruned_model", "steps.csv"} <= files
    assert (done.output / "pruned_model" / "model.safetensors").is_file()


def test_scores_are_kept_when_the_cut_fails(tmp_path):
    done = two_steps(tmp_path, "attributions=none")
    done.network.pruner.prune_groups = lambda plan: 1 / 0
    with pytest.raises(ZeroDivisionError):
        done.run()
    found = tracking.read_scores(f"sqlite:///{tmp_path / 'mlflow.db'}", done.record.run.run_id, 1)
    assert list(found) == ["taylor"]


def test_scratch_beside_a_baseline_that_was_not_trained_here_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_state(MLP(4, (1, 8, 8), [16, 12]), path)
    for given in ("baseline.training.epochs=0", f"baseline.checkpoint={path}"):
        with pytest.raises(UserError, match=r"controls.scratch=true .* this baseline is not"):
            two_steps(tmp_path, "controls.scratch=true", given)


@pytest.mark.parametrize("switch", ["controls.untuned", "after_cut.rescale_dropout"])
def test_switches_are_true_or_false(switch, tmp_path):
    with pytest.raises(UserError, match=rf"{switch}=never is not possible; it is true or false"):
        two_steps(tmp_path, f"{switch}=never")


def test_blocks_are_networks_that_were_trained_apart(tmp_path):
    def block(*overrides):
        built = two_steps(tmp_path, *overrides)
        return labels.tags(built.setup)["block"]

    path = tmp_path / "mine.safetensors"
    save_state(MLP(4, (1, 8, 8), [16, 12]), path)
    assert block("seed=3", "metric=random") == "init 3, order 3"
    assert block("seed=3", "seeds.order=1", "seeds.score=9") == "init 3, order 1"
    assert block("seed=3", "baseline.training.epochs=0") == "init 3"
    assert block("seed=3", "baseline.training.epochs=null", "baseline.training.steps=0") == "init 3"
    steps = ["baseline.training.epochs=null", "baseline.training.steps=5"]
    assert block("seed=3", *steps) == "init 3, order 3"
    assert block(f"baseline.checkpoint={path}", "seed=3") == "given weights"


CONVNET = ["model=convnet", "model.channels=[4,6]", "model.hidden=8", "baseline.training.epochs=1",
           "attributions=none"]  # fmt: skip


def stage_losses(row, split="test"):
    return [row[f"{split}_loss_{stage}"] for stage in STAGES]


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """A run that recalibrates and fine-tunes, with all its controls."""
    done = two_steps(
        tmp_path_factory.mktemp("repaired"), *CONVNET, "after_cut.recalibrate=64",
        "after_cut.undo_harm=false", "controls.untuned=true", "controls.stale=true",
    )  # fmt: skip
    done.run()
    return done


def test_each_stage_of_a_step_is_measured(repaired):
    expected = {MAIN: (True, True), UNTUNED: (True, False), STALE: (False, False)}
    for name, changes in expected.items():
        before, *steps = repaired.record.of(name)
        assert len(set(stage_losses(before))) == 1
        for row in steps:
            cut, recalibrated, tuned = stage_losses(row)
            assert (cut != recalibrated, recalibrated != tuned) == changes
            assert (row["recalibrate_seconds"] > 0) == changes[0]
            assert ("finetune_kept" in row) == changes[1]
    tracks = [repaired.record.of(name) for name in expected]
    assert len({stage_losses(each[0])[0] for each in tracks}) == 1
    assert len({stage_losses(each[1])[0] for each in tracks}) == 1  # the same first cut
    assert len({stage_losses(each[2])[0] for each in tracks}) == 3


def test_a_stale_track_is_the_run_without_repair(repaired, tmp_path):
    plain = two_steps(tmp_path, *CONVNET, "after_cut.recalibrate=0", "finetune=none",
                      "finetune.epochs=0")  # fmt: skip
    plain.run()
    assert rows(plain, MAIN) == rows(repaired, STALE)


def test_networks_without_statistics_are_not_recalibrated(tmp_path, caplog):
    done = two_steps(tmp_path, *CHEAP, "controls.stale=true")
    with caplog.at_level("INFO", logger="pruning_lab"):
        done.run()
    assert "There is no stale track: the network has no BatchNorm" in caplog.text
    assert not done.record.of(STALE)  # it is the untuned track
    for row in done.record.of(MAIN)[1:]:
        assert row["recalibrate_seconds"] == 0
        assert row["test_loss_cut"] == row["test_loss_before"]


def test_fine_tuning_that_harms_is_undone(tmp_path):
    """A learning rate that destroys the network; without repair nothing else would be left."""
    harmful = [*CONVNET, "finetune.lr=3", "controls.untuned=true"]
    done = two_steps(tmp_path / "undone", *harmful)
    done.run()
    assert [row.get("finetune_kept") for row in done.record.of(MAIN)] == [None, 0, 0]
    assert rows(done, MAIN) == rows(done, UNTUNED)
    for row in done.record.of(MAIN)[1:]:
        assert row["finetune_seconds"] > 0
    kept = two_steps(tmp_path / "kept", *harmful, "after_cut.undo_harm=false")
    kept.run()
    assert [row["finetune_kept"] for row in kept.record.of(MAIN)[1:]] == [1, 1]
    one, other = (each.record.of(MAIN)[1] for each in (done, kept))
    assert stage_losses(one)[:2] == stage_losses(other)[:2]
    assert stage_losses(one, "val")[2] < stage_losses(other, "val")[2]


@pytest.mark.parametrize(
    ("before", "after", "better"),
    [
        ((1, 1, 0), (1, 1, 1), True),
        ((1, 1, 0), (1, 0, 0), False),
        ((1, 1, 0), (1, 1, 0), False),  # accuracies and losses are equal
    ],
)
def test_accuracy_decides_what_is_better_then_the_loss(before, after, better):
    def measured(correct, loss=1.0):
        values = {"accuracy": float(np.mean(correct)), "loss": loss}
        return Measured(TASK, *2 * [Evaluation({}, values)])

    assert measured(after).is_better_than(measured(before)) is better
    assert measured(before, 0.9).is_better_than(measured(before))
    assert measured(before).is_better_than(measured(before, np.nan))
    assert not measured(before, 1.1).is_better_than(measured(before))


def test_statistics_come_from_the_pictures_of_fine_tuning_in_an_order_of_their_own(
    tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(recovery, "recalibrate", lambda *given: seen.append(given[1:]))
    done = two_steps(tmp_path, *CONVNET, "finetune.share=0.25", "after_cut.recalibrate=9")
    done.run()
    quarter = round(len(done.splits.train) / 4)
    assert [(len(data), samples) for data, samples, *_ in seen] == [(quarter, 9)] * 2
    orders = [order.initial_seed() for *_, order in seen]
    assert orders == [seed_of(0, 3), seed_of(0, 4)]  # 0 trains, 1 and 2 fine-tune


def test_every_test_picture_is_kept_of_every_stage(repaired, tmp_path):
    run_id = repaired.record.run.run_id
    path = repaired.client.download_artifacts(run_id, per_sample.FILE, tmp_path)
    found = per_sample.read(Path(path))
    assert found.target.tolist() == [int(target) for _, target in repaired.splits.test]
    for name in (MAIN, UNTUNED, STALE):
        for step, row in enumerate(repaired.record.of(name)):
            for stage in STAGES:
                correct, losses = found.at(name, step, stage)
                assert correct.mean() == row[f"test_accuracy_{stage}"]
                assert losses.mean() == pytest.approx(row[f"test_loss_{stage}"], rel=1e-3)
    assert len(found.correct) == (1 + 3 + 3) + (1 + 2 + 2) + (1 + 1 + 1)
    with pytest.raises(KeyError):
        found.at(MAIN, 3, "after")


def test_a_copy_keeps_its_own_rates_of_dropout(tmp_path):
    done = two_steps(tmp_path, "attributions=none", "after_cut.rescale_dropout=false")
    assert done.network.copy().pruner.rescale_dropout is False
