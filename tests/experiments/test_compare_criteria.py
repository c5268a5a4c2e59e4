"""experiments/compare_criteria, low_data, README: what they say is what the records say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.compare_criteria import analyse, tables
from experiments.compare_criteria.biases import RESULT
from experiments.compare_criteria.records import FEW, LAYERWISE, LONG, NONE, STEPWISE, Block
from pruning_lab.compare.statistics import half_width

ROOT = Path(__file__).parents[2]


def words_of(path):
    return " ".join((ROOT / path / "README.md").read_text().split())


PAGE, LOW_DATA, README = (
    words_of(path) for path in ("experiments/compare_criteria", "experiments/low_data", "")
)


@pytest.fixture(scope="module")
def block():
    return Block("convnet")


@pytest.fixture(scope="module")
def contrasts():
    return tables.read("contrasts").query("block == 'convnet'").set_index("contrast")


def test_twelve_networks_were_pruned_from_the_start_that_all_criteria_share(block):
    assert block.networks == list(range(12))
    for _, own in block.rows.groupby("network"):
        first = own[own["step"] == 0]
        assert first["test_accuracy_after"].nunique() == 1
        path = block.folder / "convnet" / f"{own['network'].iloc[0]:02d}.npz"
        with np.load(path) as kept:
            rows = first["pictures"].to_numpy()
            assert not kept["correct"][rows[rows > 0]].any()  # as the first row, picture by picture


def test_the_contrasts_are_those_of_the_records(block, contrasts):
    found = analyse.contrasts(block).set_index("contrast")
    pd.testing.assert_frame_equal(found, contrasts, rtol=1e-4, check_dtype=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["summary", "secondary", "classes", "regret", "draws", "claim"])
def test_all_results_are_those_of_the_records(block, name):
    found, written = getattr(analyse, name)(block), tables.read(name)
    own = written[written.get("block", block.name) == block.name].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, own, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize("table", tables.page())
def test_the_page_has_the_tables_of_the_results(table):
    assert table in (ROOT / "experiments/compare_criteria/README.md").read_text()


def test_the_other_pages_have_theirs():
    assert tables.readme() in (ROOT / "README.md").read_text()
    page = (ROOT / "experiments/low_data/README.md").read_text()
    assert tables.claim() in page
    assert tables.layerwise("convnet") in page
