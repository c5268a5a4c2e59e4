"""The figures show the numbers they were given."""

import hashlib
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from pruning_lab import criteria
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.compare import (
    quality_curves,
    rank_correlation,
    score_histograms,
    style_of,
    widths,
)
from pruning_lab.compare.figures import rank_correlations, sorted_scores
from pruning_lab.compare.statistics import band_factor
from pruning_lab.compare.style import NAMES, STYLES, in_order
from pruning_lab.errors import UserError

SIX = ["random", "apoz", "sensitivity", "taylor", "weight_norm", "shapley"]


def frame_of(criteria: list[str], seeds: int = 1, finetuned: bool = True) -> pd.DataFrame:
    """Three steps a run; every number differs from every other."""
    rows = []
    for place, metric in enumerate(criteria):
        for seed in range(seeds):
            for step in range(3):
                before = 0.9 - 0.2 * step - 0.01 * place - 0.001 * seed
                rows.append(
                    {
                        "run_id": f"{metric}-{seed}",
                        "metric": metric,
                        "model": "vgg16",
                        "dataset": "digits",
                        "schedule": "geometric",
                        "finetune": "sgd",
                        "seed": seed,
                        "step": step,
                        "removed_flops": 0.3 * step + 0.01 * seed * (step > 0),
                        "removed_parameters": 0.4 * step,
                        "removed_units": 0.2 * step,
                        "test_accuracy_before": before,
                        "test_accuracy_after": before + 0.05 * step if finetuned else np.nan,
                        "val_accuracy_before": before + 0.02,
                        "val_accuracy_after": before + 0.03,
                    }
                )
    return pd.DataFrame(rows)


def lines_of(figure: Figure, panel: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_gid(): line.get_data() for line in figure.axes[panel].lines}


def bars_of(figure: Figure) -> list[np.ndarray]:
    """The heights of every panel that was drawn in."""
    return [ax.patches[0].get_data().values for ax in figure.axes if ax.patches]


def test_one_run_is_one_line_with_the_frames_numbers_in_percent() -> None:
    figure = quality_curves(frame_of(["shapley"]))
    (x, y) = lines_of(figure)["mean:shapley"]
    np.testing.assert_allclose(x, [0, 30, 60])
    np.testing.assert_allclose(y, [90, 70, 50])
    np.testing.assert_allclose(lines_of(figure, 1)["mean:shapley"][1], [90, 75, 60])
    assert list(lines_of(figure)) == ["mean:shapley"]
    assert [ax.get_title() for ax in figure.axes] == ["Before fine-tuning", "After fine-tuning"]
    assert figure.axes[0].get_xlabel() == "FLOPs removed (%)"
    assert figure.axes[0].get_ylabel() == "Test accuracy (%)"
    assert figure.get_suptitle() == "vgg16 on digits, geometric schedule"


@pytest.mark.parametrize(("x", "last"), [("flops", 60), ("parameters", 80), ("units", 40)])
def test_the_x_axis_is_the_quantity_asked_for(x: str, last: float) -> None:
    figure = quality_curves(frame_of(["taylor"]), x=x, split="val")
    assert lines_of(figure)["mean:taylor"][0][-1] == pytest.approx(last)
    np.testing.assert_allclose(lines_of(figure)["mean:taylor"][1], [92, 72, 52])
    assert figure.axes[0].get_ylabel() == "Validation accuracy (%)"


def test_where_much_is_removed_the_same_share_of_what_is_left_is_as_wide() -> None:
    frame = frame_of(["shapley"])
    assert quality_curves(frame).axes[0].get_xscale() == "linear"
    frame["removed_flops"] = 1 - 0.3 ** frame["step"]  # 0, 70, 91 %
    axis = quality_curves(frame).axes[0]
    places = axis.transData.transform([(gone, 80.0) for gone in (0, 70, 91)])[:, 0]
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])
    assert list(axis.get_xticks()) == [0, 50, 75, 90]


@pytest.mark.parametrize(("accuracy", "ends"), [(0.9, (87.25, 92.25)), (0.99, (95, 100))])
def test_a_narrow_panel_shows_five_points_and_none_above_100(accuracy, ends) -> None:
    frame = frame_of(["shapley"])
    frame["test_accuracy_before"] = [accuracy, accuracy - 0.005, accuracy]
    assert quality_curves(frame).axes[0].get_ylim() == pytest.approx(ends)


