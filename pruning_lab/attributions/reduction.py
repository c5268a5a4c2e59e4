"""From per-sample scores to one score a unit, batch after batch: no sample is kept."""

from collections.abc import Callable

import numpy as np
import torch

from pruning_lab.errors import UserError

Reduction = str | Callable[[np.ndarray], np.ndarray]


class Moments:
    """Count, mean and squared deviations of rows (samples, units), in float64.

    Batches are joined as by Chan, Golub, LeVeque (1983), so that nothing cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.deviations = torch.zeros((), dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        rows = rows.double()
        mean, more, total = rows.mean(0), len(rows), self.count + len(rows)
        shift = mean - self.mean
        between = shift.square() * (self.count * more / total)
        self.deviations = self.deviations + (rows - mean).square().sum(0) + between
        self.mean = self.mean + shift * (more / total)
        self.count = total


REDUCTIONS: dict[str, Callable[[Moments], torch.Tensor]] = {
    "mean": lambda found: found.mean,
    "sum": lambda found: found.mean * found.count,
    "mean_plus_2_std": lambda found: found.mean + 2 * (found.deviations / found.count).sqrt(),
}
"""Without those that need every sample: ``"none"`` and callables."""


def check_reduction(reduction: Reduction) -> None:
    """UserError for a name that is not known."""
    if not callable(reduction) and reduction not in (*REDUCTIONS, "none"):
        raise UserError(
            f"reduction={reduction!r} is not known; choose one of {', '.join(REDUCTIONS)}, none, "
            "or pass a callable over the per-sample scores (samples, units)."
        )


class Reducer:
    """Takes the per-sample scores of one layer and gives them back reduced.

    Memory does not depend on the number of samples, but for ``"none"`` and callables.
    """

    def __init__(self, reduction: Reduction) -> None:
        self._reduction = reduction
        self._moments = Moments()
        self._rows: list[np.ndarray] = []

    def add(self, scores: torch.Tensor) -> None:
        """The scores of more samples, (samples, units)."""
        if self._reduction in REDUCTIONS:
            self._moments.add(scores)
        else:
            self._rows.append(scores.double().cpu().numpy())

    def result(self) -> np.ndarray:
        """(units,), or (samples, units) with ``"none"``."""
        if isinstance(self._reduction, str) and self._reduction in REDUCTIONS:
            return REDUCTIONS[self._reduction](self._moments).cpu().numpy()
        rows = np.concatenate(self._rows)
        return _checked(rows, self._reduction(rows)) if callable(self._reduction) else rows


def _checked(rows: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    found = np.asarray(reduced)
    if found.shape[-1:] != rows.shape[-1:]:
        raise UserError(
            f"reduction made shape {found.shape} out of the per-sample scores {rows.shape} "
            "(samples, units); it must leave one score a unit."
        )
    return found
