"""What a run's curves come to, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.statistics import (
    by_block,
    complete,
    counted,
    detectable_effect,
    differences,
)
from pruning_lab.errors import UserError
from pruning_lab.records.step import MAIN, SCRATCH, UNTUNED

COLUMNS = ["run_id", "metric", "block", "seed", "track", "step", "removed_flops",
           "removed_parameters", "test_accuracy_before", "test_accuracy_after", "flops",
           "parameters", "latency_ms"]  # fmt: skip


def frame(*rows):
    return pd.DataFrame(rows, columns=COLUMNS).assign(
        model="mlp", dataset="digits", baseline="hash"
    )


A = ("a", "taylor", "x", 0)
B = ("b", "random", "x", 0)
CURVES = frame(
    (*A, MAIN, 0, 0.0, 0.0, 0.9, 0.9, 100, 50, 3.0),
    (*A, MAIN, 1, 0.4, 0.3, 0.6, 0.8, 60, 35, 2.5),
    (*A, MAIN, 2, 0.8, 0.7, 0.2, 0.5, 20, 15, 1.5),
    (*A, UNTUNED, 0, 0.0, 0.0, 0.9, 0.9, 100, 50, 3.0),
    (*A, UNTUNED, 1, 0.5, 0.5, 0.5, 0.5, 50, 25, 2.0),
    (*A, SCRATCH, 2, 0.8, 0.7, 0.1, 0.7, 20, 15, 1.5),
    (*B, MAIN, 0, 0.0, 0.0, 0.9, 0.9, 100, 50, 3.0),
    (*B, MAIN, 1, 0.6, 0.5, 0.3, 0.7, 40, 25, 2.0),
    (*B, UNTUNED, 0, 0.0, 0.0, 0.9, 0.9, 100, 50, 3.0),
    (*B, UNTUNED, 1, 0.6, 0.5, 0.3, 0.3, 40, 25, 2.0),
)


def measured(frame=CURVES):
    return measure_runs(frame).set_index("run_id")


def test_areas_are_trapezoids_up_to_what_all_runs_reached():
    found = measured()
    # a: (0, .9) (.4, .8) (.6, .65); b: (0, .9) (.6, .7)
    assert found.loc["a", "area_flops_after"] == pytest.approx((0.4 * 0.85 + 0.2 * 0.725) / 0.6)
    assert found.loc["b", "area_flops_after"] == pytest.approx(0.8)
    # a before: (0, .9) (.4, .6) (.6, .4)
    assert found.loc["a", "area_flops_before"] == pytest.approx((0.4 * 0.75 + 0.2 * 0.5) / 0.6)
    # parameters up to 0.5; a after: (0, .9) (.3, .8) (.5, .65)
    assert found.loc["a", "area_parameters_after"] == pytest.approx(
        (0.3 * 0.85 + 0.2 * 0.725) / 0.5
    )
    # untuned up to 0.5: (0, .9) (.5, .5), and (0, .9) (.5, .4)
    assert found.loc["a", "area_flops_untuned"] == pytest.approx(0.7)
    assert found.loc["b", "area_flops_untuned"] == pytest.approx(0.65)


def test_accuracies_at_speed_ups_lie_between_the_steps():
    found = measured()
    assert found.loc["a", "accuracy_2x_after"] == pytest.approx(0.8 - 0.3 / 4)  # a share of 0.5
    assert found.loc["b", "accuracy_2x_after"] == pytest.approx(0.9 - 0.2 * 5 / 6)
    assert found.loc["a", "accuracy_4x_before"] == pytest.approx(0.6 - 0.4 * 0.35 / 0.4)
    assert np.isnan(found.loc["b", "accuracy_4x_after"])  # it ends at 2.5
    assert np.isnan(found.loc["a", "accuracy_8x_after"])
    assert found.loc["a", "accuracy_2x_untuned"] == pytest.approx(0.5)


def test_what_was_reached_is_what_is_left_of_the_main_track():
    found = measured()
    assert found.loc["a", ["speed_up", "compression", "latency_ratio"]].tolist() == pytest.approx(
        [5, 10 / 3, 2]
    )
    assert found.loc["a", "accuracy_scratch"] == 0.7
    assert np.isnan(found.loc["b", "accuracy_scratch"])
    assert found.loc["a", ["metric", "block", "seed"]].tolist() == ["taylor", "x", 0]


def test_rows_in_any_order_and_frames_without_tracks():
    main = CURVES[CURVES["track"] == MAIN].drop(columns="track")
    found = measured(main.iloc[::-1])
    assert "area_flops_untuned" not in found
    assert "accuracy_scratch" not in found
    assert found.loc["a", "area_flops_after"] == measured().loc["a", "area_flops_after"]


def test_a_run_that_removed_nothing_is_named():
    with pytest.raises(UserError, match=r"run b removed nothing"):
        measure_runs(CURVES[(CURVES["run_id"] == "a") | (CURVES["step"] == 0)])


def test_steps_that_remove_nothing_keep_their_jump():
    jump = frame(
        (*A, MAIN, 0, 0.0, 0.0, 0.9, 0.9, 100, 50, 3.0),
        (*A, MAIN, 1, 0.4, 0.4, 0.5, 0.5, 60, 30, 3.0),
        (*A, MAIN, 2, 0.4, 0.4, 0.7, 0.7, 60, 30, 3.0),
        (*A, MAIN, 3, 0.6, 0.6, 0.5, 0.5, 40, 20, 3.0),
    )
    found = measured(jump)
    assert found.loc["a", "area_flops_after"] == pytest.approx((0.4 * 0.7 + 0.2 * 0.6) / 0.6)
    assert found.loc["a", "accuracy_2x_after"] == pytest.approx(0.6)


RUNS = pd.DataFrame(
    [
        ("taylor", "x", 0.9), ("taylor", "x", 0.8), ("random", "x", 0.7),
        ("taylor", "y", 0.6), ("random", "y", 0.6), ("apoz", "x", 0.5), ("apoz", "y", 0.3),
        ("taylor", "z", 0.9), ("random", "z", 0.1), ("shapley", "x", 0.9),
        ("weight_norm", "x", np.nan),
    ],
    columns=["metric", "block", "area"],
)  # fmt: skip


def test_blocks_have_a_mean_for_each_criterion():
    table = by_block(RUNS, "area")
    assert table.columns.tolist() == ["random", "apoz", "taylor", "weight_norm", "shapley"]
    assert table.loc["x"].tolist() == pytest.approx([0.7, 0.5, 0.85, np.nan, 0.9], nan_ok=True)


def test_what_is_left_out_of_a_comparison_is_named():
    table, words = complete(by_block(RUNS, "area"))
    assert table.columns.tolist() == ["random", "apoz", "taylor"]
    assert table.index.tolist() == ["x", "y"]
    assert words == [
        "Weight norm is left out: it has 0 blocks.",
        "Shapley is left out: it has 1 block.",
        "The block z is left out: it lacks APoZ.",
    ]


def test_one_is_not_many():
    assert [counted(n, "block") for n in (0, 1, 2)] == ["0 blocks", "1 block", "2 blocks"]
    assert [counted(n, "criterion", "criteria") for n in (1, 2)] == ["1 criterion", "2 criteria"]


def test_differences_are_paired_within_blocks():
    found = differences(complete(by_block(RUNS, "area"))[0]).set_index(["better", "worse"])
    assert found.index.tolist() == [("random", "apoz"), ("taylor", "random"), ("taylor", "apoz")]
    assert found["difference"].tolist() == pytest.approx([0.25, 0.075, 0.325])
    # of two pairs half the interval is t(0.975, 1) = 12.706 times the standard error
    row = found.loc[("random", "apoz")]
    assert row["high"] - row["difference"] == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert row["pairs"] == 2
    # differences of 0.2 and 0.3, among three pairs
    effect = detectable_effect(2, 0.05 / 3)
    assert row["detectable"] == pytest.approx(np.std([0.2, 0.3], ddof=1) * effect)
    assert (found["p_holm"] >= found["p"]).all()


def test_criteria_that_share_one_block_cannot_be_compared():
    with pytest.raises(UserError, match=r"share 1 block; a comparison needs .*seed=0,1,2"):
        differences(complete(by_block(RUNS, "area"))[0].iloc[:1])
