"""``python -m pruning_lab.truth``: compare criteria with random orders on one trained network."""

import logging
import os
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pruning_lab import criteria, tracking
from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.activations import shares_pass
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.scores import LayerEstimates
from pruning_lab.compare import markdown
from pruning_lab.composition import check_composed, where_given
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError, check_choice, check_count
from pruning_lab.ledger import Cost, measured
from pruning_lab.plain_text import layers_in_words
from pruning_lab.progress import ScoringBar
from pruning_lab.record import Names, git_commit
from pruning_lab.runner import Experiment
from pruning_lab.setup import build, plain
from pruning_lab.sources import digest_of_program
from pruning_lab.track import seeded
from pruning_lab.training import evaluate
from pruning_lab.truth.figures import harm_by_layer, quality_and_cost, removal_curves
from pruning_lab.truth.layer import LayerTruth, Settings, judge
from pruning_lab.truth.recalibrated import calibration_pictures
from pruning_lab.truth.removals import Removals
from pruning_lab.truth.tables import MEASURES, RANDOM, by_layer, overall, readable

log = logging.getLogger("pruning_lab")

SHOWN = 6
"""Number of criteria, the best ones, in the figure of curves."""

ONE_DRAW = "random"
"""The criterion that is left out unless it is asked for: the random orders stand for it."""


