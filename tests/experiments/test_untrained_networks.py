"""experiments/untrained_networks: the table is that of the runs."""

import json
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/untrained_networks"
PUBLISHED = json.loads((ROOT / "tests/data/published.json").read_text())


def test_the_table_is_that_of_the_runs():
    steps = pd.read_csv(FOLDER / "report/runs.csv").pivot(index="seed", columns="step")
    text = (FOLDER / "README.md").read_text()
    assert list(steps.index) == [0, 1, 2, 3, 4]
    for seed, row in steps.iterrows():
        accuracy = [f"{100 * row['test_accuracy_after', step]:.2f}" for step in range(3)]
        widths = f"{row['width/1', 2]:.0f}, {row['width/3', 2]:.0f}"
        parameters = f"{row['parameters', 2]:,.0f}"
        assert f"| {seed} | {' | '.join(accuracy)} | {widths} | {parameters} |" in text
    assert (steps["parameters", 0] == 5_707_690).all()


def test_the_published_figures_are_those_of_the_paper():
    known = PUBLISHED["pruning_untrained_networks"]["mnist"]
    before, after = known["accuracy_percent"]
    widths = ", ".join(map(str, known["widths_after"]))
    row = f"| published, MNIST | {before} | | {after} | {widths} | {known['parameters'][1]:,} |"
    assert row in (FOLDER / "README.md").read_text()
