"""``python -m pruning_lab.ground_truth``: compare criteria with random orders on a network."""

import logging
import math
import os
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pruning_lab import criteria
from pruning_lab.attributions.estimation.scores import LayerEstimates
from pruning_lab.attributions.evidence.activations import shares_pass
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.compare import markdown
from pruning_lab.config.build import plain
from pruning_lab.config.composition import check_composed, where_given
from pruning_lab.config.sections import Names, shown
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError, check_choice, check_count
from pruning_lab.experiment.labels import git_commit
from pruning_lab.experiment.pruning_run import Scored
from pruning_lab.experiment.scoring import score_network
from pruning_lab.experiment.setup import build_metric, set_up
from pruning_lab.experiment.stages import obtain_baseline
from pruning_lab.ground_truth.figures import (
    harm_by_layer,
    quality_and_cost,
    removal_curves,
    write_files,
)
from pruning_lab.ground_truth.layer import LayerTruth, Settings, judge
from pruning_lab.ground_truth.recalibrated import calibration_pictures
from pruning_lab.ground_truth.removals import Removals, check_task
from pruning_lab.ground_truth.tables import MEASURES, RANDOM, VERSUS, by_layer, overall, readable
from pruning_lab.provenance.source_code import digest_of_program
from pruning_lab.runtime.random_streams import seeded
from pruning_lab.tasks.task import MEASURE, Pairs
from pruning_lab.tracking import connect, keys, store, write
from pruning_lab.training.evaluation import evaluate

log = logging.getLogger("pruning_lab")

SHOWN = 6
"""Number of criteria in the figure of removal curves: the best ones."""

ONE_DRAW = "random"
"""The criterion that is excluded unless requested: the random orders represent it."""


