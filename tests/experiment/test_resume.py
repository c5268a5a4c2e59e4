"""A run that is cut off anywhere goes on where it was, and ends as if nothing had happened."""

import json
import multiprocessing
import os
import signal

import pandas as pd
import pytest
import torch
from torch import nn

from pruning_lab import tracking
from pruning_lab.attributions import RandomAttributionMetric
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.errors import UserError
from pruning_lab.experiment import recorder, resume, stages
from pruning_lab.experiment.resume import DiskEpochStore, DiskStepStore
from pruning_lab.records import per_sample
from pruning_lab.records.step import OF_THE_MACHINE
from pruning_lab.tasks import Classification
from pruning_lab.training.fit import NullEpochStore, fit
from pruning_lab.training.recipe import Training
from tests.running import in_processes, two_steps

TASK = Classification()

CUT = ["metric=shapley", "attributions=none", "finetune.epochs=3", "controls.untuned=true",
       "controls.scratch=true", "keep=all"]  # fmt: skip
STEP_1 = "main-step-001-epochs.safetensors"


class Cut(BaseException):
    """What nothing catches: as good as a kill, within this process."""


def curves(folder):
    frame = tracking.read_runs(f"sqlite:///{folder / 'mlflow.db'}", "pruning_lab")
    return frame.drop(columns=["run_id", *OF_THE_MACHINE], errors="ignore")


def answers(folder):
    """What each test picture was answered at every stage, in its order."""
    (path,) = (folder / "mlruns").rglob(per_sample.FILE)
    found = per_sample.read(path)
    return [(key, found.correct[key].tolist(), found.loss[key].tolist()) for key in found.correct]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The curves of a run that nothing disturbs, and the number of its checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "MOST", float("inf"))  # every epoch is kept
        patch.setattr(resume, "_write", counted(resume._write, written.append))
        two_steps(folder, *CUT).run()
    return curves(folder), [path.name for path in written], answers(folder)


def counted(write, tell):
    def told(path, *content):
        tell(path)
        write(path, *content)

    return told


def test_every_epoch_and_step_is_written_down(undisturbed):
    _, written, _ = undisturbed
    assert written == [
        *["training.safetensors"] * 4,
        "main.safetensors",
        *[STEP_1] * 2, "main.safetensors",
        *[STEP_1.replace("1", "2")] * 2, "main.safetensors",
        *["untuned.safetensors"] * 3,
        *["scratch-step-000-epochs.safetensors"] * 4, "scratch.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "after"),
    [*((number, True) for number in range(19)), *((number, False) for number in (0, 5, 10, 18))],
)
def test_a_run_that_is_cut_off_at_any_checkpoint_ends_with_the_same_curve(
    number, after, undisturbed, tmp_path, monkeypatch
):
    expected, written, answered = undisturbed
    assert len(written) == 19
    count, write = iter(range(1000)), resume._write

    def cut(*content):
        now = next(count) == number
        if now and not after:
            raise Cut
        write(*content)
        if now:
            raise Cut

    monkeypatch.setattr(resume, "MOST", float("inf"))
    monkeypatch.setattr(resume, "_write", cut)
    with pytest.raises(Cut):
        two_steps(tmp_path, *CUT).run()
    assert curves(tmp_path).empty  # no half result looks like a whole one
    again = two_steps(tmp_path, *CUT)
    again.run()
    pd.testing.assert_frame_equal(curves(tmp_path), expected, check_exact=True)
    assert answers(tmp_path) == answered
    assert whole(again) == 1
    assert not again.checkpoint.folder.exists()


def whole(done):
    """How many runs there are, after checking that the one at hand has all points, once."""
    number = done.client.get_experiment_by_name("pruning_lab").experiment_id
    run_id = done.record.run.run_id
    for track, steps in (("", 3), ("untuned_", 3), ("scratch_", 1)):
        key = f"accuracy/{track}test_accuracy_after"
        assert len(done.client.get_metric_history(run_id, key)) == steps
    for key in ("seconds/baseline_shapley", "cost/latency_ms"):
        points = done.client.get_metric_history(run_id, key)
        assert len({point.step for point in points}) == len(points)
    files = {file.path for file in done.client.list_artifacts(run_id, "scores")}
    assert files == {f"scores/{name}.npz" for name in (
        "baseline", "step_001", "step_002", "untuned_step_001", "untuned_step_002")}  # fmt: skip
    models = {file.path for file in done.client.list_artifacts(run_id, "pruned_models")}
    assert models == {"pruned_models/step_001", "pruned_models/step_002"}
    return len(done.client.search_runs([number]))


