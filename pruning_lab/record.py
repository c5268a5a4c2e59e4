"""What an experiment leaves behind: its labels, rows, scores, figures and the pruned model."""

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from pruning_lab import __version__, pictures, plain_text, tracking
from pruning_lab.atomic import to_json
from pruning_lab.attributions.scores import Estimates, LayerEstimates, scores_of
from pruning_lab.baseline import Baseline
from pruning_lab.compare import (
    accuracy_curves,
    rank_correlation,
    score_histograms,
    sorted_scores,
    style_of,
    widths,
)
from pruning_lab.compare.runs import GIVEN
from pruning_lab.identity import Job, identity
from pruning_lab.ledger import Cost
from pruning_lab.setup import plain
from pruning_lab.track import MAIN, Row
from pruning_lab.training import Evaluation

log = logging.getLogger(__name__)

TABLE = {
    "removed_flops": "FLOPs removed", "removed_parameters": "params removed",
    "test_accuracy_cut": "after the cut", "test_accuracy_before": "recalibrated",
    "test_accuracy_after": "fine-tuned",
}  # fmt: skip
"""The columns of the table at the end of a run, shares and test accuracies, and their heads."""

NOTHING: Mapping[str, Evaluation] = {}

NOT_IN_NAME = (
    "model", "metric", "seed", "plan", "force", "keep", "threads", "device", "tracking.uri",
    "tracking.experiment", "baseline.folder", "checkpoints", "attributions",
)  # fmt: skip
"""Settings that a run's name says already, or that determine nothing of what it shows."""

LONGEST_NAME = 250

COSTS = {
    "seconds": "seconds/baseline_{}",
    "forward": "passes/forward_{}",
    "backward": "passes/backward_{}",
    "peak_bytes": "memory/peak_bytes_{}",
}
"""In which chart of the UI the costs of scoring the baseline by a criterion are."""


@dataclass(frozen=True)
class Names:
    """What the configuration groups were set to: runs are grouped by these."""

    model: str
    dataset: str
    metric: str
    schedule: str
    finetune: str


class Rows:
    """What is measured step by step; writes nothing, for others to do."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def baseline_scores(self, estimates: Estimates, costs: dict[str, Cost]) -> None:
        """All criteria on the unpruned network, and what each took."""

    def scores(self, track: str, step: int, estimates: LayerEstimates) -> None:
        """The scores that lead to a step."""

    def row(
        self, track: str, step: int, measured: Row, test: Mapping[str, Evaluation] = NOTHING
    ) -> None:
        """Everything measured at one step of a track; step 0 is the unpruned network.

        ``test`` has the test split's samples, by stage.
        """
        self.rows.append({"track": track, "step": step} | measured)

    def of(self, track: str) -> list[dict[str, Any]]:
        """The rows of a track so far."""
        return [row for row in self.rows if row["track"] == track]

    def model(self, step: int, folder: Path) -> None:
        """The pruned model as it is after a step."""

    def seen(self, read: Mapping[str, Any]) -> None:
        """What the run was seen to read."""

    def curves(self) -> Any:
        """The curves of all tracks so far."""

    def conclude(self, uri: str, pruned: Path | None) -> None:
        """The run's own track is done."""


class Record(Rows):
    """Writes an experiment down while it runs: nothing measured waits for its end."""

    def __init__(self, run: tracking.Run, names: Names, output: Path) -> None:
        super().__init__()
        self.run, self.names, self.output = run, names, output
        self._costs: dict[str, float] = {}
        self._pictures: dict[tuple[str, int, str], Evaluation] = {}

    def baseline_scores(self, estimates: Estimates, costs: dict[str, Cost]) -> None:
        self.run.scores(estimates)
        scores = scores_of(estimates)
        for name, cost in costs.items():
            each = {chart.format(name): getattr(cost, key) for key, chart in COSTS.items()}
            self._costs |= {key: value for key, value in each.items() if value is not None}
        self.run.figure(score_histograms(scores), "scores_baseline")
        if len(scores) > 1:
            table, figure = rank_correlation(scores)
            self.run.figure(figure, "rank_correlation")
            self.run.table(table.reset_index(names="criterion"), "rank_correlation.csv")

    def scores(self, track: str, step: int, estimates: LayerEstimates) -> None:
        """The scores that lead to a step: raw; of the main track as histograms and sorted, too."""
        self.run.scores({self.names.metric: estimates}, step, track)
        if track != MAIN:
            return
        title = f"Scores that led to step {step}"
        histograms = score_histograms(scores_of({self.names.metric: estimates}), title)
        self.run.figure(histograms, f"scores_step_{step:03d}")
        if any(each.error is not None for each in estimates.values()):
            figure = sorted_scores(self.names.metric, estimates, title)
            self.run.figure(figure, f"sorted_step_{step:03d}")

    def row(
        self, track: str, step: int, measured: Row, test: Mapping[str, Evaluation] = NOTHING
    ) -> None:
        super().row(track, step, measured)
        self._pictures |= {(track, step, stage): found for stage, found in test.items()}
        permille = round(1000 * measured["removed_flops"])
        shown = {k: v for k, v in measured.items() if k != "time" and v is not None}
        if track == MAIN:
            shown |= {"removed/step": step} | (self._costs if step == 0 else {})
        else:  # what it cost is in the main track's charts
            shown = {k: v for k, v in shown.items() if "accuracy" in k or "loss" in k}
        self.run.metrics(permille, shown, track, measured["time"])
        self.run.table(pd.DataFrame(self.rows))
        if self._pictures:
            self.run.file(pictures.to_bytes(self._pictures), pictures.FILE)

    def model(self, step: int, folder: Path) -> None:
        self.run.folder(folder, f"pruned_models/step_{step:03d}")

    def seen(self, read: Mapping[str, Any]) -> None:
        self.run.text(to_json(read), tracking.SEEN)

    def curves(self) -> tuple[Path, Path]:
        """The curves of all tracks so far and their table, in the run and as files."""
        frame = pd.DataFrame(self.rows)
        curves = accuracy_curves(frame.assign(**asdict(self.names), run_id=self.run.run_id))
        self.output.mkdir(parents=True, exist_ok=True)
        figure, table = self.output / "accuracy_vs_flops.png", self.output / tracking.STEPS
        curves.savefig(figure, dpi=150)
        frame.to_csv(table, index=False)
        self.run.file(figure.read_bytes(), f"figures/{figure.name}")
        return figure, table

    def conclude(self, uri: str, pruned: Path | None) -> None:
        """The curve, the widths and the pruned model; says where to look."""
        main = pd.DataFrame(self.of(MAIN))
        figure, table = self.curves()
        left = main.filter(like="width/").rename(columns=lambda key: key.removeprefix("width/"))
        self.run.figure(widths(left.set_index(main["removed_flops"])), "widths")
        log.info("Test accuracy after each step:\n\n%s\n", "\n".join(steps_table(main)))
        log.info("%-13s %s", "Table", table)
        log.info("%-13s %s", "Figure", figure)
        if pruned is not None:
            self.run.folder(pruned, "pruned_model")
            log.info("%-13s %s", "Pruned model", pruned)
        log.info("%-13s %s", "MLflow", tracking.where_to_look(uri, self.run.experiment_id))


