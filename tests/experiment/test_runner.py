"""One experiment from command to MLflow, in miniature: what is recorded is what happened."""

import numpy as np
import pytest
import torch
from torch import nn

import pruning_lab
from pruning_lab import tracking
from pruning_lab.attributions import SensitivityAttributionMetric
from pruning_lab.dry_run.report import dry_run
from pruning_lab.errors import UserError
from pruning_lab.experiment import fingerprint, labels, stages
from pruning_lab.experiment.recorder import RunRecorder
from pruning_lab.models.mlp import MLP
from pruning_lab.profiling.flops import count_parameters
from pruning_lab.pruner.saved_model import load_pruned, load_state
from pruning_lab.records.step import MAIN
from pruning_lab.tasks import Classification
from pruning_lab.tracking import read
from pruning_lab.training.evaluation import evaluate
from tests.running import TINY, TWO_STEPS, experiment, two_steps

TASK = Classification()

SIX = ["random", "apoz", "sensitivity", "taylor", "weight_norm", "shapley"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(folder):
    """A finished experiment, and its rows read back from MLflow."""
    done = two_steps(folder)
    result = done.run()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    frame = tracking.read_runs(uri, "pruning_lab")
    return done, result, uri, frame[frame["track"] == MAIN]


def test_there_is_a_row_for_the_baseline_and_each_step(finished):
    _, _, _, frame = finished
    assert frame["step"].tolist() == [0, 1, 2]
    # By hand: k units of all go in proportion, until 1 - 0.5 ** (1 / 2) and 0.5 of the FLOPs are
    # gone; (11, 9) is the first after (12, 9) with 0.278, (8, 7) the first after (9, 7) with 0.472.
    flops = [64 * a + a * b + b * 4 for a, b in ((16, 12), (11, 9), (8, 7))]
    assert frame[["width/1", "width/3"]].to_numpy().tolist() == [[16, 12], [11, 9], [8, 7]]
    assert frame["removed_flops"].tolist() == [1 - count / flops[0] for count in flops]


def test_flops_parameters_and_widths_are_those_of_the_model_that_is_left(finished):
    done, _, _, frame = finished
    last = frame.iloc[-1]
    widths = [last["width/1"], last["width/3"]]
    assert last["flops"] == 2 * (64 * widths[0] + widths[0] * widths[1] + widths[1] * 4)
    assert last["parameters"] == count_parameters(done.model)
    assert last["units"] == sum(widths)
    assert [done.model[1].out_features, done.model[3].out_features] == widths


def test_the_result_is_the_last_validation_accuracy_and_can_be_measured_again(finished):
    done, result, uri, frame = finished
    last = frame.iloc[-1]
    assert result == last["val_accuracy_after"]
    assert last["val_loss_after"] != last["test_loss_after"]
    assert result == evaluate(done.model, done.splits.val, TASK).values["accuracy"]
    assert (
        last["test_accuracy_after"]
        == evaluate(done.model, done.splits.test, TASK).values["accuracy"]
    )
    (found,) = read.find_finished(uri, "pruning_lab", done.name, TASK.primary)
    assert found.val == result
    assert found.test == last["test_accuracy_after"]
    assert two_steps(done.output.parent).run() == result  # finished already
    assert result > 0.5  # chance is 0.25


def test_the_pruned_model_loads_back_with_the_same_outputs(finished):
    done, *_ = finished
    fresh = MLP(4, (1, 8, 8), [16, 12])
    loaded = load_pruned(fresh, done.output / "pruned_model").eval()
    x, _ = done.splits.test[list(range(8))]
    with torch.no_grad():
        assert torch.equal(loaded(x), done.model.eval()(x))


def test_mlflow_has_the_curve_with_permille_of_flops_as_step(finished):
    done, _, _, frame = finished
    history = done.client.get_metric_history(done.record.run.run_id, "accuracy/test_accuracy_after")
    assert [(m.step, m.value) for m in history] == [
        (round(1000 * row.removed_flops), row.test_accuracy_after) for row in frame.itertuples()
    ]
    steps = done.client.get_metric_history(done.record.run.run_id, "removed/step")
    assert [m.value for m in steps] == [0, 1, 2]


def test_mlflow_has_params_tags_and_files(finished):
    done, *_ = finished
    run = done.client.get_run(done.record.run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["schedule.target"] == "0.5"
    assert run.data.params["metric._target_"].endswith("TaylorAttributionMetric")
    tags = {key: run.data.tags[key] for key in ("metric", "model", "dataset", "seed", "baseline")}
    assert tags == {
        "metric": "taylor", "model": "mlp", "dataset": "synthetic", "seed": "0",
        "baseline": done.baseline.name,
    }  # fmt: skip
    files = {file.path for file in done.client.list_artifacts(done.record.run.run_id)}
    assert {"config.yaml", "steps.csv", "figures", "scores", "pruned_model"} <= files
    figures = {file.path for file in done.client.list_artifacts(done.record.run.run_id, "figures")}
    drawn = ["accuracy_vs_flops", "scores_baseline", "rank_correlation", "widths"]
    drawn += [f"{kind}_step_00{step}" for kind in ("scores", "sorted") for step in (1, 2)]
    assert figures == {f"figures/{name}.png" for name in drawn}


def test_all_six_attributions_are_computed_on_the_baseline(finished):
    done, _, uri, _ = finished
    scores = tracking.read_scores(uri, done.record.run.run_id)
    assert sorted(scores) == sorted(SIX)
    assert {name: {k: len(v) for k, v in layers.items()} for name, layers in scores.items()} == {
        name: {"1": 16, "3": 12} for name in SIX
    }


def test_the_scores_that_led_to_a_step_are_kept(finished):
    done, _, uri, frame = finished
    baseline = tracking.read_scores(uri, done.record.run.run_id)
    first = tracking.read_scores(uri, done.record.run.run_id, step=1)
    assert list(first) == ["taylor"]
    np.testing.assert_array_equal(first["taylor"]["1"], baseline["taylor"]["1"])
    second = tracking.read_scores(uri, done.record.run.run_id, step=2)
    assert len(second["taylor"]["1"]) == frame["width/1"].iloc[1]  # scored anew after the first cut


def test_the_first_cut_removes_the_lowest_scores(finished):
    done, _, uri, frame = finished
    scores = tracking.read_scores(uri, done.record.run.run_id, step=1)["taylor"]["1"]
    left = int(frame["width/1"].iloc[1])
    kept_after_one_step = set(np.argsort(scores, kind="stable")[16 - left :].tolist())
    assert set(done.network.pruner.kept["1"]) <= kept_after_one_step


def test_the_same_configuration_gives_the_same_numbers_bit_for_bit(finished, folder, tmp_path):
    _, _, _, frame = finished
    measured = [key for key in frame if "accuracy" in key or "loss" in key or "flops" in key]
    for place in (folder, tmp_path):  # with the baseline found on disk, and trained anew
        again = two_steps(place, "force=true")
        again.run()
        for key in measured:
            assert frame[key].tolist() == [row[key] for row in again.record.of(MAIN)]


class Dropped(nn.Sequential):
    """Draws random numbers while it is trained."""

    def __init__(self, num_classes):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, num_classes)
        )


