"""experiments/main_job and docs/results.md: the numbers are those of the committed runs."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.main_job import table
from pruning_lab.compare import markdown

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/results.md", table.FOLDER / "README.md"]
STEPS = table.steps()


def test_pictures_and_steps_are_of_the_same_runs():
    for seed, run in zip(sorted(STEPS["seed"].unique()), table.pictures(), strict=True):
        own = STEPS[STEPS["seed"] == seed].set_index("step")
        for step in own.index:
            for stage in table.STAGES:
                (right, _) = run.at(table.MAIN, step, stage)
                assert right.mean() == pytest.approx(own.loc[step, f"test_accuracy_{stage}"])
                assert len(right) == 360


@pytest.mark.parametrize("page", PAGES, ids=["results", "page"])
def test_the_table_is_that_of_the_runs(page):
    assert markdown(table.table()) in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=["results", "page"])
def test_the_difference_from_the_baseline_is_that_of_the_runs(page):
    found = table.beyond_baseline(table.pictures())
    assert f"{found.mean:.1f} points ({found.low:.1f} to {found.high:.1f})" in page.read_text()
    assert found.high > 0  # not below the baseline


def test_fine_tuning_was_kept_at_every_step():
    assert len(STEPS) == 18
    assert (STEPS.loc[STEPS["step"] > 0, "finetune_kept"] == 1).all()


@pytest.mark.parametrize("runs", ["before", "steps"])
def test_what_seed_0_came_to_before_and_now(runs):
    rows = pd.read_csv(table.FOLDER / f"{runs}_0.csv").set_index("step")
    reached = ", ".join(f"{100 * each:.1f}" for each in rows["test_accuracy_after"][1:])
    costs = ("scoring_seconds", "recalibrate_seconds", "finetune_seconds")
    spent = " | ".join(f"{rows[name].sum():.0f} s" for name in costs)
    assert f"{reached} % | {spent} |" in PAGES[1].read_text()
