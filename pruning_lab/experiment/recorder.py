"""Write an experiment down while it runs: its labels, steps, scores, figures and pruned models."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from pruning_lab import tracking
from pruning_lab.attributions.estimation.scores import Estimates, LayerEstimates, scores_of
from pruning_lab.compare import (
    quality_curves,
    rank_correlation,
    score_histograms,
    sorted_scores,
    style_of,
    widths,
)
from pruning_lab.config.build import plain
from pruning_lab.config.shown import shown
from pruning_lab.experiment.fingerprint import Job
from pruning_lab.experiment.labels import run_name, tags
from pruning_lab.experiment.pruning_run import NullRecorder, PruningRun, StepResult
from pruning_lab.experiment.setup import Setup
from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.pruner.saved_model import RECIPE, save_pruned
from pruning_lab.records import per_sample
from pruning_lab.records.step import MAIN, SCRATCH, StepRecord
from pruning_lab.runtime import distributed, terminal
from pruning_lab.runtime.files import to_json
from pruning_lab.tasks.task import Samples, Task

log = logging.getLogger(__name__)


COSTS = {
    "seconds": "seconds/baseline_{}",
    "forward": "passes/forward_{}",
    "backward": "passes/backward_{}",
    "peak_bytes": "memory/peak_bytes_{}",
}
"""In which chart of the UI the costs of scoring the baseline by a criterion are."""


class RunRecorder(NullRecorder):
    """Keeps the steps of all tracks of a run in memory and logs them; writes no file."""

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self._count = task, steps
        self._steps: dict[str, dict[int, StepRecord]] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a track and step, in the order in which they came."""
        return [
            {"track": track, "step": number} | record.row()
            for track, records in self._steps.items()
            for number, record in records.items()
        ]

    def of(self, track: str) -> list[dict[str, Any]]:
        """The rows of a track so far."""
        return [row for row in self.rows if row["track"] == track]

    def last(self, track: str) -> StepRecord:
        """The last record of a track."""
        return list(self._steps[track].values())[-1]

    def baseline_scores(self, estimates: Estimates, costs: Mapping[str, ScoringCost]) -> None:
        """All criteria on the unpruned network, and what each took."""

    def step(self, run: PruningRun, number: int, result: StepResult) -> None:
        self.record(run.name, number, result)

    def record(self, track: str, number: int, result: StepResult) -> None:
        """Everything measured at one step of a track."""
        self._steps.setdefault(track, {})[number] = result.record
        log.info(
            "Step %d of %d%s: %.1f %% of the FLOPs gone, test %s %s, validation %s %s",
            number, self._count, "" if track == MAIN else f", {track}",
            100 * result.record.removed_flops, self.task.primary.label,
            _story(result.record, self.task, "training" if track == SCRATCH else "fine-tuning"),
            self.task.primary.label, self.task.primary.text(self._value(result.record, "val")),
        )  # fmt: skip

    def _value(self, record: StepRecord, split: str) -> float:
        return record.value(split, self.task.primary.name)

    def curves(self) -> Any:
        """The curves of all tracks so far."""

    def seen(self, read: Mapping[str, Any]) -> None:
        """Record the files, modules and variables that the run has read."""

    def conclude(self, pruned: Path | None) -> None:
        """The run's own track is done."""


