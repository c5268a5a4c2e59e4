"""Beside the main track: the same without fine-tuning, and what is left trained from scratch."""

import numpy as np
import pytest
import torch

from pruning_lab import record, track, tracking
from pruning_lab.checkpoint import save_state
from pruning_lab.errors import UserError
from pruning_lab.models.mlp import MLP
from pruning_lab.track import MAIN, SCRATCH, UNTUNED, seed_of, seeded
from pruning_lab.training import evaluate, fit
from tests.experiment import two_steps

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
    fit(small, done.training.optimizer(small), done.splits.train, done.training, order, "by hand")
    found = evaluate(small, done.splits.test)
    assert (row["test_accuracy_after"], row["test_loss_after"]) == pytest.approx(
        (found.accuracy, found.loss), rel=1e-6
    )
    assert row["test_accuracy_after"] > 0.5 > row["test_accuracy_before"]


def test_the_run_is_kept_when_a_control_fails(tmp_path):
    done = two_steps(tmp_path, *CHEAP, "controls.scratch=true")
    done._train_from_scratch = lambda plans: 1 / 0
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
        return record.tags(built.config, built.names, built.baseline)["block"]

    path = tmp_path / "mine.safetensors"
    save_state(MLP(4, (1, 8, 8), [16, 12]), path)
    assert block("seed=3", "metric=random") == "init 3, order 3"
    assert block("seed=3", "seeds.order=1", "seeds.score=9") == "init 3, order 1"
    assert block("seed=3", "baseline.training.epochs=0") == "init 3"
    assert block(f"baseline.checkpoint={path}", "seed=3") == "given weights"


def test_statistics_are_new_after_every_cut_where_that_is_wanted(tmp_path):
    where = [
        "model=convnet", "model.channels=[4,6]", "model.hidden=8", "dataset=synthetic",
        "baseline.training.epochs=1", "threads=1", *CHEAP,
    ]  # fmt: skip
    plain = two_steps(tmp_path, *where)
    anew = two_steps(tmp_path, *where, "after_cut.recalibrate=64")
    for done in (plain, anew):
        done.run()
    assert rows(plain, UNTUNED)[0] == rows(anew, UNTUNED)[0]  # the baseline is as it was
    assert rows(plain, UNTUNED)[1][3] != rows(anew, UNTUNED)[1][3]


def test_statistics_come_from_the_pictures_of_fine_tuning_in_an_order_of_their_own(
    tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(track, "recalibrate", lambda *given: seen.append(given[1:]))
    done = two_steps(
        tmp_path, "attributions=none", "finetune.share=0.25", "after_cut.recalibrate=9"
    )
    done.run()
    quarter = round(len(done.splits.train) / 4)
    assert [(len(data), samples) for data, samples, _ in seen] == [(quarter, 9)] * 2
    orders = [order.initial_seed() for *_, order in seen]
    assert orders == [seed_of(0, 3), seed_of(0, 4)]  # 0 trains, 1 and 2 fine-tune


def test_a_copy_keeps_its_own_rates_of_dropout(tmp_path):
    done = two_steps(tmp_path, "attributions=none", "after_cut.rescale_dropout=false")
    assert done.network.copy().pruner.rescale_dropout is False
