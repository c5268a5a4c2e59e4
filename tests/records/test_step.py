"""The record of a step: its row, its charts, and what JSON keeps of it."""

import json
from dataclasses import asdict

from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.records.step import Measurement, Size, StepRecord, from_json
from pruning_lab.tracking.keys import chart_key

MEASURED = {
    stage: [
        Measurement("test", "accuracy", "accuracy", value),
        Measurement("val", "loss", "loss", 2),
    ]
    for stage, value in (("cut", 0.25), ("before", 0.5), ("after", 0.75))
}
RECORD = StepRecord(
    Size(10, 20, 3), Size(40, 25, 4), MEASURED, {"0": 1, "a/b": 2}, latency_ms=1.5, time=1000.0,
    scoring=ScoringCost(5, 6, 7, seconds=8), recalibrate_seconds=0.0, finetune_seconds=9.0,
    finetune_kept=False,
)  # fmt: skip


def test_a_row_has_every_column_that_applies():
    assert RECORD.row() == {
        "flops": 10, "parameters": 20, "units": 3, "removed_flops": 0.75,
        "removed_parameters": 1 - 20 / 25, "removed_units": 0.25,
        "test_accuracy_cut": 0.25, "val_loss_cut": 2, "test_accuracy_before": 0.5,
        "val_loss_before": 2, "test_accuracy_after": 0.75, "val_loss_after": 2,
        "scoring_forward": 5, "scoring_backward": 6, "scoring_checks": 7, "scoring_seconds": 8,
        "recalibrate_seconds": 0.0, "finetune_seconds": 9.0, "finetune_kept": 0.0,
        "latency_ms": 1.5, "time": 1000.0, "width/0": 1, "width/a/b": 2,
    }  # fmt: skip
    assert RECORD.removed_flops == 0.75
    assert [RECORD.value("test", "accuracy"), RECORD.value("test", "accuracy", "cut")] == [
        0.75, 0.25,
    ]  # fmt: skip


def test_columns_are_in_the_charts_of_what_they_are():
    keys = {chart_key(c.chart, c.name) for c in RECORD.columns() if c.chart}
    assert {
        "cost/flops", "removed/removed_flops", "accuracy/test_accuracy_cut", "loss/val_loss_after",
        "cost/scoring_forward", "seconds/scoring_seconds", "seconds/recalibrate_seconds",
        "cost/finetune_kept", "cost/latency_ms", "width/0",
    } <= keys  # fmt: skip
    assert not any("time" in key for key in keys)
    assert chart_key("accuracy", "test_accuracy_cut", "untuned") == (
        "accuracy/untuned_test_accuracy_cut"
    )


def test_a_record_comes_back_from_json():
    for record in (RECORD, StepRecord(Size(1, 2, 3), Size(1, 2, 3), MEASURED, {}, 1.0, 2.0)):
        assert from_json(json.loads(json.dumps(asdict(record)))) == record