def test_fine_tuning_draws_the_same_whether_the_baseline_was_trained_or_found(tmp_path):
    base = [o for o in (*TINY, *TWO_STEPS) if not o.startswith("model")]
    target = f"model._target_={__name__}.Dropped"
    losses = []
    for _ in range(2):
        done = experiment(
            tmp_path, "model=custom", target, "attributions=none", "force=true", base=base
        )
        done.run()
        losses.append([row["test_loss_after"] for row in done.record.of(MAIN)])
    assert losses[0] == losses[1]


def test_other_criteria_share_the_baseline_and_do_not_compute_it_again(
    finished, folder, monkeypatch
):
    done, *_ = finished
    other = two_steps(folder, "metric=weight_norm")
    assert other.baseline.name == done.baseline.name
    for name in ("fit", "score_network", "score_together"):
        monkeypatch.setattr(stages, name, lambda *_: pytest.fail("it was computed again"))
    record = RunRecorder()
    stages.obtain_baseline(other.setup)
    scores, cost = stages.score_baseline(other.setup, record)
    assert scores.keys() == {"1", "3"}
    assert cost.seconds > 0
    assert (cost.forward, cost.backward) == (0, 0)  # of weight norms
    monkeypatch.undo()
    del other.network.layers["3"]  # other layers are other scores
    assert stages.score_baseline(other.setup, record)[0].keys() == {"1"}


