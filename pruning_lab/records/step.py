"""The measurements of one pruning step, with their names in tables and charts."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pruning_lab.profiling.passes import ScoringCost

MAIN, UNTUNED, STALE, SCRATCH = "main", "untuned", "stale", "scratch"
"""The tracks of a run: as configured; the same steps without fine-tuning; without fine-tuning and
with BatchNorm's statistics from before the first cut; the final network trained from new weights
as the baseline was."""

STAGES = ("cut", "before", "after")
"""When a step is measured: right after the cut; with new statistics of BatchNorm, before
fine-tuning; after fine-tuning. A stage that changes nothing has the numbers of the one before."""

OF_THE_MACHINE = (
    "time", "latency_ms", "scoring_seconds", "recalibrate_seconds", "finetune_seconds",
    "scoring_peak_bytes",
)  # fmt: skip
"""Columns that depend on the machine at the moment: no two runs have the same."""


class Size(NamedTuple):
    """The size of a network: FLOPs of one sample, numbers in its parameters, removable units."""

    flops: float
    parameters: float
    units: float


class Column(NamedTuple):
    """A number of a step: its column in the table, and its chart in MLflow (empty: none)."""

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
    """One step of a track. What does not apply to the step is None.

    ``size`` and ``original`` are of the network after the step and of the unpruned network,
    ``measured`` holds the measurements by stage, ``widths`` the remaining units of each layer,
    ``latency_ms`` is of one sample, ``time`` is when the step was measured (seconds since 1970),
    ``scoring`` the cost of the scores that led to the step. ``finetune_kept`` is False if
    fine-tuning was undone.
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
        """The removed share of the original's FLOPs."""
        return 1 - self.size.flops / self.original.flops

    def value(self, split: str, measure: str, stage: str = STAGES[-1]) -> float:
        """Return the value of a measure."""
        values = {(m.split, m.measure): m.value for m in self.measured[stage]}
        return values[split, measure]

    def row(self) -> dict[str, float]:
        """Return the record as a row of the table of steps."""
        return {column.name: column.value for column in self.columns()}

    def columns(self) -> Iterator[Column]:
        """Yield the columns that apply."""
        yield from map(Column, Size._fields, self.size)
        for name, value, whole in zip(Size._fields, self.size, self.original, strict=True):
            yield Column(f"removed_{name}", 1 - value / whole, "removed")
        yield from self.measurements()
        costs = asdict(self.scoring) if self.scoring else {}
        optional = {f"scoring_{name}": value for name, value in costs.items()}
        for name in ("recalibrate_seconds", "finetune_seconds", "finetune_kept"):
            optional[name] = getattr(self, name)
        for name, value in optional.items():
            if value is not None:
                number = float(value) if isinstance(value, bool) else value
                yield Column(name, number, "seconds" if name.endswith("seconds") else "cost")
        yield Column("latency_ms", self.latency_ms)
        yield Column("time", self.time, "")
        for layer, width in self.widths.items():
            yield Column(f"width/{layer}", width, "width")

    def measurements(self) -> Iterator[Column]:
        """Yield the columns that were measured on the splits."""
        for stage in STAGES:
            for m in self.measured.get(stage, ()):
                yield Column(f"{m.split}_{m.measure}_{stage}", m.value, m.chart)


def from_json(content: Mapping[str, Any]) -> StepRecord:
    """Return the record whose ``asdict`` was written as JSON."""
    fields = dict(content)
    fields["measured"] = {
        stage: [Measurement(**m) for m in items] for stage, items in content["measured"].items()
    }
    for name in ("size", "original"):
        fields[name] = Size(*content[name])
    if content["scoring"] is not None:
        fields["scoring"] = ScoringCost(**content["scoring"])
    return StepRecord(**fields)