def test_several_seeds_are_a_mean_line_and_the_single_runs_behind_it() -> None:
    figure = quality_curves(frame_of(SIX, seeds=3))
    lines = lines_of(figure)
    assert len(lines) == 6 + 6 * 3
    x, y = lines["mean:apoz"]
    np.testing.assert_allclose(x, [0, 31, 61])
    np.testing.assert_allclose(y, [88.9, 68.9, 48.9])
    np.testing.assert_allclose(lines["run:apoz-2"][1], [88.8, 68.8, 48.8])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "Random (n = 3)"
    assert legend[-1] == "Shapley (n = 3)"


def test_many_seeds_are_a_mean_line_and_the_band_of_its_interval() -> None:
    frame = frame_of(["taylor"], seeds=5)
    figure = quality_curves(frame)
    assert list(lines_of(figure)) == ["mean:taylor"]
    (band,) = figure.axes[0].collections
    assert band.get_gid() == "band:taylor"
    accuracies = 100 * frame.pivot(index="seed", columns="step", values="test_accuracy_before")
    values = accuracies[1]
    half = band_factor(accuracies.to_numpy()) * values.std() / np.sqrt(5)
    corners = band.get_paths()[0].vertices
    heights = corners[np.isclose(corners[:, 0], 32), 1]
    np.testing.assert_allclose(
        [heights.min(), heights.max()], values.mean() + np.array([-half, half])
    )