def run(folder):
    torch.set_num_threads(1)
    two_steps(folder, *CUT).run()


def killed(folder):
    """Ends the process, as SIGKILL does, when the first step is on the disk."""
    write = resume._write

    def kill(path, *content):
        write(path, *content)
        if path.name == STEP_1:
            os.kill(os.getpid(), signal.SIGKILL)

    resume._write, resume.MOST = kill, float("inf")
    run(folder)


def test_a_killed_process_leaves_no_lock_behind(undisturbed, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    two_steps(tmp_path, *CUT).run()
    pd.testing.assert_frame_equal(curves(tmp_path), undisturbed[0], check_exact=True)


def test_what_is_finished_is_not_done_again_but_by_force(tmp_path, caplog, monkeypatch):
    settings = ["attributions=none"]
    first = two_steps(tmp_path, *settings)
    accuracy = first.run()
    again = two_steps(tmp_path, *settings)
    monkeypatch.setattr(stages, "obtain_baseline", lambda _: pytest.fail("it was done again"))
    with caplog.at_level("INFO"):
        assert again.run() == accuracy
    monkeypatch.undo()
    assert f"Finished already: run {first.record.run.run_id}" in caplog.text
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}" in caplog.text
    forced = two_steps(tmp_path, *settings, "force=true")
    assert forced.run() == accuracy
    assert forced.record.run.run_id != first.record.run.run_id
    assert curves(tmp_path)["step"].tolist() == [0, 1, 2]  # a newer run repeats the first


def test_jobs_of_the_same_configuration_do_not_meet(tmp_path):
    assert in_processes(3, run, tmp_path) == [0, 0, 0]
    client = tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    number = client.get_experiment_by_name("pruning_lab").experiment_id
    assert [each.info.status for each in client.search_runs([number])] == ["FINISHED"]


def test_force_forgets_what_an_earlier_try_left(tmp_path, monkeypatch):
    monkeypatch.setattr(DiskStepStore, "scores", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        two_steps(tmp_path, "attributions=none").run()
    monkeypatch.undo()
    forced = two_steps(tmp_path, "attributions=none", "force=true")
    forced.run()
    number = forced.client.get_experiment_by_name("pruning_lab").experiment_id
    statuses = [each.info.status for each in forced.client.search_runs([number])]
    assert sorted(statuses) == ["FAILED", "FINISHED"]


@pytest.mark.parametrize(
    "name", ["main.safetensors", "run.json", "main-step-001-epochs.safetensors"]
)
def test_a_damaged_checkpoint_says_what_to_delete(name, tmp_path, monkeypatch):
    done = two_steps(tmp_path, "attributions=none")
    done.checkpoint.begin(False, {})
    path = done.checkpoint.folder / name
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=rf"{path} is damaged .*Delete {done.checkpoint.folder}"):
        done.run()