class Truth:
    """Score a baseline by all criteria and remove its units; UserError for invalid settings."""

    def __init__(self, config: DictConfig, names: Names, output: Path) -> None:
        if config.dry_run:
            raise UserError(
                "dry_run=true is for python -m pruning_lab, not for pruning_lab.ground_truth."
            )
        self.config, self.names, self.output = config, names, output
        given = plain(config.truth)
        chosen, layers, self.samples, self.recalibrate = (
            given.pop(key) for key in ("criteria", "layers", "samples", "recalibrate")
        )
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
        check_task(setup.task, setup.network.model, setup.splits.test)
        self.measure = setup.task.primary
        self.unit_groups = self._unit_groups(layers)
        self.metrics = {
            name: build_metric(
                conf, self.network.model, setup.batches, setup.task, setup.device, f"metric={name}"
            )
            for name, conf in self.criteria.items()
        }
        accepted = {name: self._accepted(name) for name in self.criteria}
        self.scored = {name: unit_groups for name, unit_groups in accepted.items() if unit_groups}
        if not self.scored:
            raise UserError(f"None of {', '.join(self.criteria)} can score any of the layers.")

    def run(self) -> pd.DataFrame:
        """Return the table over all layers, and write it to MLflow and the output folder."""
        obtain_baseline(self.setup)
        scored = {name: self._scores(name, groups) for name, groups in self.scored.items()}
        truths = self._truths({name: estimates for name, (estimates, _) in scored.items()})
        layers = by_layer(truths)
        table = overall(layers, {name: cost for name, (_, cost) in scored.items()})
        self._record(truths, layers, table)
        return table

    def _settings(self, name: str) -> DictConfig:
        """Return a criterion's settings, with references to the configuration resolved."""
        config = OmegaConf.create(plain(self.config) | {"own": criteria.settings(name)})
        return DictConfig(plain(config.own))

    def _unit_groups(self, layers: object) -> dict[str, UnitGroups]:
        """Return the unit groups of the layers of these names; None selects all layers."""
        groups = self.network.unit_groups(tuple(self.network.layers), self.setup.schedule.coupled)
        names = list(groups) if layers is None else _names("layers", layers)
        for name in names:
            check_choice("truth.layers", name, groups)
        return {name: groups[name] for name in names}

    def _accepted(self, name: str) -> dict[str, UnitGroups]:
        """Return the layers that a criterion can score; log why it refuses the others."""
        metric, accepted = self.metrics[name], {}
        with suppress(UserError):  # all at once is faster
            metric.check(list(self.unit_groups.values()), True)
            return self.unit_groups
        for layer, unit_groups in self.unit_groups.items():
            try:
                metric.check([unit_groups], True)
                accepted[layer] = unit_groups
            except UserError as error:
                log.info("%s cannot score '%s': %s", name, layer, error)
        return accepted

    def _scores(self, name: str, unit_groups: dict[str, UnitGroups]) -> Scored:
        """Score by one criterion, or read its scores and cost from the baseline's folder."""
        metric, seed = self.metrics[name], self.setup.settings.seeds.score
        about = {
            **plain(self.criteria[name]), **plain(self.config.scoring),
            "code": digest_of_program(type(metric)), "layers": list(unit_groups),
            "coupled": self.setup.schedule.coupled, "alone": shares_pass(metric), "seed": seed,
        }  # fmt: skip
        score = partial(score_network, metric, self.network, unit_groups, seed, name)
        return self.baseline.scores(name, about, score)

    def _truths(self, estimates: dict[str, LayerEstimates]) -> list[LayerTruth]:
        """Remove units layer by layer; measurements are cached in the baseline's folder."""
        splits, setup = self.setup.splits, self.setup
        pictures = calibration_pictures(
            splits.train, self.recalibrate, seeded(setup.settings.seeds.score, 1)
        )
        batches = Pairs(setup.task, loader(splits.test, setup.settings.batch_size))
        removals = Removals(
            self.network.model, batches, setup.device, self.samples, setup.task,
            setup.task.uninformed_loss(splits), pictures, self.baseline.folder / "truth",
        )  # fmt: skip
        truths = []
        for layer, unit_groups in tqdm(self.unit_groups.items(), "Removing units", disable=None):
            scores = {name: e[layer].scores for name, e in estimates.items() if layer in e}
            if scores:
                truths.append(judge(layer, unit_groups, scores, removals, self.settings))
        return truths

    def _record(self, truths: list[LayerTruth], layers: pd.DataFrame, table: pd.DataFrame) -> None:
        """Write tables and figures to MLflow and to the output folder."""
        setup, label = self.setup, self.measure.label
        order = [name for name in table["criterion"] if name != RANDOM]
        figures = {
            "quality_and_cost": quality_and_cost(table, label),
            "harm_by_layer": harm_by_layer(layers, order, label),
            "removal_curves": removal_curves(truths, order[:SHOWN], label),
        }
        text = f"{self._about()}\n\n{markdown(readable(table))}"
        # for `join`; a table without it is of the measure of the old versions
        own = {} if label == MEASURE["measure_label"] else {"measure_label": label}
        texts = {
            "truth.md": text,
            "truth.csv": table.assign(**own).to_csv(index=False, float_format="%.6g"),
            "layers.csv": layers.to_csv(index=False, float_format="%.6g"),
        }
        paths = write_files(self.output, figures, texts)
        with write.run(
            connect(setup.settings.tracking.uri), setup.settings.tracking.experiment,
            f"truth {self.names.model} {self.names.dataset} seed {self.config.seed}",
            {keys.COMPARISON: len(table), "model": self.names.model,
             "dataset": self.names.dataset, "baseline": self.baseline.name,
             "git_commit": git_commit()},
            write.flatten(plain(shown(self.config))),
        ) as run:  # fmt: skip
            for path in paths:
                run.file(path.read_bytes(), f"truth/{path.name}")
            for name, row in table.set_index("criterion").loc[order].iterrows():
                run.metrics(0, {f"{key}/{name}": row[key] for key in MEASURES})
        log.info("\n%s\n", text)
        log.info("%-9s %s", "Files", self.output)
        where = store.where_to_look(self.config.tracking.uri, run.experiment_id)
        log.info("%-9s %s", "MLflow", where)

    def _about(self) -> str:
        settings, splits, task = self.settings, self.setup.splits, self.setup.task
        score, test = len(splits.score), len(splits.test)  # type: ignore[arg-type]
        shares = ", ".join(f"{100 * share:g}" for share in settings.shares)
        statistics = (
            f"made anew for each set from {self.recalibrate} training samples"
            if self.recalibrate
            else "as they were"
        )
        measure, cap = self.measure, task.uninformed_loss(splits)
        quality = measure.text(evaluate(self.network.model, splits.test, task).values[measure.name])
        most = "ln(classes)" if cap == math.log(splits.num_classes) else f"{cap:.3g}"
        return (
            f"{self.names.model} on {self.names.dataset}, {measure.label} {quality} on {test} test "
            f"samples, {len(self.unit_groups)} layers; scored on {score} samples (fewer where a "
            f"criterion has `samples`). In one layer at a time, {shares} % of the units are "
            f"removed, lowest score first, BatchNorm's statistics {statistics}; measured on "
            f"{min(self.samples, test)} test samples. Quantile: the share of {settings.draws} "
            "random orders of the same layer that do less harm (rise of the loss, capped at "
            f"{most} for each sample), 0.5 for a random order. "
            f"{VERSUS.format(measure=measure.label)} All are means over layers with 95 % intervals "
            "by Student's t over the layers; in the row of the random orders, the range of 95 % of "
            "them. Reverse: the quantile when the highest scores go first, "
            f"{100 * settings.shares[-1]:g} % of the units. Oracle k: the share of all other sets "
            "of k units that do less harm than the criterion's. Greedy: overlap with the first "
            f"{settings.greedy} units of the greedy oracle, from 0 (chance) to 1 (all)."
        )


def _names(which: str, given: object) -> list[str]:
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
            names = check_composed(config, hydra_config)
            Truth(config, names, Path(hydra_config.runtime.output_dir)).run()
    except (UserError, OSError) as error:
        raise CompactHydraException(str(error)) from None


if __name__ == "__main__":
    main()