def test_runs_of_a_block_are_one_line() -> None:
    frame = frame_of(["taylor"], seeds=4)
    blocks = frame.assign(block=(frame["seed"] // 2).astype(str))
    lines = lines_of(quality_curves(blocks))
    assert set(lines) == {"mean:taylor", "run:0", "run:1"}
    np.testing.assert_allclose(lines["run:1"][1][0], 100 * (0.9 - 0.0025))  # of seeds 2 and 3


def test_fine_tuning_that_was_always_undone_is_shown() -> None:
    frame = frame_of(["taylor"], seeds=1)
    same = frame.assign(
        test_accuracy_after=frame["test_accuracy_before"], test_loss_after=0.1, test_loss_before=0.1
    )
    assert len(quality_curves(same).axes) == 1
    assert len(quality_curves(same.assign(finetune_kept=0.0)).axes) == 2


def test_untuned_tracks_are_the_left_panel() -> None:
    main = frame_of(["taylor"]).assign(track="main")
    untuned = main.assign(track="untuned", test_accuracy_before=0.5, test_accuracy_after=0.5)
    figure = quality_curves(pd.concat([main, untuned]))
    assert [ax.get_title() for ax in figure.axes] == ["Without fine-tuning", "After fine-tuning"]
    np.testing.assert_allclose(lines_of(figure)["mean:taylor"][1], [50, 50, 50])
    np.testing.assert_allclose(lines_of(figure, 1)["mean:taylor"][1], [90, 75, 60])


def test_the_mean_stops_where_a_run_is_missing() -> None:
    frame = frame_of(["taylor"], seeds=2)
    unfinished = frame[(frame["seed"] == 0) | (frame["step"] < 2)]
    lines = lines_of(quality_curves(unfinished))
    np.testing.assert_allclose(lines["mean:taylor"][0], [0, 30.5])
    np.testing.assert_allclose(lines["run:taylor-0"][0], [0, 30, 60])


def test_the_order_of_rows_does_not_matter() -> None:
    frame = frame_of(["taylor"])
    (x, y) = lines_of(quality_curves(frame.iloc[::-1]))["mean:taylor"]
    np.testing.assert_allclose(x, [0, 30, 60])
    np.testing.assert_allclose(y, [90, 70, 50])


def test_without_fine_tuning_there_is_one_panel() -> None:
    nothing = frame_of(SIX, finetuned=False)
    same = nothing.assign(test_accuracy_after=nothing["test_accuracy_before"])
    absent = nothing.drop(columns="test_accuracy_after")
    for frame in (nothing, same, absent):
        assert [ax.get_title() for ax in quality_curves(frame).axes] == ["Without fine-tuning"]


@pytest.mark.parametrize("column", ["model", "dataset", "schedule", "finetune"])
def test_runs_of_different_experiments_are_not_averaged(column: str) -> None:
    frame = frame_of(["taylor"], seeds=2)
    frame.loc[frame["seed"] == 1, column] = "another"
    with pytest.raises(UserError, match=rf"differ in {column} \(another, .*frame\[frame\["):
        quality_curves(frame)


def test_bad_choices_are_refused_with_the_alternatives() -> None:
    frame = frame_of(["taylor"])
    with pytest.raises(UserError, match=r"x=macs .*flops, parameters, units"):
        quality_curves(frame, x="macs")
    with pytest.raises(UserError, match=r"split=train .*test, val"):
        quality_curves(frame, split="train")
    with pytest.raises(UserError, match="no runs"):
        quality_curves(frame.iloc[:0])


def test_a_criterion_has_the_same_colour_in_every_figure() -> None:
    criteria = [*SIX, "taylor_signed", "my_own"]
    rng = np.random.default_rng(0)
    scores = {name: {"fc": rng.normal(size=20)} for name in criteria}
    curves = quality_curves(frame_of(criteria)).axes[0].lines
    panels = score_histograms(scores).axes
    assert len(curves) == len(panels) == len(criteria)
    for line, panel in zip(curves, panels, strict=True):
        style = style_of(line.get_gid().removeprefix("mean:"))
        assert panel.get_title() == line.get_label() == style.label
        assert to_hex(line.get_color()).upper() == style.color
        assert panel.patches[0].get_facecolor() == to_rgba(style.color)


def test_the_seven_criteria_differ_in_colour_marker_and_line() -> None:
    styles = [style_of(name) for name in [*SIX, "taylor_signed"]]
    for field in ("label", "color", "marker", "linestyle"):
        assert len({getattr(style, field) for style in styles}) == 7


def test_a_criterion_with_options_in_its_name_keeps_its_colour_and_its_place() -> None:
    few, many = style_of("shapley samples=16"), style_of("shapley samples=64")
    assert few.color == many.color == style_of("shapley").color
    assert (few.label, many.label) == ("Shapley samples=16", "Shapley samples=64")
    assert few[2:] != many[2:]
    names = ["shapley samples=16", "shapley samples=128", "a 2", "a 10", "b"]
    assert in_order(["b", "a 10", names[1], "taylor", "a 2", names[0]]) == ["taylor", *names]


def test_an_unknown_criterion_keeps_the_style_of_its_name() -> None:
    assert style_of("my_own") == style_of("my_own")
    assert style_of("my_own").label == "my own"
    assert style_of("owen_gradient masks=8").label == "Owen gradient masks=8"
    known = {style_of(name).color for name in [*SIX, "taylor_signed"]}
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(30)]
    assert known.isdisjoint(style_of(name).color for name in digests)
    assert len({style_of(name)[1:] for name in digests}) > 20


def test_every_unit_is_counted_once_in_its_histogram() -> None:
    rng = np.random.default_rng(0)
    sizes = {"conv": 64, "fc": 513}
    scores = {name: {layer: rng.lognormal(size=n) for layer, n in sizes.items()} for name in SIX}
    figure = score_histograms(scores)
    assert [bars.sum() for bars in bars_of(figure)] == [64] * 6 + [513] * 6
    assert [ax.get_ylabel() for ax in figure.axes[::6]] == ["conv\n64 units", "fc\n513 units"]
    assert figure.axes[0].get_title() == "Random"


def test_an_outlier_is_counted_in_the_last_bar_and_does_not_stretch_the_axis() -> None:
    values = np.append(np.linspace(0, 1, 999), 1e6)
    panel = score_histograms({"taylor": {"fc": values}}).axes[0]
    bars = panel.patches[0].get_data()
    assert bars.edges[-1] == pytest.approx(np.percentile(values, 99.5))
    assert bars.edges[-1] < 1
    assert bars.values.sum() == 1000


@pytest.mark.parametrize("constant", [0.0, -3.0, 1e-12, 1e20, 1e-320])
def test_constant_scores_are_one_bar(constant: float) -> None:
    figure = score_histograms({"apoz": {"fc": np.full(7, constant)}})
    (bars,) = bars_of(figure)
    assert sorted(bars)[-2:] == [0, 7]


def test_scores_that_differ_by_rounding_only_can_be_drawn() -> None:
    (bars,) = bars_of(score_histograms({"apoz": {"fc": 1 + np.arange(2) * 2.3e-16}}))
    assert bars.sum() == 2


def test_zero_is_marked_only_where_scores_are_signed() -> None:
    scores = {"shapley": {"signed": np.array([-1.0, 2, 3]), "positive": np.array([1.0, 2, 3])}}
    signed, positive = score_histograms(scores).axes
    assert [line.get_gid() for line in signed.lines] == ["zero"]
    assert not positive.lines


def test_one_criterion_wraps_its_layers_into_a_grid() -> None:
    scores = {"shapley": {f"layer{n}": np.arange(4.0) for n in range(7)}}
    figure = score_histograms(scores, "Step 2")
    drawn = [ax for ax in figure.axes if ax.patches]
    assert [ax.get_title() for ax in drawn] == [f"layer{n}  (4 units)" for n in range(7)]
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 5)
    assert figure.get_suptitle() == "Step 2: Shapley"


