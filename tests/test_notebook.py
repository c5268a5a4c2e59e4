"""The notebooks read a sweep back from MLflow and draw it; without one they make it."""

import runpy
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from pruning_lab.tracking import read_runs
from tests.running import two_steps

FOLDER = Path(__file__).parents[1] / "notebooks"
PICTURES = {"compare_criteria": 3, "score_histograms": 3}
"""Curves over FLOPs and parameters, widths; histograms, sorted scores, rank correlation."""


def executed(name, folder):
    """The outputs of a notebook that runs in ``folder``."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without results
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def of_kind(outputs, kind):
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*PICTURES, "layerwise_robustness"}


@pytest.mark.parametrize("name", PICTURES)
def test_the_notebook_draws_the_runs_of_a_sweep(name, tmp_path, monkeypatch):
    criteria = ("taylor", "weight_norm")
    for criterion in criteria:
        two_steps(tmp_path, f"metric={criterion}").run()
    monkeypatch.setenv("PRUNING_LAB_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    outputs = executed(name, tmp_path)
    assert len(of_kind(outputs, "image/png")) == PICTURES[name]
    tables = of_kind(outputs, "text/html")
    if name == "compare_criteria":
        runs = read_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "pruning_lab")
        last = runs[runs["step"] == runs["step"].max()]["test_accuracy_after"]
        assert all(criterion in tables[0] for criterion in criteria)
        assert all(f"→ {100 * accuracy:.1f}" in tables[1] for accuracy in last)
    else:
        assert "spearman" in tables[0]


def test_without_runs_the_notebook_makes_some(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("PRUNING_LAB_TRACKING_URI", uri)
    monkeypatch.setenv("PRUNING_LAB_EXPERIMENT", "mine")
    outputs = executed("compare_criteria", tmp_path)
    runs = read_runs(uri, "mine")
    assert runs.groupby("metric")["seed"].nunique().to_dict() == {
        "random": 3, "shapley": 3, "taylor": 3,
    }  # fmt: skip
    # two pairs of curves, differences, ranks, widths
    assert len(of_kind(outputs, "image/png")) == 2 + 2 + 1
    words = " ".join(of_kind(outputs, "text/markdown"))
    assert "By mean accuracy after fine-tuning," in words


def test_the_frame_of_a_robustness_study_is_drawn(tmp_path, monkeypatch):
    study = runpy.run_path(str(FOLDER.parent / "experiments/layerwise_robustness/run.py"))
    totals = {
        layer: {
            name: np.array([[place + 1.0, 2 * place + 1.0]]) * scale
            for place, name in enumerate(study["PUBLISHED"])
        }
        for layer, scale in (("a", 4), ("b", 6))
    }
    frame = study["results"](totals, {"a": 4, "b": 6})
    frame.to_csv(tmp_path / "results.csv")
    monkeypatch.setenv("PRUNING_LAB_LAYERWISE", str(tmp_path))
    outputs = executed("layerwise_robustness", tmp_path)
    assert len(of_kind(outputs, "image/png")) == 1
    table, ranks = of_kind(outputs, "text/html")
    # the second criterion: 2 and 3 per unit on the two pictures, t(0.975, 1) = 12.706 times 0.5
    assert "<th>Random</th>\n      <td>2.500 ± 6.353</td>" in table
    assert "<th>Shapley, mean + 2 std</th>\n      <td>8</td>\n      <td>8</td>" in ranks
