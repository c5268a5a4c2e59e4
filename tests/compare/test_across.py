"""Ranks over models and data sets."""

import pandas as pd
import pytest

from pruning_lab.compare.across import across
from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.runs import comparable
from tests.compare.test_report import runs

THREE = ["random", "taylor", "shapley"]


def several(pairs, criteria=THREE, seeds=2):
    """Runs of several pairs of model and data set; accuracies are a point lower in each."""
    frames = [
        runs(criteria, seeds).assign(
            model=model, dataset=dataset, setting=f"{model}{place}", metric_settings="{}"
        )
        for place, (model, dataset) in enumerate(pairs)
    ]
    for place, frame in enumerate(frames):
        frame["run_id"] += f" {place}"
        frame["test_accuracy_after"] -= 0.01 * place
    return pd.concat(frames, ignore_index=True)


def test_a_pair_is_one_block_and_its_value_the_mean_over_seeds():
    groups = comparable(several([("vgg16", "digits"), ("vgg16", "clothes"), ("mlp", "digits")]))
    section = across(groups)
    table = section.tables["mean_accuracy"]
    assert list(table.index) == ["vgg16 on digits", "vgg16 on clothes", "mlp on digits"]
    for name, frame in zip(table.index, groups.values(), strict=True):
        areas = measure_runs(frame).groupby("metric")["area_flops_after"].mean()
        assert table.loc[name].tolist() == [round(100 * areas[each], 2) for each in THREE]
    # the same curves, some points lower: all pairs have the same order
    lines = section.figures["critical_difference"].axes[0].lines
    ranks = {line.get_gid(): line.get_xdata()[0] for line in lines}
    for row in table.index:
        assert [ranks[f"rank:{name}"] for name in THREE] == table.loc[row].rank(
            ascending=False
        ).tolist()
    assert section.words[-1].startswith("Over 3 pairs of model and data set, Friedman's test ")


def test_of_two_settings_of_a_pair_one_counts_and_the_other_is_named():
    frame = several([("vgg16", "digits"), ("vgg16", "digits"), ("mlp", "digits")])
    fewer = frame.query("setting != 'vgg160' or seed == 0")
    section = across(comparable(fewer))
    assert section.words[0] == (
        "vgg16-digits-geometric-sgd-vgg160 is left out: vgg16-digits-geometric-sgd-vgg161 has the "
        "same model and data set."
    )
    assert len(section.tables["mean_accuracy"]) == 2


def test_a_criterion_that_most_pairs_lack_is_named():
    frame = several([("vgg16", "digits"), ("mlp", "digits")], [*THREE, "apoz"])
    section = across(comparable(frame.query("model != 'mlp' or metric != 'apoz'")))
    assert "APoZ is left out: it has 1 block." in section.words
    assert list(section.tables["mean_accuracy"]) == ["Random", "Taylor", "Shapley"]


@pytest.mark.parametrize(
    ("pairs", "criteria"),
    [([("vgg16", "digits")], THREE), ([("vgg16", "digits"), ("mlp", "digits")], THREE[:2])],
)
def test_fewer_have_no_ranks(pairs, criteria):
    assert across(comparable(several(pairs, criteria))) is None