class Truth:
    """Score a baseline by all criteria and remove units in the order of each."""

    def __init__(self, config: DictConfig, names: Names, output: Path) -> None:
        if config.plan:
            raise UserError("plan=true is for python -m pruning_lab, not for pruning_lab.truth.")
        self.config, self.names, self.output = config, names, output
        given = plain(config.truth)
        chosen, wanted = given.pop("criteria"), given.pop("layers")
        self.samples, self.recalibrate = given.pop("samples"), given.pop("recalibrate")
        check_count("truth.samples", self.samples, 2)
        check_count("truth.recalibrate", self.recalibrate, 0)
        for key in given:
            check_choice("truth", key, [each.name for each in fields(Settings)])
        self.settings = Settings(**given)
        every = [name for name in criteria.names() if name != ONE_DRAW]
        chosen = every if chosen is None else _names("criteria", chosen)
        self.criteria = {name: self._settings(name) for name in chosen} | dict(config.attributions)
        self.experiment = Experiment(config, names, output)
        self.network, self.baseline = self.experiment.network, self.experiment.baseline
        self.players = self._players(wanted)
        self.metrics = {name: self._metric(name) for name in self.criteria}
        self.scored = {name: self._accepted(name) for name in self.criteria}
        if not any(self.scored.values()):
            raise UserError(f"None of {', '.join(self.criteria)} can score any of the layers.")

    def run(self) -> pd.DataFrame:
        """Return the table over all layers; it is written to MLflow and the output folder, too."""
        self.experiment.obtain_baseline()
        found: dict[str, LayerEstimates] = {}
        costs: dict[str, Cost] = {}
        for name, players in self.scored.items():
            if players:
                found[name], costs[name] = self._scores(name, players)
        truths = self._truths(found)
        layers = by_layer(truths)
        table = overall(layers, costs)
        self._record(truths, layers, table)
        return table

    # -- what is built, and refused before any work starts -------------------------------------

    def _settings(self, name: str) -> DictConfig:
        """Return a criterion's settings, with the values they refer to in the configuration."""
        whole = OmegaConf.create(plain(self.config) | {"own": {}})
        whole.own = criteria.settings(name)
        return DictConfig(OmegaConf.to_container(whole.own, resolve=True))

    def _players(self, wanted: Any) -> dict[str, Players]:
        every = self.network.players(tuple(self.network.layers), self.experiment.schedule.coupled)
        if wanted is None:
            return every
        for name in _names("layers", wanted):
            check_choice("truth.layers", name, every)
        return {name: every[name] for name in wanted}

    def _metric(self, name: str) -> AttributionMetric:
        make, experiment = build(self.criteria[name], f"metric={name}"), self.experiment
        return make(self.network.model, experiment.batches, F.cross_entropy, experiment.device)

    def _accepted(self, name: str) -> dict[str, Players]:
        """Return the layers that a criterion can score; log why it refuses the others."""
        metric, accepted = self.metrics[name], dict(self.players)
        try:
            metric.check(list(accepted.values()), True)
        except UserError:
            accepted, reasons = {}, {}
            for layer, players in self.players.items():
                try:
                    metric.check([players], True)
                    accepted[layer] = players
                except UserError as error:
                    reasons[layer] = str(error)
            for layer, reason in reasons.items():
                log.info("%s without '%s': %s", name, layer, reason)
        return accepted

    # -- the stages ---------------------------------------------------------------------------

    def _scores(self, name: str, players: dict[str, Players]) -> tuple[LayerEstimates, Cost]:
        """Score by one criterion alone, or read its scores and cost from beside the baseline."""
        metric, config = self.metrics[name], self.config

        def score() -> tuple[LayerEstimates, Cost]:
            log.info("Scoring %s by %s ...", layers_in_words(players), name)
            behind = self.network.work_behind()
            bar = ScoringBar(name, [behind.get(each, 1) for each in players])
            seeded(config.seeds.score, 0)
            with bar, measured(self.experiment.device) as cost:
                found = metric.estimate(list(players.values()), True, bar)
            return dict(zip(players, found, strict=True)), cost

        about: dict[str, Any] = plain(self.criteria[name]) | plain(config.scoring)
        about |= {"code": digest_of_program(type(metric)), "layers": list(players)}
        about |= {"coupled": self.experiment.schedule.coupled, "alone": shares_pass(metric)}
        about |= {"seed": config.seeds.score}
        return self.baseline.scores(name, about, score)

    def _truths(self, found: dict[str, LayerEstimates]) -> list[LayerTruth]:
        """Remove units layer by layer; what was measured is kept beside the baseline."""
        splits, config = self.experiment.splits, self.config
        pictures = calibration_pictures(
            splits.train, self.recalibrate, seeded(config.seeds.score, 1)
        )
        removals = Removals(
            self.network.model, loader(splits.test, config.scoring.batch_size),
            self.experiment.device, self.samples, splits.num_classes, pictures,
            self.baseline.folder / "truth",
        )  # fmt: skip
        truths = []
        for layer, players in tqdm(self.players.items(), "Removing units", disable=None):
            scores = {name: each[layer].scores for name, each in found.items() if layer in each}
            if scores:
                truths.append(judge(layer, players, scores, removals, self.settings))
        return truths

    def _record(self, truths: list[LayerTruth], layers: pd.DataFrame, table: pd.DataFrame) -> None:
        """Write tables and figures to MLflow and to the output folder."""
        accuracy = evaluate(self.network.model, self.experiment.splits.test).accuracy
        order = [name for name in table["criterion"] if name != RANDOM]
        figures = {
            "quality_and_cost": quality_and_cost(table),
            "harm_by_layer": harm_by_layer(layers, order),
            "removal_curves": removal_curves(truths, order[:SHOWN]),
        }
        text = f"{self._about(accuracy)}\n\n{markdown(readable(table))}"
        self.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(self.output / f"{name}.png", dpi=150, metadata={"Software": None})
        files = {
            "truth.md": text,
            "truth.csv": table.to_csv(index=False, float_format="%.6g"),
            "layers.csv": layers.to_csv(index=False, float_format="%.6g"),
        }
        for name, content in files.items():
            (self.output / name).write_text(content, encoding="utf-8")
        with tracking.run(
            self.experiment.client, self.config.tracking.experiment,
            f"truth {self.names.model} {self.names.dataset} seed {self.config.seed}",
            {tracking.COMPARISON: len(table), "model": self.names.model,
             "dataset": self.names.dataset, "baseline": self.baseline.name,
             "git_commit": git_commit()},
            tracking.flatten(plain(self._shown)),
        ) as run:  # fmt: skip
            for name in figures:
                run.file((self.output / f"{name}.png").read_bytes(), f"truth/{name}.png")
            for name, content in files.items():
                run.text(content, f"truth/{name}")
            for name, row in table.set_index("criterion").loc[order].iterrows():
                run.metrics(0, {f"{key}/{name}": row[key] for key in MEASURES})
        log.info("\n%s\n", text)
        log.info("%-9s %s", "Files", self.output)
        where = tracking.where_to_look(self.config.tracking.uri, run.experiment_id)
        log.info("%-9s %s", "MLflow", where)

    @cached_property
    def _shown(self) -> DictConfig:
        shown = self.config.copy()
        shown.tracking.uri = tracking.without_password(self.config.tracking.uri)
        return shown

    def _about(self, accuracy: float) -> str:
        settings, splits = self.settings, self.experiment.splits
        score, test = len(splits.score), len(splits.test)  # type: ignore[arg-type]
        shares = ", ".join(f"{100 * share:g}" for share in settings.shares)
        statistics = (
            f"made anew for each set from {self.recalibrate} training samples"
            if self.recalibrate
            else "as they were"
        )
        return (
            f"{self.names.model} on {self.names.dataset}, {accuracy:.1%} right on {test} test "
            f"samples, {len(self.players)} layers; scored on {score} samples (fewer where a "
            f"criterion has `samples`). In one layer at a time, {shares} % of the units are "
            f"removed, lowest score first, BatchNorm's statistics {statistics}; measured on "
            f"{min(self.samples, test)} test samples. Quantile: the share of {settings.draws} "
            "random orders of the same layer that do less harm (rise of the loss, capped at "
            "ln(classes) for each sample), 0.5 for a random order. Points and nats vs random: "
            "accuracy lost and rise of the capped loss, minus the mean of the random orders; "
            "negative is better. All are means over layers with 95 % intervals by Student's t over "
            "the layers; in the row of the random orders, the range of 95 % of them. Reverse: the "
            "quantile when the highest scores go first, "
            f"{100 * settings.shares[-1]:g} % of the units. Oracle k: the share of all other sets "
            "of k units that do less harm than the criterion's. Greedy: overlap with the first "
            f"{settings.greedy} units of the greedy oracle, from 0 (chance) to 1 (all)."
        )


def _names(which: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not given or not all(isinstance(n, str) for n in given):
        raise UserError(
            f"truth.{which}={given} is not possible; give a list of names, or null for all."
        )
    return given


@hydra.main(version_base="1.3", config_path="pkg://pruning_lab.conf", config_name="truth")
def main(config: DictConfig) -> None:
    """Run the command."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CompactHydraException("pruning_lab.truth is one process: start it without torchrun.")
    hydra_config = HydraConfig.get()
    try:
        with where_given(hydra_config):
            names = Names(*check_composed(config, hydra_config, Names.__dataclass_fields__))
            Truth(config, names, Path(hydra_config.runtime.output_dir)).run()
    except (UserError, OSError) as error:
        raise CompactHydraException(str(error)) from None


if __name__ == "__main__":
    main()
