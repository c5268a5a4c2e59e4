"""The report holds the numbers, opens without a network, and averages nothing it should not."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pruning_lab.compare.figures import critical_difference, difference_intervals
from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.pages import readable, write_report
from pruning_lab.compare.report import mean_and_half_width, sections
from pruning_lab.compare.statistics import by_block, differences, ranking
from pruning_lab.records.step import MAIN, UNTUNED
from pruning_lab.tasks import Classification
from tests.compare.test_figures import SIX

MEASURE = Classification().primary


def runs(criteria=SIX, seeds=4):
    """Made-up curves: a criterion's place decides, a baseline moves all of them together."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        shared = rng.normal(0, 0.02)
        for place, metric in enumerate(criteria):
            for track, fall in ((UNTUNED, 0.5), (MAIN, 0.1)):
                for step in range(3):
                    accuracy = 0.9 + shared - fall * step * (1 - 0.05 * place) / 2
                    accuracy += rng.normal(0, 0.003) * (step > 0)
                    rows.append(
                        {
                            "run_id": f"{metric}-{seed}", "metric": metric, "model": "vgg16",
                            "dataset": "digits", "schedule": "geometric", "finetune": "sgd",
                            "setting": "s", "baseline": f"b{seed}", "block": f"init {seed}",
                            "seed": seed, "track": track,
                            "step": step, "removed_flops": 0.35 * step,
                            "removed_parameters": 0.4 * step, "removed_units": 0.2 * step,
                            "test_accuracy_before": accuracy - 0.1 * (step > 0),
                            "test_accuracy_after": accuracy, "flops": 100 - 35 * step,
                            "parameters": 100 - 40 * step, "latency_ms": 2.0 - 0.5 * step,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.cells.append(data.strip())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    write_report(place, "A <b>bold</b> title", ["Left out: none."], sections(runs()))
    return place


def test_the_folder_has_every_figure_twice_and_every_table(folder):
    figures = ["accuracy_vs_flops", "accuracy_vs_parameters"]
    figures += [f"{kind}_{when}" for kind in ("differences", "critical_difference")
                for when in ("untuned", "after")]  # fmt: skip
    for name in figures:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()
    assert {path.name for path in folder.glob("*.csv")} == {
        "accuracy_by_step.csv", "summary.csv", "differences_after.csv", "differences_untuned.csv",
    }  # fmt: skip


def test_the_page_needs_nothing_else(folder):
    page = (folder / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.found) == 6
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not re.search(r"https?://", page)
    assert "A &lt;b&gt;bold&lt;/b&gt; title" in page


def test_page_and_text_hold_the_numbers(folder):
    pairs = differences(by_block(measure_runs(runs()), "area_flops_after"))
    links = Links()
    links.feed((folder / "report.html").read_text())
    text = (folder / "report.md").read_text()
    for row in pairs.itertuples():
        assert f"{100 * row.difference:.2f}" in links.cells
        assert f"{100 * row.low:.2f} to {100 * row.high:.2f}" in text
    table = pd.read_csv(folder / "differences_after.csv")
    pd.testing.assert_frame_equal(table, pairs)
    area = 100 * measure_runs(runs()).groupby("metric")["area_flops_after"].mean()["shapley"]
    assert "| Shapley | 4 | 4 | " in text
    assert f"{area:.1f} ± " in text


def test_a_mean_has_students_interval():
    # of 1 and 3: the mean 2, the standard error 1, t(0.975, 1) = 12.7
    assert mean_and_half_width(pd.Series([1.0, 3.0])) == "2.0 ± 12.7"
    assert mean_and_half_width(pd.Series([1.0])) == "1.0"


def cell(frame, criterion, head):
    return (
        next(s for s in sections(frame) if "summary" in s.tables)
        .tables["summary"]
        .loc[criterion, head]
    )


def test_runs_that_repeat_each_other_do_not_narrow_an_interval():
    frame = runs()
    twice = pd.concat([frame, frame.assign(run_id="again " + frame["run_id"])])
    head = "mean accuracy after fine-tuning, %"
    assert cell(twice, "Taylor", head) == cell(frame, "Taylor", head)
    assert cell(twice, "Taylor", "runs") == "8"
    assert cell(twice, "Taylor", "blocks") == "4"


def test_accuracy_at_a_speed_up_is_that_of_all_runs_or_of_none():
    frame = runs()
    assert "±" in cell(frame, "Taylor", "at 2x after fine-tuning, %")
    short = frame[(frame["run_id"] != "taylor-1") | (frame["step"] < 2)]
    assert cell(short, "Taylor", "at 2x after fine-tuning, %") == "–"


def test_blocks_with_several_baselines_are_named():
    frame = runs()
    frame.loc[frame["run_id"] == "taylor-1", "baseline"] = "another"
    words = [words for section in sections(frame)[2:] for words in section.words]
    assert sum(each.startswith("The runs of block init 1 start from 2 b") for each in words) == 2


def test_given_weights_are_one_block_and_seeds_do_not_help():
    (words,) = sections(runs(seeds=2).assign(block="given weights", baseline="b"))[-1].words
    assert "compare several networks" in words
    assert "seed=" not in words


def test_experiments_without_fine_tuning_say_so():
    frame = runs().query("track == 'main'")
    frame = frame.assign(test_accuracy_after=frame["test_accuracy_before"])
    found = sections(frame)
    assert [section.title for section in found][2:] == ["Comparison without fine-tuning"]
    heads = found[1].tables["summary"].columns
    assert [head for head in heads if "mean" in head] == ["mean accuracy without fine-tuning, %"]


def test_one_seed_gives_curves_and_says_that_nothing_can_be_compared():
    found = sections(runs(seeds=1))
    words = [sentence for section in found for sentence in section.words]
    assert sum("Of 6 criteria on 1 block nothing can be said" in each for each in words) == 2
    assert not any(name.startswith("diff") for section in found for name in section.figures)


def test_blocks_that_not_all_criteria_have_are_named_and_left_out():
    frame = runs()
    frame = frame[frame["run_id"] != "taylor-2"]
    section = sections(frame)[-1]
    assert section.words[0] == "The block init 2 is left out: it lacks Taylor."
    assert set(section.tables["differences_after"]["pairs"]) == {3}


def test_two_criteria_have_a_difference_but_no_ranks():
    section = sections(runs(["random", "taylor"]))[-1]
    assert list(section.figures) == ["differences_after"]


def test_the_order_of_units_is_compared_before_and_after_fine_tuning():
    tuned = pd.DataFrame(
        {"metric": ["taylor", "random", "taylor"], "layer": ["fc", "fc", "fc"], "units": 20,
         "spearman": [0.2, 1, 0.4], "kendall": [0.1, 1, 0.3], "overlap": [0.5, 1, 0.5],
         "chance": 0.3}
    )  # fmt: skip
    section = sections(runs(), tuned=tuned)[-1]
    table = section.tables["through_finetuning"]
    assert table["metric"].tolist() == ["random", "taylor"]
    assert table.loc[1, ["layer", "runs"]].tolist() == ["fc", 2]
    assert table.loc[1, "spearman"] == pytest.approx(0.3)
    shown = readable(table, MEASURE)
    assert shown.loc["Taylor"].tolist() == ["fc", 2, "0.30", "0.20", "0.50", "0.30"]


def test_scores_are_compared_where_they_are_known():
    rng = np.random.default_rng(1)
    scores = {
        f"b{seed}": {name: {"fc": rng.random(20)} for name in ("random", "taylor", "shapley")}
        for seed in range(3)
    }
    section = sections(runs(), scores)[-1]
    table = section.tables["agreement"]
    assert table[["one", "other"]].to_numpy().tolist() == [
        ["random", "taylor"], ["random", "shapley"], ["taylor", "shapley"],
    ]  # fmt: skip
    expected = np.mean(
        [
            pd.Series(each["random"]["fc"]).corr(pd.Series(each["taylor"]["fc"]), "spearman")
            for each in scores.values()
        ]
    )
    assert table["spearman"].iloc[0] == pytest.approx(expected)
    assert list(section.figures) == ["agreement"]


def test_the_critical_difference_diagram_shows_ranks_and_who_is_alike():
    ranked = ranking(by_block(measure_runs(runs()), "area_flops_after"))
    figure = critical_difference(ranked, "title")
    lines = {line.get_gid(): line.get_xdata() for line in figure.axes[0].lines}
    assert np.ptp(lines["critical"]) == pytest.approx(ranked.critical_difference)
    for criterion, rank in ranked.ranks.items():
        assert lines[f"rank:{criterion}"][0] == rank
    for row, group in enumerate(ranked.alike):
        first, last = lines[f"alike:{row}"]
        assert (first, last) == pytest.approx(
            (ranked.ranks[group[0]] - 0.04, ranked.ranks[group[-1]] + 0.04)
        )
    assert f"alike:{len(ranked.alike)}" not in lines


def test_intervals_are_drawn_in_points():
    pairs = differences(by_block(measure_runs(runs()), "area_flops_after"))
    figure = difference_intervals(pairs, "title", MEASURE)
    lines = {line.get_gid(): line.get_xdata() for line in figure.axes[0].lines}
    largest = pairs.sort_values("difference").iloc[-1]
    assert lines[f"interval:{len(pairs) - 1}"] == pytest.approx(
        [100 * largest["low"], 100 * largest["high"]]
    )
