"""experiments/low_data: the table is that of the runs."""

from pathlib import Path

import pandas as pd
import pytest

from pruning_lab.compare import by_block, comparable, measure_runs
from pruning_lab.compare.report import mean_and_half_width
from tests.experiments.test_compare_criteria import LABELS

FOLDER = Path(__file__).parents[2] / "experiments/low_data"


@pytest.mark.parametrize("metric", ["random", "apoz", "sensitivity", "taylor", "weight_norm"])
def test_the_table_is_that_of_the_runs(metric):
    (runs,) = comparable(pd.read_csv(FOLDER / "report/runs.csv")).values()
    assert (runs.groupby("metric")["block"].nunique() == 8).all()
    columns = ["area_flops_untuned", "accuracy_4x_untuned", "area_flops_after", "accuracy_4x_after"]
    tables = [100 * by_block(measure_runs(runs), column) for column in columns]
    cells = " | ".join(mean_and_half_width(table[metric]) for table in tables)
    assert f"| {LABELS[metric]} | {cells} |" in (FOLDER / "README.md").read_text()
