"""experiments/layerwise_robustness in miniature, against removals one by one."""

import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
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


def test_the_mean_is_exact_for_straight_lines_and_without_gaps(experiment):
    grid, mean_rise = experiment["grid"], experiment["mean_rise"]
    assert grid(64, 32).tolist() == list(range(2, 65, 2))
    assert grid(10, 32).tolist() == grid(10, None).tolist() == list(range(1, 11))
    counts = grid(64, 8)
    assert mean_rise(3.0 * counts, counts) == pytest.approx(3 * 65 / 2)
    every = np.random.default_rng(0).random((2, 20))
    np.testing.assert_allclose(mean_rise(every, grid(20, None)), every.mean(1))


def test_the_mean_by_hand(experiment):
    # after 2 and 4 of 4 units 6 and 10: on straight lines 3, 6, 8, 10
    found = experiment["mean_rise"](np.array([6.0, 10.0]), np.array([2, 4]))
    assert found == pytest.approx(27 / 4)


def test_robustness_is_the_mean_over_all_single_removals(experiment, network):
    model, layers, scored, tested = network
    totals = experiment["robustness"](model, layers, scored, tested, draws=2, points=None)
    found = experiment["per_unit"](totals, {"conv": 5, "fc": 7})
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


def test_an_interrupted_run_goes_on(experiment, network, tmp_path):
    model, layers, scored, tested = network
    run = experiment["robustness"]
    whole = run(model, layers, scored, tested, draws=1, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"conv.npz", "fc.npz"}
    (tmp_path / "fc.npz").unlink()
    again = run(model, layers, scored, tested, draws=1, folder=tmp_path)
    for layer, by_criterion in whole.items():
        for name, each in by_criterion.items():
            np.testing.assert_array_equal(each, again[layer][name])


def test_the_table_has_means_with_intervals_beside_the_published(experiment):
    # two layers of 1 and 3 units; totals over two pictures
    found = {
        "one": {name: np.array([[1.0, 3.0], [2.0, 4.0]]) for name in experiment["PUBLISHED"]},
        "two": {name: np.array([[3.0, 1.0], [4.0, 2.0]]) for name in experiment["PUBLISHED"]},
    }
    found["one"]["taylor"] = np.array([[0.0, 0.5]])
    found["two"]["taylor"] = np.array([[2.0, 1.5]])
    frame = experiment["results"](found, {"one": 1, "two": 3})
    table = experiment["table"](frame)
    assert table.index[0] == "Taylor"
    # per unit 0.5 on either picture; the others (1.5 + 3.5) / 4 and (3.5 + 1.5) / 4
    assert table.loc["Taylor"].tolist() == ["0.500 ± 0.000", "", "-0.750 ± 0.000", "0.47"]
    assert table.loc["Random"].tolist() == ["1.250 ± 0.000", "1.000 to 1.500", "0.000 ± 0.000",
                                            "0.48"]  # fmt: skip
    assert table.loc["Shapley, mean + 2 std"].tolist()[2:] == ["", "0.31"]
    layers = frame.set_index(["layer", "criterion"])
    # 1.5 and 3.5 over two pictures: standard error 1, t(0.975, 1) = 12.706
    random = layers.loc[("one", "random")]
    assert random[["units", "rise", "half"]].tolist() == pytest.approx([1, 2.5, 12.706], abs=1e-3)
    assert random[["lowest", "highest"]].tolist() == [2, 3]
    # taylor has 0 and 0.5 there: 1.5 and 3 less, a mean of -2.25 with a standard error of 0.75
    taylor = layers.loc[("one", "taylor")]
    assert taylor[["more", "more_half"]].tolist() == pytest.approx([-2.25, 9.530], abs=1e-3)


def test_the_grid_is_held_against_every_removal(experiment, network):
    model, layers, scored, tested = network
    orders = experiment["orders_of"](model, layers["fc"], scored, "cpu", 1)
    given = (model, layers["fc"], orders, tested, "cpu")
    assert experiment["off_by"](*given, points=7) == 0
    totals = [experiment["layer_totals"](*given, points) for points in (3, None)]
    errors = [abs(totals[0][name].mean() / totals[1][name].mean() - 1) for name in orders]
    assert experiment["off_by"](*given, points=3) == max(errors) > 0


def test_the_command_writes_table_frame_and_figure(experiment, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    small = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(),
        nn.Linear(5, 10),
    )  # fmt: skip
    command = experiment["main"]
    monkeypatch.setitem(command.__globals__, "VGG", lambda *_: small)
    given = "--dataset digits --train 64 --epochs 1 --score 10 --test 10 --samples 2 --points 3"
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["run.py", *given.split(), *places])
    command()
    printed = capsys.readouterr().out
    text = (tmp_path / "out/results.md").read_text()
    assert text in printed
    assert "VGG16, trained for 1 epochs on 64 pictures of digits, " in text
    assert "those of 0 differ by at most " in text
    frame = pd.read_csv(tmp_path / "out/results.csv")
    assert frame.groupby("layer")["units"].first().to_dict() == {"0": 4, "3": 5, "all": 9}
    assert len(frame) == 3 * 8
    for row in frame.query("layer == 'all'").itertuples():
        assert f"{row.rise:.3f} ± {row.half:.3f}" in text
    assert (tmp_path / "out/robustness.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_results_are_whole_and_their_table_is_in_the_readme(experiment):
    frame = pd.read_csv(FOLDER / "results.csv")
    assert set(frame["criterion"]) == set(experiment["PUBLISHED"])
    assert frame["layer"].nunique() == 16
    table = experiment["markdown"](experiment["table"](frame)).strip()
    assert table in (FOLDER / "results.md").read_text()
    assert table in (FOLDER / "README.md").read_text()