def test_what_scoring_took_is_in_the_curve_and_in_mlflow(finished):
    done, _, _, frame = finished
    samples = len(done.splits.score)
    assert frame["scoring_forward"].tolist()[1:] == [samples] * 2  # taylor: one way and back
    assert frame["scoring_backward"].tolist()[1:] == [samples] * 2
    metrics = done.client.get_run(done.record.run.run_id).data.metrics
    passes = {
        name: (metrics[f"passes/forward_{name}"], metrics[f"passes/backward_{name}"])
        for name in SIX
    }
    assert passes.pop("shapley")[0] > samples
    one_pass = (samples, samples)  # apoz goes along with those that need the way back
    assert passes == {
        "random": (0, 0), "weight_norm": (0, 0), "apoz": one_pass, "sensitivity": one_pass,
        "taylor": one_pass,
    }  # fmt: skip
    for key in ("seconds/baseline_shapley", "memory/peak_bytes_taylor", "cost/scoring_forward"):
        assert metrics[key] >= 0


@pytest.mark.parametrize("keep", ["none", "last", "all"])
def test_models_are_kept_as_far_as_is_wanted(keep, tmp_path):
    done = two_steps(tmp_path, "attributions=none", f"keep={keep}")
    done.run()
    run_id = done.record.run.run_id
    last = {file.path for file in done.client.list_artifacts(run_id, "pruned_model")}
    steps = {file.path for file in done.client.list_artifacts(run_id, "pruned_models")}
    assert bool(last) == (done.output / "pruned_model").exists() == (keep != "none")
    assert steps == (
        {"pruned_models/step_001", "pruned_models/step_002"} if keep == "all" else set()
    )
    assert not done.checkpoint.folder.exists()
    if keep == "all":
        place = done.client.download_artifacts(run_id, "pruned_models/step_001", str(tmp_path))
        model = load_pruned(MLP(4, (1, 8, 8), [16, 12]), place)
        assert model[1].out_features == done.record.of(MAIN)[1]["width/1"]


def test_a_dry_run_writes_nothing(tmp_path):
    done = two_steps(tmp_path, "dry_run=true", "controls.untuned=true")
    before = {key: value.clone() for key, value in done.model.state_dict().items()}
    assert "MLP on 1 x 8 x 8: 2.53 kFLOPs, 1,296 parameters" in dry_run(done.setup)
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db"}  # the tests' own
    assert all(torch.equal(before[key], value) for key, value in done.model.state_dict().items())


def test_seeds_for_weights_order_and_scores_are_separate(finished, tmp_path):
    done, *_ = finished
    moved = two_steps(tmp_path, "seeds.score=5")
    assert moved.baseline.name == done.baseline.name
    assert two_steps(tmp_path, "seeds.init=5").baseline.name != done.baseline.name
    assert two_steps(tmp_path, "seeds.order=5").baseline.name != done.baseline.name
    start = {key: value.clone() for key, value in moved.model.state_dict().items()}
    same = two_steps(tmp_path, "seeds.order=5").model.state_dict()
    assert all(torch.equal(start[key], value) for key, value in same.items())


def test_a_trained_state_dict_replaces_training(finished, tmp_path):
    done, *_ = finished
    model = MLP(4, (1, 8, 8), [16, 12])
    path = tmp_path / "mine.pt"
    torch.save(model.state_dict(), path)
    loaded = two_steps(tmp_path, f"baseline.checkpoint={path}")
    stages.obtain_baseline(loaded.setup)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    assert loaded.baseline.name != done.baseline.name


