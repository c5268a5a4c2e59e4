"""experiments/untrained_networks: every number of the page is that of the tables beside it."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.untrained_networks import controls
from pruning_lab.compare.statistics import half_width

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/untrained_networks"
SMALL = ["dataset=synthetic", "dataset.train=64", "dataset.score=60", "dataset.val=20",
         "dataset.test=60", "model.hidden=[16,12]"]  # fmt: skip


def words(path):
    return " ".join(path.read_text().split())


def shown(values, digits=1):
    """``59.3 ± 1.6``: the mean over the five networks and half its 95 % interval."""
    assert len(values) == 5
    return f"{values.mean():.{digits}f} ± {half_width(values):.{digits}f}"


@pytest.fixture(scope="module")
def steps():
    """A row for each network, columns (measure, layers pruned)."""
    return pd.read_csv(FOLDER / "report/runs.csv").pivot(index="seed", columns="step")


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(FOLDER / "controls.csv")


@pytest.fixture(scope="module")
def means(rows):
    """Means over the permutations after the last layer, (network, (measure, control))."""
    last = rows[rows["layers"].isna() | (rows["layers"] == 2)]
    last = last.assign(test=100 * last["test_accuracy"], score=100 * last["score_accuracy"],
                       removed=4048 - last["units"])  # fmt: skip
    return last.groupby(["seed", "control"])[["test", "score", "removed"]].mean().unstack()


def test_the_sentences_on_pruning_are_those_of_the_runs(steps):
    text = words(FOLDER / "README.md")
    untrained, last, both = (100 * steps["test_accuracy_after", step] for step in range(3))
    removed = 100 * steps["removed_parameters", 2]
    assert f"rises from {shown(untrained)} % (chance is 10 %) to {shown(both)} %" in text
    assert f"removing {shown(removed)} % of the parameters" in text
    rise = both - untrained
    assert f"a rise by {shown(rise)} points, {rise.min():.0f} to {rise.max():.0f} in each" in text
    brings = f"brings {shown(last - untrained)} of them, the first {shown(both - last)}"
    assert brings in text
    first, second = steps["width/1", 2], steps["width/3", 2]
    assert f"{shown(first)} in the first hidden layer and {shown(second)} in the last" in text
    gone = [100 * (1 - width / 2024) for width in (second, first)]
    assert f"{shown(gone[0])} % in the last layer and {shown(gone[1])} % in the first" in text
    for width, published in ((first, 1331), (second, 1026)):
        assert half_width(width) < abs(published - width.mean()) < 0.03 * published
    minutes = steps["scoring_seconds"].sum(axis=1) / 60
    assert f"took {minutes.min():.0f} to {minutes.max():.0f} minutes a network" in text


def test_the_controls_are_whole_and_repeat_the_experiment(rows, steps):
    counts = rows.groupby("control").size().to_dict()
    assert counts == {
        controls.PIXELS: 5, controls.FEATURES: 5, controls.PERMUTED: 5 * 5 * 3,
        controls.TRUE: 5 * 3,
    }  # fmt: skip
    again = rows[rows["control"] == controls.TRUE].pivot(index="seed", columns="layers")
    for layers in range(3):
        for column, same in (("test_accuracy", "test_accuracy_after"), ("units", "units")):
            assert again[column, layers].tolist() == steps[same, layers].tolist()


def test_the_table_of_controls_is_that_of_the_rows(means):
    text = (FOLDER / "README.md").read_text()
    labels = {
        controls.TRUE: "pruned by true labels",
        controls.PERMUTED: "pruned by permuted labels",
        controls.FEATURES: "nearest class mean, features of the untrained network",
    }
    for control, label in labels.items():
        cells = " | ".join(shown(means[split, control]) for split in ("test", "score"))
        assert f"| {label} | {cells} |" in text
    (test,), (score,) = (means[split, controls.PIXELS].unique() for split in ("test", "score"))
    assert f"| nearest class mean, pixels | {test:.2f} | {score:.2f} |" in text


def test_the_sentences_on_the_controls_are_those_of_the_rows(rows, means):
    text, test, score = words(FOLDER / "README.md"), means["test"], means["score"]
    chance = shown(test[controls.PERMUTED])
    assert abs(test[controls.PERMUTED].mean() - 10) < half_width(test[controls.PERMUTED])
    single = (
        100 * rows[(rows["control"] == controls.PERMUTED) & (rows["layers"] == 2)]["test_accuracy"]
    )
    spread = f"single permutations lie between {single.min():.1f} and {single.max():.1f} %"
    assert f"stays at chance ({chance} %; {spread})" in text
    removed = [shown(means["removed", name]) for name in (controls.PERMUTED, controls.TRUE)]
    assert f"{removed[0]} instead of {removed[1]}" in text
    assert (means["removed", controls.PERMUTED] > means["removed", controls.TRUE]).all()
    assert f"{shown(score[controls.PERMUTED] - 10)} points better than chance" in text
    fitted = score[controls.TRUE] - test[controls.TRUE]
    assert f"they are {shown(fitted)} points better on the 500" in text
    more = [
        shown(test[name] - test[controls.TRUE]) for name in (controls.PIXELS, controls.FEATURES)
    ]
    assert f"has {more[0]} points more in pixels, and {more[1]} points more in the fea" in text
    start = words(ROOT / "docs/results.md")
    assert f"right for {test[controls.PIXELS].mean():.2f} %" in start
    assert f"the pruned networks stay at chance, {chance} %" in start


def test_permuted_pictures_are_the_same_with_other_labels():
    score = controls.subject(0, *SMALL).splits.score
    one, again, other = (controls.permuted(score, seeds) for seeds in ((0, 1), (0, 1), (1, 0)))
    assert torch.equal(one.images, score.images)
    assert one.labels.bincount().tolist() == score.labels.bincount().tolist()
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.labels, score.labels)
    assert not torch.equal(one.labels, other.labels)


def test_the_nearest_mean_is_that_of_a_loop():
    given = controls.subject(0, *SMALL)
    found = controls.nearest_mean(nn.Flatten(), given.splits)
    known = [(x.flatten(), int(label)) for x, label in given.splits.score]
    means = [torch.stack([x for x, label in known if label == wanted]).mean(0)
             for wanted in range(given.splits.num_classes)]  # fmt: skip
    for split in ("test", "score"):
        right = [
            min(range(len(means)), key=lambda label: (x.flatten() - means[label]).norm()) == int(y)
            for x, y in getattr(given.splits, split)
        ]
        assert found[f"{split}_accuracy"] == pytest.approx(sum(right) / len(right))


def test_the_command_adds_only_what_is_missing(tmp_path, monkeypatch):
    table, subject = tmp_path / "controls.csv", controls.subject
    monkeypatch.setattr(controls, "TABLE", table)
    monkeypatch.setattr(controls, "SEEDS", range(1))
    monkeypatch.setattr(controls, "DRAWS", 2)
    monkeypatch.setattr(controls, "subject", lambda seed: subject(seed, *SMALL))
    controls.main()
    whole = pd.read_csv(table)
    assert len(whole) == 1 + 1 + 2 * 3 + 3
    true = whole[whole["control"] == controls.TRUE]
    assert true["layers"].tolist() == [0, 1, 2]
    assert true["units"].iloc[0] == 28
    assert true["units"].is_monotonic_decreasing
    whole[whole["control"] != controls.PERMUTED].to_csv(table, index=False)
    controls.main()
    names = list(whole.columns)
    again = pd.read_csv(table).sort_values(names[:4])
    pd.testing.assert_frame_equal(
        again.reset_index(drop=True)[names], whole.sort_values(names[:4]).reset_index(drop=True)
    )
    monkeypatch.setattr(controls, "subject", None)
    controls.main()  # nothing is left to do
