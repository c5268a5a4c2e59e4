"""``python -m pruning_lab.ground_truth``: compare criteria with random orders on a network."""

import logging
import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pruning_lab import criteria, tracking
from pruning_lab.attributions.estimation.scores import LayerEstimates
from pruning_lab.attributions.evidence.activations import shares_pass
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.compare import markdown
from pruning_lab.config.build import plain
from pruning_lab.config.composition import check_composed, where_given
from pruning_lab.config.sections import Names
from pruning_lab.config.shown import shown
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError, check_choice, check_count
from pruning_lab.experiment.labels import git_commit
from pruning_lab.experiment.scoring import score_network
from pruning_lab.experiment.seeds import seeded
from pruning_lab.experiment.setup import build_metric, set_up
from pruning_lab.experiment.stages import obtain_baseline
from pruning_lab.ground_truth.figures import harm_by_layer, quality_and_cost, removal_curves
from pruning_lab.ground_truth.layer import LayerTruth, Settings, judge
from pruning_lab.ground_truth.recalibrated import calibration_pictures
from pruning_lab.ground_truth.removals import Removals
from pruning_lab.ground_truth.tables import MEASURES, RANDOM, by_layer, overall, readable
from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.provenance.source_code import digest_of_program
from pruning_lab.training.evaluation import evaluate

log = logging.getLogger("pruning_lab")

SHOWN = 6
"""Number of criteria in the figure of removal curves: the best ones."""

ONE_DRAW = "random"
"""The criterion that is excluded unless requested: the random orders represent it."""


