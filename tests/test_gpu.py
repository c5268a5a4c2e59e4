"""On a GPU everything is as on the CPU: `make test-gpu`."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.experiment.parts import build_model
from pruning_lab.partial_forward.small_maps import faster
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.saved_model import load_pruned
from pruning_lab.records.step import MAIN
from pruning_lab.runtime.device import find_device
from pruning_lab.tasks import Classification
from pruning_lab.tracking.write import Run
from tests.contracts.test_criteria import LAYERS, NAMES, data, metric, network
from tests.experiment.test_resume import Cut
from tests.running import two_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="make test-gpu, on a GPU"),
]
GPU = "cuda"


def scores(name, device):
    model = network().to(device)
    criterion = metric(name, model, DataLoader(data(), 5), device=device)
    unit_groups = [units_of_module(model.get_submodule(layer)) for layer in LAYERS]
    found = criterion.estimate(unit_groups, True)
    return [(each.scores, each.error) for each in found]


@pytest.mark.parametrize("name", NAMES)
def test_a_criterion_gives_the_scores_and_errors_of_the_cpu(name):
    for (mine, error), (theirs, other) in zip(scores(name, GPU), scores(name, "cpu"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
        assert (error is None) == (other is None)
        if error is not None:
            np.testing.assert_allclose(error, other, rtol=1e-6, atol=1e-12)


def test_float32_is_float32():
    """torch's default for convolutions are factors of ten bits, which is the third digit."""
    found = []
    for device in (GPU, "cpu"):
        model = network().float().to(device)
        batches = [(x.float(), target) for x, target in DataLoader(data(), 5)]
        found.append(metric("taylor", model, batches, device=device).run(model[4]))
    np.testing.assert_allclose(*found, rtol=1e-5)


def pruned(device):
    """The network after a step of SGD, a cut of two layers, and another step."""
    torch.manual_seed(1)
    model = network().to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0  # a GPU draws others
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    pruner = Pruner(model, (2, 6, 6), device, optimizer)
    x, target = (each.to(device) for each in next(iter(DataLoader(data(), 12))))

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    step()
    pruner.prune_model(model[0], [1, 3])
    pruner.prune_model(model[9], [0, 2])
    step()
    return model.eval(), model(x)


def test_pruning_and_the_steps_around_it_are_those_of_the_cpu():
    (mine, output), (theirs, expected) = pruned(GPU), pruned("cpu")
    assert mine[0].weight.shape == (2, 2, 3, 3)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name].cpu(), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-9, atol=1e-12)


def test_a_run_uses_the_gpu_and_its_model_loads_on_the_cpu(tmp_path):
    experiment = two_steps(tmp_path, "metric=shapley", "device=auto", "attributions=none")
    experiment.run()
    assert next(experiment.model.parameters()).device.type == GPU
    assert experiment.record.of(MAIN)[1]["scoring_peak_bytes"] > 0
    config, splits = experiment.config.model, experiment.splits
    loaded = load_pruned(
        build_model(config, splits, Classification()), tmp_path / "outputs" / "pruned_model"
    )
    x = torch.stack([splits.test[place][0] for place in range(8)])
    with torch.no_grad():
        expected = experiment.model.eval()(x.to(GPU)).cpu()
        torch.testing.assert_close(loaded.eval()(x), expected, rtol=1e-4, atol=1e-5)


def cut_at(number, own):
    count = iter(range(1000))

    def call(*given):
        if next(count) == number:
            raise Cut
        own(*given)

    return call


def test_a_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    """Sums on a GPU differ in their last bits from run to run."""
    settings = ("device=cuda", "attributions=none", "finetune.epochs=2", "finetune.steps=null")
    whole = two_steps(tmp_path / "whole", *settings)
    whole.run()
    own = Run.metrics
    monkeypatch.setattr(Run, "metrics", cut_at(2, own))
    with pytest.raises(Cut):
        two_steps(tmp_path / "cut", *settings).run()
    monkeypatch.setattr(Run, "metrics", own)
    cut = two_steps(tmp_path / "cut", *settings)
    cut.run()
    for mine, theirs in zip(cut.record.of(MAIN), whole.record.of(MAIN), strict=True):
        assert mine["removed_flops"] == theirs["removed_flops"]
        assert mine["test_loss_after"] == pytest.approx(theirs["test_loss_after"], rel=1e-3)


def test_a_gpu_is_found():
    assert find_device("auto").type == GPU


def test_maps_of_few_places_are_left_to_the_gpu():
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1)
    assert faster(copy.deepcopy(convolution), (2, 2)) is not None
    assert faster(convolution.to(GPU), (2, 2)) is None