@contextmanager
def recording(
    client: tracking.MlflowClient,
    config: DictConfig,
    names: Names,
    labels: dict[str, Any],
    output: Path,
    overrides: Sequence[str] = (),
) -> Iterator[Record]:
    """A record in an MLflow run that holds the whole configuration."""
    shown = config.copy()
    shown.tracking.uri = tracking.without_password(config.tracking.uri)
    with tracking.run(
        client,
        config.tracking.experiment,
        run_name(names, config.seed, overrides),
        labels,
        tracking.flatten(plain(shown)),
        style_of(names.metric).color,
    ) as run:
        run.text(OmegaConf.to_yaml(shown, resolve=True), "config.yaml")
        yield Record(run, names, output)


def run_name(names: Names, seed: int, overrides: Sequence[str]) -> str:
    """How a run is called in MLflow: by what it is, and what was set otherwise than by default."""
    settings = [each.lstrip("+~") for each in overrides if not each.startswith("hydra")]
    own = [each for each in settings if each.partition("=")[0] not in NOT_IN_NAME]
    return " ".join([names.model, names.metric, f"seed {seed}", *own])[:LONGEST_NAME]


def find_finished(config: DictConfig, job: Job) -> tracking.Finished | None:
    """The run that did this job already; None where there is none, or it was another one after all.

    Another one: something that it was seen to read has changed since.
    """
    store = config.tracking
    for done in tracking.find_finished(store.uri, store.experiment, job.name):
        if (reason := job.seen.changed_since(done.seen)) is None:
            return done
        log.warning("The finished run %s (%s) is not this one: %s.", done.run_id, done.name, reason)
    return None


def tags(config: DictConfig, names: Names, baseline: Baseline) -> dict[str, Any]:
    """What runs are grouped by."""
    own = {k: v for k, v in plain(config.metric).items() if k not in ("_partial_", "seed")}
    return asdict(names) | {
        "seed": config.seed,
        "baseline": baseline.name,
        "block": block(config),
        "setting": setting(config, baseline),
        "metric_settings": json.dumps(own),
        "git_commit": git_commit(),
    }


def block(config: DictConfig) -> str:
    """What makes runs a block of a comparison: the seeds of the network that they start from.

    Given weights are one block, whatever the seeds: they are one network. The order of the data is
    no seed of a network that is not trained.
    """
    if config.baseline.checkpoint is not None or config.model.get("weights"):
        return GIVEN
    training = config.baseline.training
    trained = training.epochs or training.steps
    return f"init {config.seeds.init}" + (f", order {config.seeds.order}" if trained else "")


def setting(config: DictConfig, baseline: Baseline) -> str:
    """A hash of what runs share whose curves can be compared: all but criterion and seeds."""
    start = ("model", "dataset", "samples", "training", "checkpoint")
    shared = {key: baseline.determinants[key] for key in start}
    shared |= {key: plain(config[key]) for key in ("schedule", "finetune", "after_cut", "scoring")}
    return identity(shared)


def git_commit() -> str:
    """The commit of the code where it is a checkout, "-dirty" with changes; else its release."""
    root, git = Path(__file__).parents[1], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return f"release {__version__}"
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or f"release {__version__}"


def steps_table(main: pd.DataFrame) -> list[str]:
    """Return the lines of a table of the main track: a step a line, in per cent."""
    rows = [
        [str(step), *(f"{100 * share:.2f} %" for share in shares)]
        for step, *shares in main[["step", *TABLE]].itertuples(index=False)
    ]
    scoring = main["scoring_seconds"].fillna(0).map(plain_text.duration)
    cells = [[*row, spent] for row, spent in zip(rows, scoring, strict=True)]
    return plain_text.table(["step", *TABLE.values(), "scoring"], cells, "r" * (len(TABLE) + 2))
