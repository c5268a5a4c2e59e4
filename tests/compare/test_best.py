"""The best setting of each criterion is chosen on val, after the same trials."""

import pandas as pd
import pytest

from pruning_lab.compare import best_runs, recorded
from pruning_lab.errors import UserError
from tests.compare.test_command import compare
from tests.running import experiment

LR = "finetune.lr"
VAL = {
    ("random", 0.01): (0.70, 0.60), ("random", 0.1): (0.60, 0.50), ("random", 1.0): (0.90, 0.20),
    ("taylor", 0.01): (0.60, 0.60), ("taylor", 0.1): (0.70, 0.80), ("taylor", 1.0): (0.90, 0.55),
}  # fmt: skip
"""Validation accuracies in two blocks. Means: random 65, 55, 55; taylor 60, 75, 72.5 per cent."""


def row(metric, lr, block, accuracy, step=1, track="main", run_id=None):
    return {
        "run_id": run_id or f"{metric} {lr} {block}", "metric": metric, LR: lr, "block": block,
        "track": track, "step": step, "val_accuracy_after": accuracy, "test_accuracy_after": lr,
    }  # fmt: skip


def trials(val=VAL):
    """Step 1 is the last; step 0 and another track would choose otherwise."""
    rows = []
    for (metric, lr), accuracies in val.items():
        for block, accuracy in enumerate(accuracies):
            rows.append(row(metric, lr, block, accuracy))
            rows.append(row(metric, lr, block, lr, step=0))
            rows.append(row(metric, lr, block, lr, track="untuned"))
    return pd.DataFrame(rows)


def test_each_criterion_keeps_the_runs_of_its_best_value():
    frame = trials()
    kept, section = best_runs(frame, LR)
    assert kept.groupby("metric")[LR].unique().map(list).to_dict() == {
        "random": [0.01],
        "taylor": [0.1],
    }
    assert len(kept) == 2 * 2 * 3  # criteria, blocks, rows of each run
    table = section.tables["choice"]
    assert table.columns.tolist() == [f"{LR}=0.01", f"{LR}=0.1", f"{LR}=1", "chosen"]
    # blocks of 70 and 60: a mean of 65, and t(0.975, 1) = 12.71 times a standard error of 5
    assert table.loc["Random"].tolist() == ["65.0 ± 63.5", "55.0 ± 63.5", "55.0 ± 444.7", "0.01"]
    assert table.loc["Taylor", "chosen"] == "0.1"
    assert "of 0.01, 0.1, 1, which all criteria were tried with" in section.words[0]
    assert "over 2 blocks" in section.words[0]
    assert "best one for Random: a better one may lie beyond" in section.words[1]


def test_the_choice_can_be_among_some_values():
    kept, section = best_runs(trials(), LR, [0.1, 1.0])
    chosen = kept.groupby("metric")[LR].unique().map(list).to_dict()
    assert chosen == {"random": [0.1], "taylor": [0.1]}  # of two equal ones the first
    assert f"{LR}=0.01" not in section.tables["choice"]


def test_repeated_runs_of_a_block_count_once():
    again = [row("taylor", 1.0, 0, 1.0, run_id=f"again {number}") for number in range(9)]
    frame = pd.concat([trials(), pd.DataFrame(again)])
    # block 0 has a mean of 0.99: (0.99 + 0.55) / 2 = 0.77 is more than the 0.75 of 0.1
    kept, _ = best_runs(frame, LR)
    assert set(kept.loc[kept["metric"] == "taylor", LR]) == {1.0}
    # as runs of their own they would bring (10 * 0.99 + 0.55) / 11 = 0.95
    assert best_runs(frame, LR)[1].tables["choice"].loc["Taylor", f"{LR}=1"].startswith("77.0 ")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            ("taylor", 0.1),
            r"2 of 12 trials are missing, for example Taylor with finetune.lr=0.1 in",
        ),
        (("random", 1.0), r"the block 0\. .*--best finetune.lr=VALUE,VALUE"),
    ],
)
def test_criteria_with_other_trials_are_refused(lost, message):
    val = {trial: accuracies for trial, accuracies in VAL.items() if trial != lost}
    with pytest.raises(UserError, match=message):
        best_runs(trials(val), LR)


