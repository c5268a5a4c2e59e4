"""The measurements of one pruning step, with their names in tables and charts."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pruning_lab.profiling.passes import ScoringCost

MAIN, UNTUNED, STALE, SCRATCH = "main", "untuned", "stale", "scratch"
"""The tracks of a run: pruned step by step as configured; the same without any fine-tuning; without
that and with BatchNorm's statistics as they were before the first cut; what was left in the end,
with new weights, trained as the baseline was."""

STAGES = ("cut", "before", "after")
"""When a step is measured: right after the cut; before fine-tuning, with new statistics of
BatchNorm; after fine-tuning. A stage that changes nothing has the numbers of the one before."""

OF_THE_MACHINE = (
    "time", "latency_ms", "scoring_seconds", "recalibrate_seconds", "finetune_seconds",
    "scoring_peak_bytes",
)  # fmt: skip
"""Columns that depend on the machine at the moment: no two runs have the same."""


class Size(NamedTuple):
    """The cost of a network: FLOPs of one sample, numbers in its parameters, removable units."""

    flops: float
    parameters: float
    units: float


class Column(NamedTuple):
    """A number of a step: its column in the table, and the chart of MLflow that it is in.

    What has no chart is in the table alone.
    """

    name: str
    value: float
    chart: str = "cost"


@dataclass(frozen=True)
class Measurement:
    """The value of one measure of one split at one stage."""

    split: str
    measure: str
    chart: str
    value: float


@dataclass(frozen=True)
class StepRecord:
    """One step of a track.

    Args:
        size: of the network after the step.
        original: of the unpruned network.
        measured: the measurements by stage; all of ``STAGES``.
        widths: how many units each layer has left.
        latency_ms: of one sample.
        time: when it was measured, in seconds since 1970.
        scoring: what the scores that led to the step took; None at the first.
        recalibrate_seconds: None where the step has no such stage.
        finetune_seconds: likewise.
        finetune_kept: False where fine-tuning was undone; None where there was none.
    """

    size: Size
    original: Size
    measured: Mapping[str, list[Measurement]]
    widths: Mapping[str, int]
    latency_ms: float
    time: float
    scoring: ScoringCost | None = None
    recalibrate_seconds: float | None = None
    finetune_seconds: float | None = None
    finetune_kept: bool | None = None

    @property
    def removed_flops(self) -> float:
        """The share of the original's FLOPs that is removed."""
        return 1 - self.size.flops / self.original.flops

    def value(self, split: str, measure: str, stage: str = STAGES[-1]) -> float:
        """The value of a measure."""
        found = (m for m in self.measured[stage] if (m.split, m.measure) == (split, measure))
        return next(found).value

    def row(self) -> dict[str, float]:
        """The record as a row of the table of steps; what does not apply is left out."""
        return {column.name: column.value for column in self.columns()}

    def columns(self) -> Iterator[Column]:
        """The record column by column."""
        for name, value in self.size._asdict().items():
            yield Column(name, value)
        for name, value in self.size._asdict().items():
            share = 1 - value / getattr(self.original, name)
            yield Column(f"removed_{name}", share, "removed")
        yield from self.measurements()
        for name, value in (asdict(self.scoring) if self.scoring else {}).items():
            if value is not None:
                yield Column(f"scoring_{name}", value, "seconds" if name == "seconds" else "cost")
        for name in ("recalibrate_seconds", "finetune_seconds"):
            if (value := getattr(self, name)) is not None:
                yield Column(name, value, "seconds")
        if self.finetune_kept is not None:
            yield Column("finetune_kept", float(self.finetune_kept))
        yield Column("latency_ms", self.latency_ms)
        yield Column("time", self.time, "")
        for layer, width in self.widths.items():
            yield Column(f"width/{layer}", width, "width")

    def measurements(self) -> Iterator[Column]:
        """Of the columns those that were measured on the splits."""
        for stage in STAGES:
            for each in self.measured.get(stage, ()):
                yield Column(f"{each.split}_{each.measure}_{stage}", each.value, each.chart)


def from_json(about: Mapping[str, Any]) -> StepRecord:
    """A record out of what JSON makes of its ``asdict``."""
    measured = {
        stage: [Measurement(**each) for each in found] for stage, found in about["measured"].items()
    }
    scoring = None if about["scoring"] is None else ScoringCost(**about["scoring"])
    sizes = {name: Size(*about[name]) for name in ("size", "original")}
    return StepRecord(**{**about, **sizes, "measured": measured, "scoring": scoring})