def test_scores_are_read_behind_the_non_linearity_on_the_score_split(finished):
    done, _, uri, _ = finished
    model = MLP(4, (1, 8, 8), [16, 12])
    load_state(model, done.baseline.folder / "model.safetensors")
    batch = done.splits.score[list(range(32))]
    metric = SensitivityAttributionMetric(model, [batch], nn.functional.cross_entropy, "cpu")
    expected = metric.run(model[3], find_best_evaluation_module=True)
    found = tracking.read_scores(uri, done.record.run.run_id)["sensitivity"]["3"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=one_shot", "schedule.of=units", "schedule.scope=global"],
        ["schedule=linear", "schedule.of=parameters", "schedule.steps=3"],
        ["schedule=geometric", "schedule.scope=global", "schedule.normalise=l2"],
    ],
)
def test_every_schedule_reaches_its_target_with_its_last_step(overrides, tmp_path):
    done = experiment(
        tmp_path, *overrides, "schedule.target=0.4", "finetune=none", "attributions=none"
    )
    done.run()
    removed = [row[f"removed_{done.schedule.of}"] for row in done.record.of(MAIN)]
    assert len(removed) == len(done.schedule.ratios()) + 1
    for reached, wanted in zip(removed, [0, *done.schedule.ratios()], strict=True):
        assert wanted <= reached < wanted + 0.061  # a unit is at most (64 + 12) / 1264 FLOPs


def test_negative_scores_go_layer_by_layer_from_the_last(tmp_path):
    done = experiment(
        tmp_path, "schedule=negative_scores", "metric=taylor_signed", "attributions=none",
        "finetune=none",
    )  # fmt: skip
    done.run()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    last, first = (
        tracking.read_scores(uri, done.record.run.run_id, step)["taylor_signed"] for step in (1, 2)
    )
    assert [list(last), list(first)] == [["3"], ["1"]]
    left = [
        (16, 12),
        (16, (last["3"] >= 0).sum()),
        ((first["1"] >= 0).sum(), (last["3"] >= 0).sum()),
    ]
    assert [(row["width/1"], row["width/3"]) for row in done.record.of(MAIN)] == left
    assert left[1][1] < 12


def test_a_failed_run_is_marked_failed_with_its_error(tmp_path):
    done = experiment(tmp_path, "baseline.training.lr=1e9", "attributions=none")
    with pytest.raises(UserError, match=r"The loss became (nan|inf).*Lower the learning rate"):
        done.run()
    run = done.client.get_run(done.record.run.run_id)
    assert run.info.status == "FAILED"
    assert "The loss became" in run.data.tags["error"]
    assert not (done.baseline.folder / "model.safetensors").exists()


def test_a_job_does_not_inherit_the_threads_of_the_last_one(tmp_path):
    experiment(tmp_path, "threads=2")
    assert torch.get_num_threads() == 2
    experiment(tmp_path, "threads=null")
    assert torch.get_num_threads() == fingerprint.THREADS
    torch.set_num_threads(1)


@pytest.mark.parametrize(("checkout", "git"), [(False, True), (True, False)])
def test_without_checkout_or_git_the_release_is_recorded(checkout, git, monkeypatch, tmp_path):
    if not checkout:
        monkeypatch.setattr(labels, "__file__", str(tmp_path / "pruning_lab" / "record.py"))
    if not git:
        monkeypatch.setattr(labels.shutil, "which", lambda _: None)
    assert labels.git_commit() == f"release {pruning_lab.__version__}"


def test_settings_tell_what_may_be_compared(tmp_path):
    def setting(*overrides):
        built = two_steps(tmp_path, *overrides)
        return labels.setting(built.setup)

    plain = setting()
    for same in (
        "controls.untuned=true",
        "seed=3",
        "metric=weight_norm",
        "attributions=none",
        "baseline.folder=elsewhere",
    ):
        assert setting(same) == plain
    for other in ("schedule.target=0.6", "finetune.lr=0.1", "dataset.noise=0.2",
                  "baseline.training.epochs=1", "model.hidden=[16,13]",
                  "after_cut.recalibrate=9"):  # fmt: skip
        assert setting(other) != plain