class Truth:
    """Score a baseline by all criteria and remove its units; UserError for invalid settings."""

    def __init__(self, config: DictConfig, names: Names, output: Path) -> None:
        if config.plan:
            raise UserError(
                "plan=true is for python -m pruning_lab, not for pruning_lab.ground_truth."
            )
        self.config, self.names, self.output = config, names, output
        given = plain(config.truth)
        chosen, wanted = given.pop("criteria"), given.pop("layers")
        self.samples, self.recalibrate = given.pop("samples"), given.pop("recalibrate")
        check_count("truth.samples", self.samples, 2)
        check_count("truth.recalibrate", self.recalibrate, 0)
        for key in given:
            check_choice("truth", key, [field.name for field in fields(Settings)])
        self.settings = Settings(**given)
        defaults = [name for name in criteria.names() if name != ONE_DRAW]
        chosen = defaults if chosen is None else _names("criteria", chosen)
        self.criteria = {name: self._settings(name) for name in chosen} | dict(config.attributions)
        self.setup = setup = set_up(config, names)
        self.network, self.baseline = setup.network, setup.baseline
        self.unit_groups = self._players(wanted)
        self.metrics = {
            name: build_metric(
                conf, self.network.model, setup.batches, setup.task, setup.device, f"metric={name}"
            )
            for name, conf in self.criteria.items()
        }
        self.scored = {name: self._accepted(name) for name in self.criteria}
        if not any(self.scored.values()):
            raise UserError(f"None of {', '.join(self.criteria)} can score any of the layers.")

    def run(self) -> pd.DataFrame:
        """Return the table over all layers, and write it to MLflow and the output folder."""
        obtain_baseline(self.setup)
        estimates: dict[str, LayerEstimates] = {}
        costs: dict[str, ScoringCost] = {}
        for name, unit_groups in self.scored.items():
            if unit_groups:
                estimates[name], costs[name] = self._scores(name, unit_groups)
        truths = self._truths(estimates)
        layers = by_layer(truths)
        table = overall(layers, costs)
        self._record(truths, layers, table)
        return table

    # -- setup and checks, before any work starts ---------------------------------------------

    def _settings(self, name: str) -> DictConfig:
        """Return a criterion's settings, with references to the configuration resolved."""
        config = OmegaConf.create(plain(self.config) | {"own": {}})
        config.own = criteria.settings(name)
        return DictConfig(OmegaConf.to_container(config.own, resolve=True))

    def _players(self, wanted: Any) -> dict[str, UnitGroups]:
        """Return the unit groups of the ``wanted`` layers; None selects all layers."""
        groups = self.network.unit_groups(tuple(self.network.layers), self.setup.schedule.coupled)
        if wanted is None:
            return groups
        for name in _names("layers", wanted):
            check_choice("truth.layers", name, groups)
        return {name: groups[name] for name in wanted}

    def _accepted(self, name: str) -> dict[str, UnitGroups]:
        """Return the layers that a criterion can score; log why it refuses the others."""
        metric, accepted = self.metrics[name], dict(self.unit_groups)
        try:
            metric.check(list(accepted.values()), True)
        except UserError:
            accepted, reasons = {}, {}
            for layer, unit_groups in self.unit_groups.items():
                try:
                    metric.check([unit_groups], True)
                    accepted[layer] = unit_groups
                except UserError as error:
                    reasons[layer] = str(error)
            for layer, reason in reasons.items():
                log.info("%s cannot score '%s': %s", name, layer, reason)
        return accepted

    # -- the stages ---------------------------------------------------------------------------

    def _scores(
        self, name: str, unit_groups: dict[str, UnitGroups]
    ) -> tuple[LayerEstimates, ScoringCost]:
        """Score by one criterion, or read its scores and cost from the baseline's folder."""
        metric, config = self.metrics[name], self.config
        seed = self.setup.settings.seeds.score
        about: dict[str, Any] = plain(self.criteria[name]) | plain(config.scoring)
        about |= {"code": digest_of_program(type(metric)), "layers": list(unit_groups)}
        about |= {"coupled": self.setup.schedule.coupled, "alone": shares_pass(metric)}
        about |= {"seed": seed}
        score = partial(score_network, metric, self.network, unit_groups, seed, name)
        return self.baseline.scores(name, about, score)

    def _truths(self, found: dict[str, LayerEstimates]) -> list[LayerTruth]:
        """Remove units layer by layer; measurements are cached in the baseline's folder."""
        splits, setup = self.setup.splits, self.setup
        pictures = calibration_pictures(
            splits.train, self.recalibrate, seeded(setup.settings.seeds.score, 1)
        )
        removals = Removals(
            self.network.model, loader(splits.test, setup.settings.batch_size), setup.device,
            self.samples, setup.task, setup.task.uninformed_loss(splits), pictures,
            self.baseline.folder / "truth",
        )  # fmt: skip
        truths = []
        for layer, unit_groups in tqdm(self.unit_groups.items(), "Removing units", disable=None):
            scores = {name: e[layer].scores for name, e in found.items() if layer in e}
            if scores:
                truths.append(judge(layer, unit_groups, scores, removals, self.settings))
        return truths

    def _record(self, truths: list[LayerTruth], layers: pd.DataFrame, table: pd.DataFrame) -> None:
        """Write tables and figures to MLflow and to the output folder."""
        setup = self.setup
        unpruned = evaluate(self.network.model, setup.splits.test, setup.task)
        quality = setup.task.primary.text(unpruned.values[setup.task.primary.name])
        order = [name for name in table["criterion"] if name != RANDOM]
        figures = {
            "quality_and_cost": quality_and_cost(table),
            "harm_by_layer": harm_by_layer(layers, order),
            "removal_curves": removal_curves(truths, order[:SHOWN]),
        }
        text = f"{self._about(quality)}\n\n{markdown(readable(table))}"
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
            tracking.connect(setup.settings.tracking.uri), setup.settings.tracking.experiment,
            f"truth {self.names.model} {self.names.dataset} seed {self.config.seed}",
            {tracking.COMPARISON: len(table), "model": self.names.model,
             "dataset": self.names.dataset, "baseline": self.baseline.name,
             "git_commit": git_commit()},
            tracking.flatten(plain(shown(self.config))),
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

    def _about(self, quality: str) -> str:
        settings, splits = self.settings, self.setup.splits
        measure = self.setup.task.primary.label
        score, test = len(splits.score), len(splits.test)  # type: ignore[arg-type]
        shares = ", ".join(f"{100 * share:g}" for share in settings.shares)
        statistics = (
            f"made anew for each set from {self.recalibrate} training samples"
            if self.recalibrate
            else "as they were"
        )
        return (
            f"{self.names.model} on {self.names.dataset}, {measure} {quality} on {test} test "
            f"samples, {len(self.unit_groups)} layers; scored on {score} samples (fewer where a "
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
        raise CompactHydraException(
            "pruning_lab.ground_truth is one process: start it without torchrun."
        )
    hydra_config = HydraConfig.get()
    try:
        with where_given(hydra_config):
            names = Names(*check_composed(config, hydra_config, Names.__dataclass_fields__))
            Truth(config, names, Path(hydra_config.runtime.output_dir)).run()
    except (UserError, OSError) as error:
        raise CompactHydraException(str(error)) from None


if __name__ == "__main__":
    main()