def test_a_value_that_was_tried_in_fewer_blocks_is_refused():
    frame = trials()
    frame = frame[(frame["block"] == 0) | (frame[LR] != 0.1)]
    with pytest.raises(UserError, match=r"2 of 12 trials are missing, .* in the block 1"):
        best_runs(frame, LR)
    assert set(best_runs(frame, LR, [0.01, 1.0])[0][LR]) == {0.01, 1.0}


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("finetune.share", [], r"these runs have no finetune\.share"),
        (LR, [0.5, 0.1], r"no run has finetune\.lr=0\.5; there are: 0\.01, 0\.1, 1"),
        (LR, [0.1], r"all runs have finetune\.lr=0\.1: there is nothing to choose from"),
    ],
)
def test_impossible_choices_are_refused(key, values, message):
    with pytest.raises(UserError, match=message):
        best_runs(trials(), key, values)


def with_params(frame, params):
    """``with_value`` for runs with these settings, by run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "read_params", lambda uri, run: params[run])
        return recorded.with_value(frame, "uri", LR)


def settings_of(lr, **other):
    return {LR: lr, "dataset.root": lr, "metric.samples": lr, "schedule.target": "0.8"} | other


def test_runs_that_differ_in_the_setting_alone_share_a_report():
    frame = pd.DataFrame({"run_id": list("abbc"), "setting": list("stts")})
    params = {"a": settings_of("1e-3"), "b": settings_of("0.1"), "c": settings_of("0.001")}
    found = with_params(frame, params)
    assert found[LR].tolist() == [0.001, 0.1, 0.1, 0.001]
    assert found["setting"].nunique() == 1
    params["b"]["schedule.target"] = "0.5"
    assert with_params(frame, params)["setting"].nunique() == 2


def test_runs_of_other_data_are_not_mixed():
    frame = pd.DataFrame({"run_id": list("ab"), "setting": list("st")})
    with pytest.raises(UserError, match=r"finetune\.lr=0\.1 .*\(settings s, t\)\. .*--since"):
        with_params(frame, {"a": settings_of("0.1"), "b": settings_of("0.1")})


def test_a_setting_that_no_run_has_lists_those_there_are():
    frame = pd.DataFrame({"run_id": ["a"], "setting": ["s"]})
    settings = {"schedule.target": "0.8", "finetune.epochs": "1", "after_cut.undo_harm": "True"}
    message = r"finetune\.lr cannot be chosen .* these can: after_cut\.undo_harm, finetune\.epochs"
    with pytest.raises(UserError, match=message):
        with_params(frame, {"a": settings})


def test_an_option_that_cannot_be_read_is_one_clean_line(monkeypatch):
    with pytest.raises(SystemExit, match=r"--best finetune\.lr= is neither KEY nor KEY=VALUE"):
        compare(monkeypatch, "sqlite:///none.db", "--best", "finetune.lr=")


def test_a_sweep_is_reported_by_the_best_job_of_each_criterion(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    small = [
        "attributions=none",
        "schedule=one_shot",
        "finetune.epochs=1",
        "finetune.steps=null",
        "keep=none",
    ]
    results = {
        (metric, lr): experiment(tmp_path, *small, f"metric={metric}", f"{LR}={lr}").run()
        for metric in ("random", "weight_norm")
        for lr in (0.01, 0.3)
    }
    out = tmp_path / "out"
    compare(monkeypatch, uri, "--best", f"{LR}=1e-2,0.3", "--output", str(out), "--no-keep")
    kept = pd.read_csv(out / "runs.csv").set_index("metric")
    for metric in ("random", "weight_norm"):
        best = max((0.01, 0.3), key=lambda lr: results[metric, lr])
        assert set(kept.loc[metric, LR]) == {best}
        assert kept.loc[metric, "val_accuracy_after"].iloc[-1] == results[metric, best]
    shared = recorded.shared_options(kept.reset_index(), uri)
    assert "finetune.momentum" in shared.index
    assert LR not in shared.index
