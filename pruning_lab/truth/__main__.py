"""``python -m pruning_lab.truth``: what every criterion is worth on one trained network."""

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
from pruning_lab.compare import markdown, style_of
from pruning_lab.composition import check_composed, where_given
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError, check_choice, check_count
from pruning_lab.ledger import Cost, measured
from pruning_lab.progress import ScoringBar
from pruning_lab.record import Names, git_commit
from pruning_lab.runner import Experiment
from pruning_lab.setup import build, plain
from pruning_lab.sources import digest_of_program
from pruning_lab.track import seeded
from pruning_lab.training import evaluate
from pruning_lab.truth.figures import harm_by_layer, quality_and_cost, removal_curves
from pruning_lab.truth.layer import LayerTruth, Settings, judge
from pruning_lab.truth.removals import Removals
from pruning_lab.truth.tables import MEASURES, ORACLE, by_layer, overall

log = logging.getLogger("pruning_lab")

SHOWN = 6
"""Criteria in the figure of curves: the best of them."""


class Truth:
    """Scores a baseline by all criteria and removes units as each of them says."""

    def __init__(self, config: DictConfig, names: Names, output: Path) -> None:
        if config.plan:
            raise UserError("plan=true is for python -m pruning_lab, not for pruning_lab.truth.")
        self.config, self.names, self.output = config, names, output
        given = plain(config.truth)
        chosen, wanted = given.pop("criteria"), given.pop("layers")
        self.samples = given.pop("samples"), given.pop("oracle_samples")
        for name, samples in zip(("samples", "oracle_samples"), self.samples, strict=True):
            check_count(f"truth.{name}", samples, 2)
        for key in given:
            check_choice("truth", key, [each.name for each in fields(Settings)])
        self.settings = Settings(**given)
        chosen = criteria.names() if chosen is None else _names("criteria", chosen)
        self.criteria = {name: self._settings(name) for name in chosen} | dict(config.attributions)
        self.experiment = Experiment(config, names, output)
        self.network, self.baseline = self.experiment.network, self.experiment.baseline
        self.players = self._players(wanted)
        self.metrics = {name: self._metric(name) for name in self.criteria}
        self.scored = {name: self._accepted(name) for name in self.criteria}
        if not any(self.scored.values()):
            raise UserError(f"None of {', '.join(self.criteria)} can score any of the layers.")

    def run(self) -> pd.DataFrame:
        """The table over all layers, which also lies in MLflow and in the output folder."""
        self.experiment.obtain_baseline()
        found: dict[str, LayerEstimates] = {}
        costs: dict[str, Cost] = {}
        for name, players in self.scored.items():
            if players:
                found[name], costs[name] = self._scores(name, players)
        truths = self._truths(found)
        layers = by_layer(truths)
        table = overall(truths, layers, costs)
        self._record(truths, layers, table)
        return table

    # -- what is built, and refused before any work starts -------------------------------------

    def _settings(self, name: str) -> DictConfig:
        """A criterion's, with what they ask of the rest of the configuration."""
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
        """The layers that a criterion can score; says which it refuses."""
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
        """Kept beside the baseline, with what they took; criteria share no pass here."""
        metric, config = self.metrics[name], self.config

        def score() -> tuple[LayerEstimates, Cost]:
            log.info("Scoring %d layers by %s ...", len(players), name)
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
        """Layer by layer; what was measured is kept beside the baseline."""
        batches = loader(self.experiment.splits.test, self.config.scoring.batch_size)
        curves, oracles = (
            Removals(
                self.network.model, batches, self.experiment.device, samples,
                self.baseline.folder / "truth",
            )
            for samples in self.samples
        )  # fmt: skip
        truths = []
        for layer, players in tqdm(self.players.items(), "Removing units", disable=None):
            scores = {name: each[layer].scores for name, each in found.items() if layer in each}
            if scores:
                truths.append(judge(layer, players, scores, curves, oracles, self.settings))
        return truths

    def _record(self, truths: list[LayerTruth], layers: pd.DataFrame, table: pd.DataFrame) -> None:
        """Tables and figures, in MLflow and as files."""
        accuracy = evaluate(self.network.model, self.experiment.splits.test).accuracy
        order = list(table["criterion"])
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
            for row in table.itertuples():
                if pd.notna(row.harm):
                    run.metrics(0, {f"harm/{row.criterion}": row.harm})
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
        samples, few = (min(each, test) for each in self.samples)
        return (
            f"{self.names.model} on {self.names.dataset}, {accuracy:.1%} right on {test} test "
            f"samples, {len(self.players)} layers; scored on {score} samples (fewer where a "
            f"criterion has `samples`), units removed on {samples} test samples at "
            f"{settings.points} numbers of units, sets and the greedy oracle on {few}. Harm is the "
            "mean rise of the loss over all removals, lowest score first, as a share of that of "
            f"{settings.draws} random orders, reverse the same highest score first; behind both "
            "95 % intervals over the samples and these orders, for this one network. Oracle k: the "
            "share of all other sets of k units that do less harm than the criterion's. Greedy: "
            f"units in common with the first {settings.greedy} of the greedy oracle, 0 by chance."
        )


def _names(which: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not given or not all(isinstance(n, str) for n in given):
        raise UserError(
            f"truth.{which}={given} is not possible; give a list of names, or null for all."
        )
    return given


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """``overall``'s table for people."""
    oracles = [key for key in table if key.startswith(ORACLE.format("")) and key[-1].isdigit()]
    shown = pd.DataFrame(index=pd.Index([style_of(name).label for name in table["criterion"]],
                                        name="criterion"))  # fmt: skip
    shown["layers"] = table["layers"].to_numpy()
    for key in ("harm", "reverse"):
        shown[key] = [
            ""
            if pd.isna(row[key])
            else f"{row[key]:.2f} ({row[f'{key}_low']:.2f} to {row[f'{key}_high']:.2f})"
            for _, row in table.iterrows()
        ]
    for key in [*oracles, *(each for each in MEASURES if each in table)]:
        shown[key.replace("_", " ")] = ["" if pd.isna(v) else f"{v:.2f}" for v in table[key]]
    for key in ("forward", "backward", "seconds"):
        shown[key] = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in table[key]]
    return shown


@hydra.main(version_base="1.3", config_path="pkg://pruning_lab.conf", config_name="truth")
def main(config: DictConfig) -> None:
    """The command."""
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
