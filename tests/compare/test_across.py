"""Ranks over models and data sets."""

import pandas as pd
import pytest

from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.pages import readable
from pruning_lab.compare.report import across
from pruning_lab.tasks import Classification
from tests.compare.test_report import runs

MEASURE = Classification().primary

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
    frame = several([("vgg16", "digits"), ("vgg16", "clothes"), ("mlp", "digits")])
    (section,) = across(frame)
    assert section.title == "Over models and data sets: geometric, sgd"
    table = section.tables["mean_accuracy_geometric_sgd"]
    assert list(table.index) == ["vgg16 on digits", "vgg16 on clothes", "mlp on digits"]
    for name, (_, own) in zip(table.index, frame.groupby("setting", sort=False), strict=True):
        areas = measure_runs(own).groupby("metric")["area_flops_after"].mean()
        assert table.loc[name].tolist() == pytest.approx([areas[each] for each in THREE])
    # the same curves, some points lower: all pairs have the same order
    lines = section.figures["critical_difference_geometric_sgd"].axes[0].lines
    ranks = {line.get_gid(): line.get_xdata()[0] for line in lines}
    for row in table.index:
        expected = table.loc[row].rank(ascending=False).tolist()
        assert [ranks[f"rank:{name}"] for name in THREE] == expected
    assert section.words[-1].startswith("Over 3 pairs of model and data set, Friedman's test ")
    assert (
        readable(table, MEASURE).loc["mlp on digits", "Random"] == f"{100 * table.iloc[2, 0]:.2f}"
    )


def test_of_two_settings_of_a_pair_one_counts_and_the_other_is_named():
    frame = several([("vgg16", "digits"), ("vgg16", "digits"), ("mlp", "digits")])
    (section,) = across(frame.query("setting != 'vgg160' or seed == 0"))
    assert section.words[0] == (
        "vgg16 on digits: the setting vgg160 is left out, it has fewer runs than another."
    )
    assert len(section.tables["mean_accuracy_geometric_sgd"]) == 2


def test_what_a_pair_lacks_is_named():
    frame = several([("vgg16", "digits"), ("mlp", "digits")], [*THREE, "apoz"], seeds=3)
    one_block = frame.query("model != 'mlp' or metric != 'apoz' or seed == 0")
    (section,) = across(one_block)
    assert section.words[:2] == [
        "mlp on digits: APoZ is left out: it has 1 block.",
        "APoZ is left out: it has 1 pair of model and data set.",
    ]
    assert list(section.tables["mean_accuracy_geometric_sgd"]) == THREE
    two = several([("vgg16", "digits"), ("mlp", "digits"), ("cnn", "digits")], [*THREE, "apoz"])
    (section,) = across(two.query("model != 'cnn' or metric != 'apoz'"))
    assert "The pair of model and data set cnn on digits is left out: it lacks APoZ." in (
        section.words
    )
    apart = two.query("model != 'cnn' or (seed == 0) == (metric == 'random')")
    (section,) = across(apart)
    assert "cnn on digits is left out: its criteria share no block." in section.words


def test_only_pairs_of_the_same_schedule_and_fine_tuning_are_ranked_together():
    frame = several([("vgg16", "digits"), ("mlp", "digits")])
    assert across(frame.assign(schedule=frame["model"])) == []
    both = pd.concat([frame, frame.assign(finetune="none", run_id=frame["run_id"] + " none")])
    titles = [section.title for section in across(both)]
    assert titles == [f"Over models and data sets: geometric, {name}" for name in ("sgd", "none")]


def test_a_criterion_with_other_options_is_another_criterion():
    frame = several([("vgg16", "digits"), ("mlp", "digits")], [*THREE, "apoz"])
    few = (frame["model"] == "mlp") & (frame["metric"] == "shapley")
    (section,) = across(frame.assign(metric_settings=few.map({True: '{"n": 1}', False: "{}"})))
    assert "Shapley n=1 is left out: it has 1 pair of model and data set." in section.words


@pytest.mark.parametrize(
    ("pairs", "criteria"),
    [([("vgg16", "digits")], THREE), ([("vgg16", "digits"), ("mlp", "digits")], THREE[:2])],
)
def test_fewer_have_no_ranks(pairs, criteria):
    assert across(several(pairs, criteria)) == []