def test_a_layer_that_a_criterion_did_not_score_stays_empty() -> None:
    figure = score_histograms({"apoz": {"a": np.arange(3.0)}, "taylor": {"b": np.arange(5.0)}})
    assert [bars.sum() for bars in bars_of(figure)] == [3, 5]
    assert [ax.axison for ax in figure.axes] == [True, False, False, True]


def test_scores_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(UserError, match="taylor scores of layer fc are not all finite"):
        score_histograms({"taylor": {"fc": np.array([1.0, np.nan])}})
    with pytest.raises(UserError, match="no scores"):
        score_histograms({"taylor": {}})


KNOWN = Estimate(
    np.array([3.0, -1.0, 2.0]), sampling_error=np.array([0.1, 0.2, 0.0]),
    error=np.array([0.5, 1.0, 0.25]), sampling_degrees=np.array([1.0, 30.0, 5.0]),
    degrees=np.array(9.0),
)  # fmt: skip


def bands_of(ax) -> list[dict[float, tuple[float, float]]]:
    """From where to where each band reaches, rank by rank."""
    bands = []
    for band in ax.collections:
        vertices = band.get_paths()[0].vertices
        bands.append(
            {
                x: (each.min(), each.max())
                for x in range(3)
                for each in [vertices[vertices[:, 0] == x, 1]]
            }
        )
    return bands


def test_sorted_scores_are_a_line_from_the_lowest_to_the_highest() -> None:
    figure = sorted_scores("shapley", {"fc": KNOWN, "conv": Estimate(np.array([5.0, 4.0]))})
    line, other = (ax.lines[0] for ax in figure.axes[:2])
    assert line.get_xydata().tolist() == [[0, -1], [1, 2], [2, 3]]
    assert other.get_xydata().tolist() == [[0, 4], [1, 5]]
    assert to_hex(line.get_color()) == to_hex(style_of("shapley").color)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["fc  (3 units)", "conv  (2 units)"]
    assert figure.get_suptitle() == "Scores of the units: Shapley"


def test_the_bands_of_sorted_scores_are_95_percent_intervals() -> None:
    ax = sorted_scores("shapley", {"fc": KNOWN}).axes[0]
    light, dark = bands_of(ax)
    # t at 97.5 % with 9, 30, 5 and 1 degrees, from a table
    for band, half in ((light, [2.2622, 0.5655, 1.1311]), (dark, [0.2 * 2.0423, 0, 0.1 * 12.706])):
        for rank, score in enumerate([-1, 2, 3]):
            expected = (score - half[rank], score + half[rank])
            assert band[rank] == pytest.approx(expected, abs=1e-3)
    assert [band.get_alpha() for band in ax.collections] == [0.25, 0.5]


def test_the_light_band_reaches_further_to_the_side_of_the_skewness() -> None:
    skewed = replace(KNOWN, skewness=np.array([2.0, 0.0, -2.0]))
    light, _ = bands_of(sorted_scores("shapley", {"fc": skewed}).axes[0])
    low, high = skewed.interval()
    for rank, unit in enumerate([1, 2, 0]):
        assert light[rank] == pytest.approx((low[unit], high[unit]))
    assert light[1][1] - 2 == pytest.approx(0.5655, abs=1e-3)  # Student's
    assert 2 - light[1][0] > 0.6


def test_a_band_is_left_out_where_its_error_is_not_known() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    plain = Estimate(scores)
    only = Estimate(scores, error=np.full(3, 0.1), degrees=np.array(4.0))
    figure = sorted_scores("taylor", {"a": plain, "b": only})
    assert "intervals that include the choice of the samples" in figure.get_supxlabel()
    bare, one = figure.axes[:2]
    assert not bare.collections
    assert [band.get_alpha() for band in one.collections] == [0.25]


def test_the_dark_band_is_named_where_there_is_one() -> None:
    both = Estimate(np.arange(3.0), np.ones(3), np.ones(3), np.array(3.0), np.array(4.0))
    figure = sorted_scores("shapley", {"a": both})
    assert "dark for the draws,\nlight for the choice" in figure.get_supxlabel()