class MlflowRecorder(RunRecorder):
    """Writes each step to MLflow as soon as it is finished."""

    def __init__(self, run: tracking.Run, setup: Setup, output: Path) -> None:
        super().__init__(setup.task, len(setup.steps))
        self.run, self.setup, self.output = run, setup, output
        self._costs: dict[str, float] = {}
        self._samples: dict[tuple[str, int, str], Samples] = {}

    def baseline_scores(self, estimates: Estimates, costs: Mapping[str, ScoringCost]) -> None:
        self.run.scores(estimates)
        scores = scores_of(estimates)
        for name, cost in costs.items():
            charted = {chart.format(name): getattr(cost, key) for key, chart in COSTS.items()}
            self._costs |= {key: value for key, value in charted.items() if value is not None}
        self.run.figure(score_histograms(scores), "scores_baseline")
        if len(scores) > 1:
            table, figure = rank_correlation(scores)
            self.run.figure(figure, "rank_correlation")
            self.run.table(table.reset_index(names="criterion"), "rank_correlation.csv")

    def scores(self, run: PruningRun, number: int, estimates: LayerEstimates) -> None:
        """Write raw scores; those of the main track as histograms and sorted, too."""
        chosen = self.setup.names.metric
        self.run.scores({chosen: estimates}, number, run.name)
        if run.name != MAIN:
            return
        title = f"Scores that led to step {number}"
        histograms = score_histograms(scores_of({chosen: estimates}), title)
        self.run.figure(histograms, f"scores_step_{number:03d}")
        if any(each.error is not None for each in estimates.values()):
            figure = sorted_scores(chosen, estimates, title)
            self.run.figure(figure, f"sorted_step_{number:03d}")

    def step(self, run: PruningRun, number: int, result: StepResult) -> None:
        super().step(run, number, result)
        if number and run.name == MAIN and self.setup.settings.keep == "all":
            self._keep_model(run, number, result.is_current)

    def record(self, track: str, number: int, result: StepResult) -> None:
        self.setup.checkpoint.note()
        record = result.record
        main = track == MAIN
        columns = record.columns() if main else record.measurements()  # costs are the main track's
        charted = {
            tracking.chart_key(column.chart, column.name, track): column.value
            for column in columns
            if column.chart
        }
        if main:
            charted |= {"removed/step": number} | (self._costs if number == 0 else {})
        self.run.metrics(round(1000 * record.removed_flops), charted, record.time)
        self._samples |= {(track, number, stage): each for stage, each in result.test.items()}
        super().record(track, number, result)
        self.run.table(pd.DataFrame(self.rows))
        self.run.file(per_sample.to_bytes(self._samples), per_sample.FILE)

    def _keep_model(self, run: PruningRun, number: int, current: bool) -> None:
        """Write the pruned model after a step; it is beside the checkpoint until the run ends."""
        folder = self.setup.checkpoint.folder / f"model-{number:03d}"
        if not (current or (folder / RECIPE).exists()):
            log.warning("The model after step %d is gone: keep=all was not set then.", number)
            return
        if not (folder / RECIPE).exists():
            save_pruned(run.network.model, folder, run.network.pruner.kept)
        self.run.folder(folder, f"pruned_models/step_{number:03d}")

    def seen(self, read: Mapping[str, Any]) -> None:
        self.run.text(to_json(read), tracking.SEEN)

    def curves(self) -> tuple[Path, Path]:
        """The curves of all tracks so far and their table, in the run and as files."""
        frame, measure = pd.DataFrame(self.rows), self.task.primary
        about = {**asdict(self.setup.names), **measure.recorded(), "run_id": self.run.run_id}
        curves = quality_curves(frame.assign(**about))
        self.output.mkdir(parents=True, exist_ok=True)
        figure, table = self.output / f"{measure.name}_vs_flops.png", self.output / tracking.STEPS
        curves.savefig(figure, dpi=150)
        frame.to_csv(table, index=False)
        self.run.file(figure.read_bytes(), f"figures/{figure.name}")
        return figure, table

    def conclude(self, pruned: Path | None) -> None:
        """Write the curve, the widths and the pruned model; say where to look."""
        main = pd.DataFrame(self.of(MAIN))
        figure, table = self.curves()
        left = main.filter(like="width/").rename(columns=lambda key: key.removeprefix("width/"))
        self.run.figure(widths(left.set_index(main["removed_flops"])), "widths")
        lines = "\n".join(steps_table(main, self.task))
        log.info("Test %s after each step:\n\n%s\n", self.task.primary.label, lines)
        log.info("%-13s %s", "Table", table)
        log.info("%-13s %s", "Figure", figure)
        if pruned is not None:
            self.run.folder(pruned, "pruned_model")
            log.info("%-13s %s", "Pruned model", pruned)
        uri = self.setup.settings.tracking.uri
        where = tracking.where_to_look(uri, self.run.experiment_id)
        log.info("%-13s %s", "MLflow", where)


@contextmanager
def recording(setup: Setup, output: Path, overrides: Sequence[str] = ()) -> Iterator[RunRecorder]:
    """The record of a run: of an earlier try, where that was cut off, or a new one.

    Only the leading process writes.
    """
    if not distributed.leads():
        yield RunRecorder(setup.task, len(setup.steps))
        return
    checkpoint, settings, forced = setup.checkpoint, setup.settings, setup.settings.force
    token = checkpoint.begun(forced)
    if token is None:
        token = checkpoint.begin(forced, {"of": vars(setup.names), "start": setup.job.start})
    else:
        log.info("Going on where an earlier try was cut off (%s)", checkpoint.folder)
    labels = tags(setup) | {tracking.IDENTITY: setup.job.name, tracking.CHECKPOINT: token}
    public = shown(setup.config)
    with tracking.run(
        tracking.connect(settings.tracking.uri),
        settings.tracking.experiment,
        run_name(setup.names, settings.seed, overrides),
        labels,
        tracking.flatten(plain(public)),
        style_of(setup.names.metric).color,
    ) as run:
        run.text(OmegaConf.to_yaml(public, resolve=True), "config.yaml")
        yield MlflowRecorder(run, setup, output)


def find_finished(job: Job) -> tracking.Finished | None:
    """The run that did this job already; None where there is none, or it was another one after all.

    Another one: something that it was seen to read has changed since.
    """
    store = job.settings.tracking
    for done in tracking.find_finished(store.uri, store.experiment, job.name, job.task.primary):
        if (reason := job.seen.changed_since(done.seen)) is None:
            return done
        log.warning("The finished run %s (%s) is not this one: %s.", done.run_id, done.name, reason)
    return None


def steps_table(main: pd.DataFrame, task: Task) -> list[str]:
    """The lines of a table of the main track: a step a line, as its measures are shown."""
    measure = task.primary
    shares = {"removed_flops": "FLOPs removed", "removed_parameters": "params removed"}
    stages = {"cut": "after the cut", "before": "recalibrated", "after": "fine-tuned"}
    values = {f"test_{measure.name}_{stage}": head for stage, head in stages.items()}
    cells = [
        [str(row["step"]), *(f"{100 * row[key]:.2f} %" for key in shares),
         *(measure.text(row[key]) for key in values),
         terminal.duration(0 if pd.isna(row.get("scoring_seconds")) else row["scoring_seconds"])]
        for row in main.to_dict("records")
    ]  # fmt: skip
    heads = ["step", *shares.values(), *values.values(), "scoring"]
    return terminal.table(heads, cells, "r" * len(heads))


def _story(record: StepRecord, task: Task, training: str) -> str:
    """``37.78 % after the cut, 97.22 % recalibrated, 97.50 % after fine-tuning``."""
    primary = task.primary
    at = {
        stage: primary.text(record.value("test", primary.name, stage)) for stage in record.measured
    }
    told = [at["cut"]]
    if record.recalibrate_seconds:
        told.append(f"{at['before']} recalibrated")
    if record.finetune_kept is False:
        told.append(f"{training} undone")
    elif record.finetune_seconds:
        told.append(f"{at['after']} after {training}")
    if len(told) > 1:
        told[0] += " after the cut"
    return ", ".join(told)
