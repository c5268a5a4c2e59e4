"""The notebook reads a sweep back from MLflow and draws it."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.experiment import two_steps

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "compare_criteria.ipynb"


def test_the_notebook_draws_the_runs_of_a_sweep(tmp_path, monkeypatch):
    results = {m: two_steps(tmp_path, f"metric={m}").run() for m in ("taylor", "weight_norm")}
    monkeypatch.setenv("PRUNING_LAB_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without results
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 5  # two pairs of curves, widths, histograms, rank correlation
    tables = [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    for criterion, accuracy in results.items():
        assert all(criterion in table for table in tables[:2])
        assert f"{accuracy:.1%}" in tables[1]
