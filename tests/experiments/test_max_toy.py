"""experiments/max_toy gives the published exact values."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/max_toy"
PUBLISHED = json.loads((ROOT / "tests/data/published.json").read_text())["max_toy"]


@pytest.fixture(scope="module")
def experiment() -> dict:
    return runpy.run_path(str(FOLDER / "run.py"))


@pytest.mark.parametrize("loss", ["L1", "MSE"])
def test_shapley_values_are_the_published_exact_ones(experiment: dict, loss: str) -> None:
    published = PUBLISHED[f"exact_shapley_expected_{loss.lower()}_loss"]
    shapley = experiment["scores"](loss)["shapley"]
    np.testing.assert_allclose(shapley, published, rtol=0, atol=5e-8)  # published with 7 decimals
    assert shapley[3] == 0


@pytest.mark.parametrize("loss", ["L1", "MSE"])
def test_the_other_criteria_do_not_see_that_the_fourth_unit_is_unused(
    experiment: dict, loss: str
) -> None:
    scores = experiment["scores"](loss)
    np.testing.assert_array_equal(scores["weight_norm"], PUBLISHED["weight_norm"])
    np.testing.assert_allclose(scores["apoz"], [0.5, 0.5, 1, 1], rtol=1e-12)
    for criterion in ("sensitivity", "taylor", "taylor_signed"):
        np.testing.assert_array_equal(scores[criterion], [0, 0, 0, 0])


def test_the_network_computes_the_maximum(experiment: dict) -> None:
    x = 10 * torch.rand(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        experiment["max_network"]()(x), x.max(dim=1, keepdim=True).values, rtol=0, atol=1e-13
    )


def test_six_points_give_the_moments_of_the_uniform_square(experiment: dict) -> None:
    points, target = (tensor.numpy() for tensor in experiment["quadrature"]())
    np.testing.assert_allclose(points.mean(0), [5, 5], rtol=1e-14)
    np.testing.assert_allclose(points.T @ points / 6, [[100 / 3, 25], [25, 100 / 3]], rtol=1e-14)
    np.testing.assert_allclose([target.mean(), (target**2).mean()], [20 / 3, 50], rtol=1e-14)


def test_the_command_prints_the_readmes_table_and_draws_its_figure(
    experiment: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment["main"](tmp_path)
    table = capsys.readouterr().out.split("\n\n")[0]
    assert table in (FOLDER / "README.md").read_text()
    assert (tmp_path / "max_toy.png").read_bytes().startswith(b"\x89PNG")
