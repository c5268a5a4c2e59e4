"""Several processes give what one gives: shares, steps, scores, and the whole command."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from itertools import chain
from multiprocessing import connection

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab import tracking
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from pruning_lab.experiment import fingerprint, resume
from pruning_lab.profiling.passes import measured
from pruning_lab.provenance import inputs_read
from pruning_lab.records.step import OF_THE_MACHINE
from pruning_lab.runtime import distributed
from pruning_lab.runtime.device import find_device
from pruning_lab.tasks import Classification
from pruning_lab.training.fit import fit
from pruning_lab.training.recipe import Training
from tests.contracts.test_criteria import LAYERS, NAMES, metric, network
from tests.running import TINY, TWO_STEPS, two_steps

TASK = Classification()

CONVNET = ["model=convnet", "~model.hidden", "model.channels=[6,8]", "+model.hidden=12",
           "metric=shapley", "attributions=none", "finetune.epochs=2", "finetune.steps=null",
           "keep=all", "device=cpu"]  # fmt: skip


def child(rank, world, port, path, work):
    torch.cuda.is_available = lambda: False
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": rank}
    os.environ |= {name: str(value) for name, value in (place | {"LOCAL_RANK": rank}).items()}
    with distributed.joined():
        torch.save(work(), path)


def on_ranks(work, folder, world=2):
    """What ``work()`` gives on every rank; as under torchrun all end when one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [folder / f"rank-{rank}.pt" for rank in range(world)]
    processes = [
        multiprocessing.get_context("fork").Process(
            target=child, args=(rank, world, port, path, work)
        )
        for rank, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    left = list(processes)
    while left:
        connection.wait([process.sentinel for process in left])
        left = [process for process in left if process.exitcode is None]
        if any(process.exitcode for process in processes):
            for process in left:
                process.kill()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        return [process.exitcode for process in processes]
    return [torch.load(path, weights_only=False) for path in paths]


# -- shares ----------------------------------------------------------------------------------------


def shared(counts):
    found = []
    for count in counts:
        rows = torch.arange(2 * count, dtype=torch.float64).view(count, 2)
        own = rows[distributed.share(count)]
        found.append((own[:, 0].tolist(), distributed.gathered(own, count)))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_shares_are_disjoint_and_come_back_in_their_order(world, tmp_path):
    counts = [1, 2, 3, 4, 5, 6, 7, 8]
    found = on_ranks(partial(shared, counts), tmp_path, world)
    for count, *each in zip(counts, *found, strict=True):
        whole = [float(number) for number in range(0, 2 * count, 2)]
        own = [numbers for numbers, _ in each]
        assert own == [whole] * world if count < world else [*chain(*own)] == whole
        assert max(map(len, own)) - min(map(len, own)) <= 1
        expected = torch.arange(2.0 * count).double().view(count, 2)
        assert all(torch.equal(gathered, expected) for _, gathered in each)


def test_one_process_has_all_and_decides_all():
    rows = torch.ones(3, 2)
    assert distributed.count() == 1
    assert distributed.leads()
    assert distributed.share(3) == slice(0, 3)
    assert distributed.gathered(rows, 3) is rows
    assert distributed.total(1.5) == 1.5
    assert distributed.agreed(lambda: 7) == 7
    before = torch.get_rng_state()
    distributed.draw_apart(torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


def decided(path):
    def refuse():
        raise UserError(f"no, says {distributed.number()}")

    def append():
        with path.open("a") as file:
            file.write(str(distributed.number()))
        return path.read_text()

    agreed, one_by_one = (
        distributed.agreed(lambda: 10 + distributed.number()),
        distributed.leader_first(append),
    )
    try:
        distributed.agreed(refuse)
    except UserError as error:
        refusal = str(error)
    buffer = torch.tensor([distributed.number()])
    distributed.lead([buffer])
    said = distributed.says("once")
    return (
        agreed,
        one_by_one,
        refusal,
        buffer.item(),
        distributed.total(distributed.number() + 0.5),
        said,
    )


def test_the_leading_rank_decides_and_what_it_refuses_is_refused_by_all(tmp_path):
    first, second = on_ranks(partial(decided, tmp_path / "file"), tmp_path)
    assert first[:5] == (10, "0", "no, says 0", 0, 2.0)
    assert second[:5] == (10, "01", "no, says 0", 0, 2.0)
    assert first[5] + second[5] == 1


def devices():
    settings = {"baseline": {"checkpoint": None, "training": 1}, "model": 1, "task": 1,
                "dataset": {}, "seeds": {"init": 0, "order": 0}}  # fmt: skip
    named = fingerprint.start_determinants(settings, "samples", "net", torch.device("cpu"), 1)
    with pytest.raises(UserError, match="device=cuda:1 is not possible for several processes"):
        find_device("cuda:1")
    return named.get("processes"), find_device("auto").type


def test_the_number_of_processes_belongs_to_what_determines_a_result(tmp_path):
    assert on_ranks(devices, tmp_path) == [(2, "cpu")] * 2


# -- training --------------------------------------------------------------------------------------


class Normed(nn.Module):
    """BatchNorm with maps and without, with momentum and without; a weight that nothing uses, and
    one that the last sample of a batch alone does."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.unused, self.sometimes = nn.Linear(2, 2), nn.Parameter(torch.tensor(0.5))
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Flatten(),
            nn.Linear(12, 5), nn.BatchNorm1d(5, momentum=None, affine=False), nn.Dropout(rate),
            nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False),
        )  # fmt: skip
        self.body[4].bias.requires_grad_(False)

    def forward(self, x):
        out = self.body(x)
        return out + self.sometimes * x[:, 0, :1, 0] if (x[:, 0, 0, 0] > 9).any() else out


def pictures(count=14):
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(count, 1, 4, 4, generator=stream, dtype=torch.float64)
    x[5, 0, 0, 0] = 10.0
    return TensorDataset(x, torch.arange(count) % 3)


def trained(batch_size, rate=0.0):
    torch.manual_seed(0)
    model = Normed(rate).double()
    training = Training(epochs=2, lr=0.1, weight_decay=0.01, batch_size=batch_size)
    optimizer = training.optimizer(model)
    fit(model, optimizer, pictures(), training, TASK, torch.Generator().manual_seed(1), "test")
    momentum = {
        name: optimizer.state[each]["momentum_buffer"].clone()
        for name, each in model.named_parameters()
        if optimizer.state[each].get("momentum_buffer") is not None
    }
    assert all(each.grad is None for each in model.parameters())
    return model.state_dict(), momentum


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 5), (3, 4), (2, 14)])
def test_a_fit_on_several_ranks_is_that_of_one(world, batch_size, tmp_path):
    """Batches of 5, 5, 4; of 4, 4, 4 and 2, fewer than ranks; of all samples."""
    expected = trained(batch_size)
    assert "unused.weight" not in expected[1]
    for each in on_ranks(partial(trained, batch_size), tmp_path, world):
        assert_same(each, expected)


def diverged():
    model = nn.Linear(16, 3).double()
    data = pictures()
    data.tensors[0][0] = torch.nan
    flat = TensorDataset(data.tensors[0].flatten(1), data.tensors[1])
    training = Training(epochs=1, batch_size=14)
    try:
        fit(model, training.optimizer(model), flat, training, TASK, torch.Generator(), "test")
    except UserError as error:
        return str(error)


def test_all_ranks_stop_at_a_loss_that_is_not_finite(tmp_path):
    first, second = on_ranks(diverged, tmp_path)
    assert first == second
    assert "The loss became nan in epoch 1 of test" in first


def test_with_dropout_the_ranks_draw_apart_and_stay_equal(tmp_path):
    first, second = on_ranks(partial(trained, 5, 0.5), tmp_path)
    assert_same(first, second)
    assert not torch.equal(first[0]["body.7.weight"], trained(5, 0.5)[0]["body.7.weight"])


def drawn():
    streams = [torch.Generator().manual_seed(seed) for seed in (4, 4, 5)]
    return [distributed.draw_apart(order) or torch.rand(5) for order in streams]


def test_draws_belong_to_the_rank_and_to_where_the_order_stands(tmp_path):
    (first, again, next_one), (other, *_) = on_ranks(drawn, tmp_path)
    assert torch.equal(first, again)
    assert not torch.equal(first, next_one)
    assert not torch.equal(first, other)


# -- scoring ---------------------------------------------------------------------------------------

SETTINGS = [
    *((name, {}) for name in NAMES),
    *(("taylor", {"reduction": kind}) for kind in ("sum", "mean_plus_2_std", "none")),
    ("shapley", {"sv_samples": 6, "reduction": "mean_plus_2_std", "samples": 9}),
    ("shapley", {"evaluations": 3000, "samples": 10}),
    ("shapley", {"relative_error": 0.5}),
    ("owen_gradient", {"reduction": "none"}),
]


def scored(name, memory=None, sizes=(5, 1, 4), **settings):
    """Scores, their errors and the passes on batches that are even, uneven and too small."""
    stream, model = torch.Generator().manual_seed(1), network()
    x = torch.randn(sum(sizes), 2, 6, 6, generator=stream, dtype=torch.float64)
    target = torch.randint(0, 3, (sum(sizes),), generator=stream)
    made = metric(name, model, list(zip(x.split(sizes), target.split(sizes), strict=True)))
    vars(made).update(settings, **({} if memory is None else {"memory": memory}))
    unit_groups = [units_of_module(model.get_submodule(layer)) for layer in LAYERS]
    with measured(torch.device("cpu")) as cost:
        found = made.estimate(unit_groups, True)
    return [vars(each) for each in found], (cost.forward, cost.backward)


def all_scored():
    return [scored(name, **settings) for name, settings in SETTINGS]


def same_estimates(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            np.testing.assert_allclose(
                np.array(mine[key], float), np.array(value, float), rtol=1e-9, atol=1e-11
            )


def test_scores_and_errors_are_those_of_one_process(tmp_path):
    expected = all_scored()
    for found in on_ranks(all_scored, tmp_path):
        for (mine, _), (theirs, _) in zip(found, expected, strict=True):
            same_estimates(mine, theirs)


@pytest.mark.parametrize("name", ["taylor", "shapley", "owen_gradient"])
def test_passes_are_counted_over_all_ranks_and_parts_of_batches_stay_in_order(name, tmp_path):
    settings = {"memory": 40_000, "reduction": "none", "sizes": (8, 4)}
    expected = scored(name, **settings)
    for scores, passes in on_ranks(partial(scored, name, **settings), tmp_path):
        same_estimates(scores, expected[0])
        assert passes == pytest.approx(expected[1], rel=0.02)  # what a batch takes once, each takes


def timed():
    return scored("shapley", seconds=0.05)[0]


def test_with_a_limit_of_time_one_rank_decides_for_all(tmp_path):
    first, second = on_ranks(timed, tmp_path)
    same_estimates(first, second)


# -- the whole command -----------------------------------------------------------------------------


def killed(folder):
    """Ends the leading process when an epoch of the first step is on the disk."""
    # the command that resumes does not import the tests: their files must not be recorded
    inputs_read.inputs = dict
    write, resume.MOST = resume._write, float("inf")

    def kill(path, *content):
        write(path, *content)
        if path.name == "main-step-001-epochs.safetensors":
            os.kill(os.getpid(), signal.SIGKILL)

    resume._write = kill
    two_steps(folder, *CONVNET).run()


def curves(folder):
    frame = tracking.read_runs(f"sqlite:///{folder / 'mlflow.db'}", "pruning_lab")
    return frame.drop(columns=["run_id", "baseline", *OF_THE_MACHINE], errors="ignore")


def kept(folder):
    """Which units were left after every step."""
    paths = sorted((folder / "mlruns").rglob("pruned_models/*/recipe.json"))
    return [json.loads(path.read_text())["kept"] for path in paths]


def test_the_command_under_torchrun_prunes_what_one_process_prunes_and_goes_on_when_killed(
    tmp_path,
):
    one, several, again = (tmp_path / name for name in ("one", "several", "again"))
    for folder in (one, several, again):
        folder.mkdir()
    two_steps(one, *CONVNET).run()
    accuracies = on_ranks(lambda: two_steps(several, *CONVNET).run(), tmp_path)
    assert accuracies[0] == accuracies[1]
    found, expected = curves(several), curves(one)
    passes = [each.pop("scoring_forward") for each in (found, expected)]
    np.testing.assert_allclose(*passes, rtol=0.02)  # what a batch takes once, each rank takes
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
    assert kept(several) == kept(one)
    assert len(kept(one)) == 2

    assert on_ranks(partial(killed, again), tmp_path)[0] == -signal.SIGKILL
    assert curves(again).empty
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "pruning_lab", *TINY, *TWO_STEPS, *CONVNET],
        cwd=again, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Going on where an earlier try was cut off") == 1
    assert done.stdout.count("Step 2 of 2: ") == 1
    pd.testing.assert_frame_equal(curves(again), curves(several), check_exact=True)
    assert kept(again) == kept(several)
    assert not list((again / "checkpoints").glob("*/*"))
    (output,) = (again / "outputs").glob("*/*")
    assert (output / "pruned_model" / "recipe.json").exists()