def test_scores_that_are_gone_are_not_made_of_another_network(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder.MlflowRecorder, "conclude", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        two_steps(tmp_path, "attributions=none").run()
    monkeypatch.undo()
    again = two_steps(tmp_path, "attributions=none")
    (again.checkpoint.folder / "main-step-002-scores.npz").unlink()
    with pytest.raises(UserError, match="scores of a finished step of the track 'main' are miss"):
        again.run()


class Noisy(nn.Sequential):
    """Has statistics of its batches, and draws random numbers."""

    def __init__(self):
        super().__init__(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )


def data():
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(65, 6, generator=stream)
    return torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine", "one_cycle"])
def test_a_training_goes_on_bit_for_bit_behind_every_epoch(lr_schedule, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "MOST", float("inf"))
    training = Training(epochs=4, lr=0.1, batch_size=16, lr_schedule=lr_schedule, weight_decay=1e-3)
    files = {}

    class Copied(DiskEpochStore):
        def keep(self, done, *state):
            super().keep(done, *state)
            files[done] = self.path.read_bytes()

    def trained(kept, seed):
        torch.manual_seed(0)
        model = Noisy()
        torch.manual_seed(seed)  # a checkpoint brings the random streams along
        optimizer, order = training.optimizer(model), torch.Generator().manual_seed(seed)
        fit(model, optimizer, data(), training, TASK, order, "test", kept)
        momenta = [optimizer.state[each]["momentum_buffer"] for each in model.parameters()]
        return [*model.state_dict().values(), *momenta]

    plain = trained(NullEpochStore(), 5)
    whole = trained(Copied(tmp_path / "whole.safetensors"), 5)
    assert list(files) == [1, 2, 3]
    for epoch, content in files.items():
        path = tmp_path / f"{epoch}.safetensors"
        path.write_bytes(content)
        kept = DiskEpochStore(path)
        found = trained(kept, 99)
        assert kept.seconds > 0
        for one, two, three in zip(plain, whole, found, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)


def test_epochs_are_written_as_seldom_as_their_cost_asks(tmp_path, monkeypatch):
    """A clock by hand: an epoch takes 1 second, writing 0.09: written again after 4.5 seconds."""
    now, written = [0.0], []
    monkeypatch.setattr(resume.time, "perf_counter", lambda: now[0])

    def write(path, tensors, about):
        now[0] += 0.09
        written.append(about["epochs"])

    monkeypatch.setattr(resume, "_write", write)
    kept, model = DiskEpochStore(tmp_path / "x"), Noisy()
    optimizer, order = torch.optim.SGD(model.parameters()), torch.Generator()
    kept.restore(model, optimizer, order)
    for epoch in range(1, 14):
        now[0] += 1
        kept.keep(epoch, model, optimizer, order)
    assert written == [1, 6, 11]


def test_a_checkpoint_says_to_people_what_it_is_of(tmp_path):
    done = two_steps(tmp_path, "metric=weight_norm", "seed=3")
    with recorder.recording(done.setup, done.output):
        about = json.loads((done.checkpoint.folder / "run.json").read_text())
    assert about["of"]["metric"] == "weight_norm"
    assert about["of"]["dataset"] == "synthetic"
    assert about["start"]["seeds"] == {"init": 3, "order": 3}


def cut_off(folder, monkeypatch, *overrides, name="main.safetensors", number=2):
    """A run that ends, as far as this process can, when this file is written for this time."""
    count, write = iter(range(1000)), resume._write

    def cut(path, *content):
        write(path, *content)
        if path.name == name and next(count) == number:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(resume, "_write", cut)
        with pytest.raises(Cut):
            two_steps(folder, *overrides).run()


def test_a_model_of_a_step_that_is_gone_is_not_replaced_by_another(tmp_path, monkeypatch, caplog):
    cut_off(tmp_path, monkeypatch, "attributions=none")  # behind the second step
    again = two_steps(tmp_path, "attributions=none", "keep=all")
    again.run()
    files = again.client.list_artifacts(again.record.run.run_id, "pruned_models")
    assert [file.path for file in files] == ["pruned_models/step_002"]
    assert "Model 1 was not saved: keep=all was not set at that step." in caplog.text


def test_a_forced_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    settings = ["attributions=none", "force=true"]
    two_steps(tmp_path, "attributions=none").run()
    cut_off(tmp_path, monkeypatch, *settings, number=1)
    again = two_steps(tmp_path, *settings)
    token = again.checkpoint.begun(forced=True)
    again.run()
    assert again.client.get_run(again.record.run.run_id).data.tags["checkpoint"] == token
    number = again.client.get_experiment_by_name("pruning_lab").experiment_id
    statuses = [each.info.status for each in again.client.search_runs([number])]
    assert statuses == ["FINISHED", "FINISHED"]
    third = two_steps(tmp_path, *settings)  # that one is finished: force begins anew
    assert third.checkpoint.begun(forced=True) is None


class Drawn(RandomAttributionMetric):
    """A user's criterion that draws from torch's own stream."""

    def _estimate(self, unit_groups, behind, progress):
        return [Estimate(torch.rand(len(each.first.weight)).numpy()) for each in unit_groups]


def test_a_criterion_that_draws_from_torchs_stream_draws_the_same_when_it_goes_on(
    tmp_path, monkeypatch
):
    settings = ["metric=random", f"metric._target_={__name__}.Drawn", "attributions=none"]
    two_steps(tmp_path / "plain", *settings).run()
    cut_off(tmp_path / "cut", monkeypatch, *settings, number=1)  # before step 2 is scored
    torch.manual_seed(77)
    two_steps(tmp_path / "cut", *settings).run()
    expected = curves(tmp_path / "plain")
    pd.testing.assert_frame_equal(curves(tmp_path / "cut"), expected, check_exact=True)


def test_a_full_memory_is_not_called_damage(tmp_path):
    (tmp_path / "file").touch()
    for error in (MemoryError(), torch.OutOfMemoryError(), OSError(5, "Input/output error")):
        with pytest.raises(type(error)), resume.undamaged(tmp_path / "file", tmp_path):
            raise error