def test_sorted_scores_mark_zero_where_some_are_below() -> None:
    below, above = sorted_scores("shapley", {"a": KNOWN, "b": Estimate(np.ones(2))}).axes[:2]
    assert [len(ax.lines) for ax in (below, above)] == [2, 1]
    assert list(below.lines[1].get_ydata()) == [0, 0]


def test_without_scores_there_is_nothing_to_sort() -> None:
    with pytest.raises(UserError, match="no scores to draw"):
        sorted_scores("shapley", {})


def test_the_rank_correlation_of_one_layer_is_spearmans() -> None:
    # Ranks 1 2 3 4 against 1 2 4 3: rho = 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15) = 0.8.
    taylor, shapley = np.array([1.0, 2, 3, 4]), np.array([0.1, 0.2, 9, 5])
    table = rank_correlations({"taylor": {"fc": taylor}, "shapley": {"fc": shapley}})
    assert table.loc["taylor", "shapley"] == pytest.approx(0.8, abs=1e-12)
    assert table.loc["shapley", "taylor"] == pytest.approx(0.8, abs=1e-12)
    assert table.loc["taylor", "taylor"] == pytest.approx(1, abs=1e-12)


def test_rank_correlations_are_averaged_over_layers_with_ties_as_in_scipy() -> None:
    rng = np.random.default_rng(0)
    scores = {
        name: {layer: rng.integers(0, 6, size=20).astype(float) for layer in "abc"} for name in SIX
    }
    table = rank_correlations(scores)
    assert list(table.index) == list(table.columns) == SIX
    for first in SIX:
        for second in SIX:
            pairs = [(scores[first][layer], scores[second][layer]) for layer in "abc"]
            expected = np.mean([spearmanr(a, b).statistic for a, b in pairs])
            assert table.loc[first, second] == pytest.approx(expected, abs=1e-12)


def test_small_and_constant_layers_are_left_out_of_the_mean() -> None:
    up, down = np.array([1.0, 2, 3]), np.array([3.0, 2, 1])
    scores = {
        "apoz": {"good": up, "small": up[:2], "constant": np.zeros(3)},
        "taylor": {"good": down, "small": up[:2], "constant": up},
        "shapley": {"good": up, "small": up[:2], "constant": up},
    }
    table = rank_correlations(scores)
    assert table.loc["apoz", "taylor"] == pytest.approx(-1)
    assert table.loc["taylor", "shapley"] == pytest.approx((-1 + 1) / 2)


def test_a_pair_without_any_usable_layer_has_no_correlation() -> None:
    scores = {"apoz": {"fc": np.zeros(5)}, "taylor": {"fc": np.arange(5.0)}}
    table, figure = rank_correlation(scores)
    assert np.isnan(table.loc["apoz", "taylor"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["–", "–", "–", "1.00"]
    assert rank_correlations({"taylor": {"fc": np.arange(2.0)}}).isna().all(axis=None)


def test_the_heat_map_shows_the_table() -> None:
    scores = {
        "taylor": {"fc": np.array([1.0, 2, 3, 4])},
        "shapley": {"fc": np.array([1.0, 2, 4, 3])},
    }
    table, figure = rank_correlation(scores)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), table.to_numpy())
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "0.80", "0.80", "1.00"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Taylor", "Shapley"]


def test_widths_are_the_kept_shares_with_the_number_of_units_written_on_them() -> None:
    units = pd.DataFrame({"conv": [64, 32, 16], "fc": [10, 10, 1]}, index=[0, 1, 2])
    ax = widths(units).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[100, 50, 25], [100, 100, 10]])
    assert [text.get_text() for text in ax.texts] == ["64", "32", "16", "10", "10", "1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv", "fc"]
    assert ax.get_xlabel() == "Step"


def test_widths_over_the_removed_share_are_labelled_in_percent() -> None:
    ax = widths(pd.DataFrame({"fc": [10.0, 5.0]}, index=[0.0, 0.423])).axes[0]
    assert [text.get_text() for text in ax.texts] == ["10", "5"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "42"]
    assert ax.get_xlabel() == "FLOPs removed (%)"


def test_figures_are_drawn_in_any_thread(tmp_path) -> None:
    def draw() -> None:
        quality_curves(frame_of(SIX)).savefig(tmp_path / "curves.png")

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_criterion_of_the_package_has_a_name_that_people_write() -> None:
    assert {*STYLES, *NAMES} == {*criteria.names()}
