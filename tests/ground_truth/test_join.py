"""Results of several networks in one table."""

from pathlib import Path

import pandas as pd
import pytest

from pruning_lab.errors import UserError
from pruning_lab.ground_truth.join import join, main
from pruning_lab.ground_truth.tables import RANDOM


def results(folder, quantiles, layers=("one", "two"), **columns):
    """What the command writes of a network."""
    folder.mkdir(parents=True)
    rows = [(name, value, float("nan")) for name, value in quantiles.items()]
    rows += [(RANDOM, value, float(order)) for order, value in enumerate((0.2, 0.5, 0.8))]
    table = pd.DataFrame(
        [
            {"criterion": name, "layer": layer, "units": 4, "order": order, "points": 3.0,
             "nats": 0.1, "quantile": value, "points_vs_random": 10 * value - 5,
             "nats_vs_random": value - 0.5, "reverse": 1 - value}
            for layer in layers for name, value, order in rows
        ]
    )  # fmt: skip
    table.to_csv(folder / "layers.csv", index=False)
    costs = [
        {"criterion": n, "forward": 2, "backward": 0, "seconds": 1} for n in (*quantiles, RANDOM)
    ]
    pd.DataFrame(costs).assign(**columns).to_csv(folder / "truth.csv", index=False)
    return folder


@pytest.fixture
def folders(tmp_path):
    return [results(tmp_path / str(n), {"taylor": 0.1 * n, "apoz": 0.6}) for n in (1, 2, 3)]


def test_networks_are_averaged_and_drawn(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["join", *map(str, folders), "--output", str(out)])
    main()
    files = {path.name for path in Path(out).iterdir()}
    assert files == {"networks.md", "networks.csv", "quality_and_cost.png", "harm_by_layer.png"}
    table = pd.read_csv(out / "networks.csv").set_index("criterion")
    assert table.loc["taylor", "quantile"] == pytest.approx(0.2)
    # Student's t for three networks is 4.303; their deviation 0.1, over the root of 3
    assert table.loc["taylor", "nats_vs_random_high"] == pytest.approx(-0.3 + 0.2484, abs=1e-4)
    assert table.loc["taylor", ["networks", "layers"]].tolist() == [3, 2]
    assert "3 networks (1, 2, 3)" in (out / "networks.md").read_text()
    assert "| Taylor | 3 | 2 | 0.20 (" in capsys.readouterr().out


def test_networks_of_other_layers_have_no_figure_by_layer(folders, tmp_path):
    folders.append(results(tmp_path / "4", {"taylor": 0.1, "apoz": 0.2}, layers=("three",)))
    table = join(folders, tmp_path / "out")
    assert table.set_index("criterion").loc["taylor", "networks"] == 4
    assert not (tmp_path / "out" / "harm_by_layer.png").exists()


def test_the_measure_of_the_task_is_named(tmp_path):
    """That of the old versions where none is recorded."""
    for name, columns in (("old", {}), ("own", {"measure_label": "hits"})):
        folders = [results(tmp_path / name / n, {"taylor": 0.1}, **columns) for n in "12"]
        join(folders, tmp_path / name)
        text = (tmp_path / name / "networks.md").read_text()
        assert f"vs random: {columns.get('measure_label', 'accuracy')} lost and rise" in text


def test_what_cannot_be_joined_is_refused(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="give two or more, each once"):
        join(folders[:1], tmp_path / "out")
    with pytest.raises(UserError, match="give two or more, each once"):
        join([folders[0], folders[0]], tmp_path / "out")
    with pytest.raises(UserError, match=r"has no layers\.csv; give output folders"):
        join([folders[0], tmp_path], tmp_path / "out")
    hits = results(tmp_path / "5", {"taylor": 0.1, "apoz": 0.6}, measure_label="hits")
    with pytest.raises(UserError, match=r"several measures \(accuracy, hits\)"):
        join([folders[0], hits], tmp_path / "out")
    other = results(tmp_path / "4", {"taylor": 0.1})
    with pytest.raises(UserError, match="differ in apoz: judge all networks by the same"):
        join([folders[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", ["join", str(folders[0])])
    with pytest.raises(SystemExit, match=r"truth\.join: folders="):
        main()
