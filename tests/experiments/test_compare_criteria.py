"""experiments/compare_criteria: the committed figures are those of the committed runs."""

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data import Subset

from pruning_lab.attributions import TaylorAttributionMetric
from pruning_lab.compare import between_scorings, by_block, comparable, measure_runs, sections
from pruning_lab.compare.report import mean_and_half_width
from pruning_lab.datasets import loader
from pruning_lab.datasets.synthetic import synthetic
from pruning_lab.models.convnet import ConvNet

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/compare_criteria"
LABELS = {"random": "Random", "apoz": "APoZ", "sensitivity": "Sensitivity", "taylor": "Taylor",
          "weight_norm": "Weight norm", "shapley samples=16": "Shapley, 16 pictures",
          "shapley samples=64": "Shapley, 64 pictures"}  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    (frame,) = comparable(pd.read_csv(FOLDER / "report/runs.csv")).values()
    return frame


def test_every_criterion_ran_on_every_network(runs):
    assert runs["run_id"].nunique() == 7 * 12
    assert (runs.groupby("metric")["block"].nunique() == 12).all()


@pytest.mark.parametrize("readme", [FOLDER / "README.md", ROOT / "README.md"])
def test_the_tables_are_those_of_the_runs(runs, readme):
    measured, text = measure_runs(runs), readme.read_text()
    columns = ["area_flops_untuned", "accuracy_4x_untuned", "area_flops_after", "accuracy_4x_after"]
    tables = [100 * by_block(measured, column) for column in columns]
    for metric, label in LABELS.items():
        cells = " | ".join(mean_and_half_width(table[metric]) for table in tables)
        assert re.search(rf"\| {label} \| {re.escape(cells)} \|", text), (metric, cells)


def test_the_words_are_those_of_the_runs(runs):
    text = (FOLDER / "report/report.md").read_text()
    for section in sections(runs):
        for sentence in section.words:
            assert sentence in text


def test_scorings_again_are_compared_layer_by_layer():
    study = runpy.run_path(str(FOLDER / "again.py"))
    splits = synthetic(train=40, score=40, val=20, test=40)
    torch.manual_seed(0)
    model = ConvNet(
        splits.num_classes, splits.in_channels, splits.input_size, channels=(4, 6), hidden=8
    ).eval()
    other = Subset(splits.test, range(40))
    found = study["agreement"](model, splits.score, other, splits)
    assert len(found) == 5 * 2 * 3
    same = found[found["what"] == "other draws"].set_index("criterion")["spearman"]
    assert same.drop("shapley").dropna().tolist() == pytest.approx([1] * 12)
    assert (same["shapley"] < 1).any()
    layers = {"0": model[0], "4": model[4], "9": model[9]}
    one, two = (
        {k: TaylorAttributionMetric(model, loader(data, 64), torch.nn.functional.cross_entropy,
                                    "cpu").run(layer, True) for k, layer in layers.items()}
        for data in (splits.score, other)
    )  # fmt: skip
    expected = between_scorings([one, two])
    own = found.query("criterion == 'taylor' and what != 'other draws'")
    assert own["spearman"].tolist() == pytest.approx(expected["spearman"].tolist())
    table = study["table"](pd.concat([found, found]))
    cell = f"{expected['spearman'].iloc[2]:.2f} / {expected['overlap'].iloc[2]:.2f}"
    shown = table[table["criterion"] == "Taylor"].loc["other pictures and draws"]
    assert shown.iloc[-1] == cell
    for line in (FOLDER / "again.md").read_text().splitlines():
        if "other pictures" in line:
            assert line in (FOLDER / "README.md").read_text()
