"""experiments/layerwise_robustness in miniature, against removals one by one."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab.datasets import loader

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/layerwise_robustness"


@pytest.fixture(scope="module")
def experiment():
    return runpy.run_path(str(FOLDER / "run.py"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7),
        nn.ReLU(), nn.Linear(7, 3),
    ).double()  # fmt: skip
    model[1].running_mean.normal_()
    data = [TensorDataset(torch.randn(n, 1, 6, 6).double(), torch.randint(3, (n,))) for n in (9, 6)]
    return model.eval(), {"conv": model[0], "fc": model[4]}, *(loader(each, 4) for each in data)


def by_hand(model, behind, order, tested):
    """(samples,): the sum over all removals of what the loss rose by."""
    totals = []
    with torch.no_grad():
        for x, y in tested:
            activation = model[:behind](x)
            before = F.cross_entropy(model[behind:](activation), y, reduction="none")
            total = torch.zeros(len(x)).double()
            for unit in order:
                activation[:, unit] = 0
                total += F.cross_entropy(model[behind:](activation), y, reduction="none") - before
            totals.append(total)
    return torch.cat(totals).numpy()


def test_the_published_figures_are_those_of_the_paper(experiment):
    published = json.loads((ROOT / "tests/data/published.json").read_text())
    known = published["layerwise_robustness_vgg16_cifar10"]
    assert experiment["PUBLISHED"] == {name: known[name] for name in experiment["PUBLISHED"]}
    assert len(experiment["PUBLISHED"]) == 8


def test_robustness_is_the_mean_over_all_single_removals(experiment, network):
    model, layers, scored, tested = network
    found = experiment["robustness"](model, layers, scored, tested, draws=2, points=None)
    assert {name: len(each) for name, each in found.items()} == {
        "weight_norm": 1, "apoz": 1, "sensitivity": 1, "taylor": 1, "taylor_signed": 1,
        "random": 2, "shapley_mean": 2, "shapley_mean_plus_2_std": 2,
    }  # fmt: skip
    places = {"conv": 3, "fc": 6}
    expected = dict.fromkeys(found, 0)
    for name, layer in layers.items():
        for criterion, orders in experiment["orders_of"](model, layer, scored, "cpu", 2).items():
            rises = [by_hand(model, places[name], order, tested) for order in orders]
            expected[criterion] = expected[criterion] + np.stack(rises)
    for criterion, each in found.items():
        np.testing.assert_allclose(each, expected[criterion] / 12, atol=1e-10)
    assert not np.allclose(*found["random"])


def test_the_trapezoid_rule_is_exact_for_straight_lines_and_without_gaps(experiment):
    grid, total_rise = experiment["grid"], experiment["total_rise"]
    assert grid(64, 32).tolist() == list(range(2, 65, 2))
    assert grid(10, 32).tolist() == grid(10, None).tolist() == list(range(1, 11))
    counts = grid(64, 8)
    assert total_rise(3.0 * counts, counts) == pytest.approx(3 * 64 * 65 / 2)
    every = np.random.default_rng(0).random(20)
    assert total_rise(every, grid(20, None)) == pytest.approx(every.sum())


def test_an_interrupted_run_goes_on(experiment, network, tmp_path):
    model, layers, scored, tested = network
    run = experiment["robustness"]
    whole = run(model, layers, scored, tested, draws=1, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"conv.npz", "fc.npz"}
    (tmp_path / "fc.npz").unlink()
    again = run(model, layers, scored, tested, draws=1, folder=tmp_path)
    for name, each in whole.items():
        np.testing.assert_array_equal(each, again[name])


def test_the_table_has_means_with_intervals_beside_the_published(experiment):
    found = {name: np.array([[1.0, 3.0], [2.0, 4.0]]) for name in experiment["PUBLISHED"]}
    found["taylor"] = np.array([[0.5, 0.5]])
    table = experiment["table"](found)
    assert table.index[0] == "taylor"
    assert table.loc["taylor"].tolist() == ["0.500 ± 0.000", "", "0.47"]
    # over two samples, 1.5 and 3.5: standard error 1, t(0.975, 1) = 12.706
    assert table.loc["random"].tolist() == ["2.500 ± 12.706", "2.000 to 3.000", "0.48"]
