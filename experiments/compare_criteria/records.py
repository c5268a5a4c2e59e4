"""Read the records of run.py: a row for each measurement, and its answers on test pictures."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

RECORDS = Path(__file__).with_name("records")
STEPWISE, LAYERWISE = "Geometric", "LayerByLayer"
NONE, LONG = "0 steps", "160 steps"
NONE_OF_FEW, FEW = f"{NONE} on 100 pictures", f"{LONG} on 100 pictures"
"""Repairs; only criteria that were compared in full have ``LONG``."""

OTHER = ", other draw"
"""Suffix of the name of a criterion's second draw."""

CUTS = "cuts"
"""Selects the mean over all cuts, instead of one step."""


@dataclass(frozen=True)
class Block:
    """All networks of a model on a data set."""

    name: str
    folder: Path = RECORDS
    only: tuple[int, ...] = ()
    """The networks to use; empty for all."""

    @cached_property
    def rows(self) -> pd.DataFrame:
        """All rows of the finished networks, which must share one recipe."""
        paths = sorted((self.folder / self.name).glob("*.csv"))
        rows = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
        if len(recipes := rows["recipe"].unique()) > 1:
            raise ValueError(f"The networks of {self.name} had several recipes: {recipes}.")
        return rows[rows["network"].isin(self.only)] if self.only else rows

    @cached_property
    def networks(self) -> list[int]:
        """The seeds of the networks."""
        return sorted(self.rows["network"].unique().tolist())

    @cached_property
    def _files(self) -> dict[int, dict[str, np.ndarray]]:
        """The arrays of each network, with answers (measurements, pictures) as 0 and 1."""
        files = {}
        for network in self.networks:
            with np.load(self.folder / self.name / f"{network:02d}.npz") as file:
                arrays = dict(file)
            arrays["correct"][1:] ^= arrays["correct"][0]
            count = len(arrays["targets"])
            arrays["correct"] = np.unpackbits(arrays["correct"], axis=1, count=count)
            files[network] = arrays
        return files

    def class_losses(self) -> np.ndarray:
        """Return losses (networks, classes) of the unpruned networks on the scoring pictures."""
        return np.array([self._files[network]["losses"] for network in self.networks])

    def class_accuracy(self, metric: str, repair: str, step: int) -> np.ndarray:
        """Return accuracies (networks, classes) in per cent, after a step."""
        right, accuracies = self.accuracy(metric, repair, step), []
        for network, answers in zip(self.networks, right, strict=True):
            targets = self._files[network]["targets"]
            accuracies.append([answers[targets == label].mean() for label in np.unique(targets)])
        return np.array(accuracies)

    def measured(self, repair: str, schedule: str = STEPWISE) -> list[str]:
        """Return the criteria that all networks have with a repair, without second draws."""
        rows = self.rows[(self.rows["repair"] == repair) & (self.rows["schedule"] == schedule)]
        names = rows.groupby("metric", sort=False)["network"].nunique()
        return [
            str(name)
            for name, count in names.items()
            if count == len(self.networks) and not str(name).endswith(OTHER)
        ]

    def accuracy(
        self, metric: str, repair: str, at: int | str = CUTS, schedule: str = STEPWISE
    ) -> np.ndarray:
        """Return accuracies (networks, pictures) in per cent, after step ``at`` or over the cuts.

        After one step they are 0 or 100. ``CUTS`` averages over all cuts with equal weights. Every
        cut keeps the same share of the FLOPs, so this is a mean over the logarithm of the remaining
        FLOPs.

        Raises:
            LookupError: if a network was not measured exactly once at each step.
        """
        rows = self.rows[self.rows["schedule"] == schedule].sort_values("step")
        steps = sorted(rows["step"].unique().tolist())
        rows = rows[(rows["metric"] == metric) & (rows["repair"] == repair)]
        accuracies = []
        for network in self.networks:
            measured = rows[rows["network"] == network]
            if measured["step"].tolist() != steps or at not in {CUTS, *steps}:
                raise LookupError(f"{metric}, {repair}, {schedule}, {at}: gaps in {network}.")
            weights = _weights(measured["step"].to_numpy(), at)
            right = self._files[network]["correct"][measured["pictures"].to_numpy()]
            accuracies.append(100 * weights @ right)
        return np.array(accuracies)


def _weights(steps: np.ndarray, at: int | str) -> np.ndarray:
    """Return the weight of each step: 1 for step ``at``, or equal ones for all cuts."""
    if at != CUTS:
        return (steps == at).astype(float)
    return (steps > 0) / (steps > 0).sum()
