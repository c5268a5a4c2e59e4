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
"""Repairs; only what was compared in full has ``LONG``."""

OTHER = ", other draw"
"""How the name of a criterion's second draw ends."""

CUTS = "cuts"
"""The mean over all cuts, instead of one step."""


@dataclass(frozen=True)
class Block:
    """All networks of a model on a data set."""

    name: str
    folder: Path = RECORDS
    only: tuple[int, ...] = ()
    """Leave out all other networks."""

    @cached_property
    def rows(self) -> pd.DataFrame:
        """All rows of networks that are done, and have what the others have."""
        paths = sorted((self.folder / self.name).glob("*.csv"))
        rows = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
        if len(recipes := rows["recipe"].unique()) > 1:
            raise ValueError(f"The networks of {self.name} had several recipes: {recipes}.")
        return rows[rows["network"].isin(self.only)] if self.only else rows

    @cached_property
    def networks(self) -> list[int]:
        """Their seeds."""
        return sorted(self.rows["network"].unique().tolist())

    @cached_property
    def _files(self) -> dict[int, dict[str, np.ndarray]]:
        """The arrays of each network, with answers (measurements, pictures) as 0 and 1."""
        found = {}
        for network in self.networks:
            with np.load(self.folder / self.name / f"{network:02d}.npz") as kept:
                own = dict(kept)
            own["correct"][1:] ^= own["correct"][0]
            count = len(own["targets"])
            own["correct"] = np.unpackbits(own["correct"], axis=1, count=count)
            found[network] = own
        return found

    def class_losses(self) -> np.ndarray:
        """Return (networks, classes): losses of the unpruned networks on the scoring pictures."""
        return np.array([self._files[network]["losses"] for network in self.networks])

    def class_accuracy(self, metric: str, repair: str, step: int) -> np.ndarray:
        """Return (networks, classes) in per cent, after a step."""
        right, found = self.accuracy(metric, repair, step), []
        for network, own in zip(self.networks, right, strict=True):
            targets = self._files[network]["targets"]
            found.append([own[targets == each].mean() for each in np.unique(targets)])
        return np.array(found)

    def measured(self, repair: str, schedule: str = STEPWISE) -> list[str]:
        """Return the criteria with a repair on all networks, without second draws."""
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
        """Return (networks, pictures) in per cent: how much of the time a picture is right.

        After step ``at`` that is 0 or 100; for the mean over the cuts each of them counts alike.
        All cuts leave the same share of what was left before: this is a mean over the logarithm of
        the FLOPs that are left.

        Raises:
            LookupError: for what was not measured on all networks, at each step once.
        """
        rows = self.rows[self.rows["schedule"] == schedule].sort_values("step")
        steps = sorted(rows["step"].unique().tolist())
        rows = rows[(rows["metric"] == metric) & (rows["repair"] == repair)]
        found = []
        for network in self.networks:
            own = rows[rows["network"] == network]
            if own["step"].tolist() != steps or at not in {CUTS, *steps}:
                raise LookupError(f"{metric}, {repair}, {schedule}, {at}: gaps in {network}.")
            weights = _weights(own["step"].to_numpy(), at)
            right = self._files[network]["correct"][own["pictures"].to_numpy()]
            found.append(100 * weights @ right)
        return np.array(found)


def _weights(steps: np.ndarray, at: int | str) -> np.ndarray:
    """Return the weight of each step: 1 for step ``at``, or the same for all but step 0."""
    if at != CUTS:
        return (steps == at).astype(float)
    return (steps > 0) / (steps > 0).sum()
