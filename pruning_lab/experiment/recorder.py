"""Write an experiment down while it runs: its labels, steps, scores, figures and pruned models."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

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
from pruning_lab.config.sections import shown
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
from pruning_lab.tasks.task import Measure, Samples, Task
from pruning_lab.tracking import connect, keys, read, store, write

log = logging.getLogger(__name__)


COSTS = {
    "seconds": "seconds/baseline_{}",
    "forward": "passes/forward_{}",
    "backward": "passes/backward_{}",
    "peak_bytes": "memory/peak_bytes_{}",
}
"""In which chart of the UI the costs of scoring the baseline by a criterion are."""


class RunRecorder(NullRecorder):
    """Records nothing of an experiment: for all ranks but the leading one."""

    def baseline_scores(self, estimates: Estimates, costs: Mapping[str, ScoringCost]) -> None:
        """Record the scores of the unpruned network by all criteria, and their costs."""

    def record(self, track: str, number: int, result: StepResult) -> None:
        """Record everything measured at one step of a track."""

    def curves(self) -> None:
        """Draw the curves of all tracks so far."""

    def seen(self, read: Mapping[str, Any]) -> None:
        """Record the files, modules and variables that the run has read."""

    def conclude(self, pruned: Path | None) -> None:
        """Record that the main track is finished; ``pruned`` is the folder of its model."""


class MlflowRecorder(RunRecorder):
    """Writes each step to MLflow as soon as it is finished."""

    def __init__(self, run: write.Run, setup: Setup, output: Path) -> None:
        self.run, self.setup, self.primary = run, setup, setup.task.primary
        self.figure = output / f"{self.primary.name}_vs_flops.png"
        self.table = output / keys.STEPS
        self._steps: dict[tuple[str, int], StepRecord] = {}
        self._costs: dict[str, float] = {}
        self._samples: dict[tuple[str, int, str], Samples] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per track and step, in the order in which they were recorded."""
        return [
            {"track": track, "step": number} | record.row()
            for (track, number), record in self._steps.items()
        ]

    def of(self, track: str) -> list[dict[str, Any]]:
        """Return the rows of a track so far."""
        return [row for row in self.rows if row["track"] == track]

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
        self.record(run.name, number, result)
        if number and run.name == MAIN and self.setup.settings.keep == "all":
            self._keep_model(run, number, result.is_current)

    def record(self, track: str, number: int, result: StepResult) -> None:
        self.setup.checkpoint.note()
        record = result.record
        main = track == MAIN
        columns = record.columns() if main else record.measurements()  # costs are the main track's
        charted = {
            keys.chart_key(column.chart, column.name, track): column.value
            for column in columns
            if column.chart
        }
        if main:
            charted |= {"removed/step": number} | (self._costs if number == 0 else {})
        self.run.metrics(round(1000 * record.removed_flops), charted, record.time)
        self._samples |= {(track, number, stage): each for stage, each in result.test.items()}
        self._steps[track, number] = record
        log.info(
            "Step %d of %d%s: %.1f %% of the FLOPs removed, test %s %s, validation %s %s",
            number, len(self.setup.steps), "" if main else f", {track}",
            100 * record.removed_flops, self.primary.label,
            _story(record, self.primary, "training" if track == SCRATCH else "fine-tuning"),
            self.primary.label, self.primary.text(record.value("val", self.primary.name)),
        )  # fmt: skip
        self.run.table(pd.DataFrame(self.rows))
        self.run.file(per_sample.to_bytes(self._samples), per_sample.FILE)

    def _keep_model(self, run: PruningRun, number: int, current: bool) -> None:
        """Write the pruned model after a step; it is beside the checkpoint until the run ends."""
        folder = self.setup.checkpoint.folder / f"model-{number:03d}"
        if not (folder / RECIPE).exists():
            if not current:
                log.warning("Model %d was not saved: keep=all was not set at that step.", number)
                return
            save_pruned(run.network.model, folder, run.network.pruner.kept)
        self.run.folder(folder, f"pruned_models/step_{number:03d}")

    def seen(self, read: Mapping[str, Any]) -> None:
        self.run.text(to_json(read), keys.SEEN)

    def curves(self) -> None:
        """Write the curves of all tracks so far and their table, to the run and as files."""
        frame = pd.DataFrame(self.rows)
        about = {**asdict(self.setup.names), **self.primary.recorded(), "run_id": self.run.run_id}
        curves = quality_curves(frame.assign(**about))
        self.figure.parent.mkdir(parents=True, exist_ok=True)
        curves.savefig(self.figure, dpi=150)
        frame.to_csv(self.table, index=False)
        self.run.file(self.figure.read_bytes(), f"figures/{self.figure.name}")

    def conclude(self, pruned: Path | None) -> None:
        """Write the curve, the widths and the pruned model; say where to look."""
        main = pd.DataFrame(self.of(MAIN))
        self.curves()
        left = main.filter(like="width/").rename(columns=lambda key: key.removeprefix("width/"))
        self.run.figure(widths(left.set_index(main["removed_flops"])), "widths")
        lines = "\n".join(steps_table(main, self.setup.task))
        log.info("Test %s after each step:\n\n%s\n", self.primary.label, lines)
        log.info("%-13s %s", "Table", self.table)
        log.info("%-13s %s", "Figure", self.figure)
        if pruned is not None:
            self.run.folder(pruned, "pruned_model")
            log.info("%-13s %s", "Pruned model", pruned)
        uri = self.setup.settings.tracking.uri
        where = store.where_to_look(uri, self.run.experiment_id)
        log.info("%-13s %s", "MLflow", where)


@contextmanager
def recording(setup: Setup, output: Path, overrides: Sequence[str] = ()) -> Iterator[RunRecorder]:
    """The record of a run: of an earlier try, where that was cut off, or a new one.

    Only the leading process writes.
    """
    if not distributed.leads():
        yield RunRecorder()
        return
    checkpoint, settings, forced = setup.checkpoint, setup.settings, setup.settings.force
    token = checkpoint.begun(forced)
    if token is None:
        token = checkpoint.begin(forced, {"of": vars(setup.names), "start": setup.start})
    else:
        log.info("Going on where an earlier try was cut off (%s)", checkpoint.folder)
    labels = tags(setup) | {keys.IDENTITY: setup.name, keys.CHECKPOINT: token}
    public = shown(setup.config)
    with write.run(
        connect(settings.tracking.uri),
        settings.tracking.experiment,
        run_name(setup.names, settings.seed, overrides),
        labels,
        write.flatten(plain(public)),
        style_of(setup.names.metric).color,
    ) as run:
        run.text(OmegaConf.to_yaml(public, resolve=True), "config.yaml")
        yield MlflowRecorder(run, setup, output)


def find_finished(job: Job) -> read.Finished | None:
    """The run that did this job already; None where there is none, or it was another one after all.

    Another one: something that it was seen to read has changed since.
    """
    store = job.settings.tracking
    for done in read.find_finished(store.uri, store.experiment, job.name, job.task.primary):
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


def _story(record: StepRecord, measure: Measure, training: str) -> str:
    """``37.78 % after the cut, 97.22 % recalibrated, 97.50 % after fine-tuning``."""
    at = {
        stage: measure.text(record.value("test", measure.name, stage)) for stage in record.measured
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
