"""The progress bar of a scoring."""

import math
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from pruning_lab.attributions.base import Progress
from pruning_lab.runtime import distributed


class ScoringBar(Progress):
    """A bar over all evaluations of a criterion, and the largest relative error so far.

    ``work`` says for each set of players what one evaluation takes, in any unit.
    """

    def __init__(self, name: str, work: Sequence[float]) -> None:
        self._work = work
        self._errors: dict[int, float] = {}
        self._bar = tqdm(
            total=0, desc=name, disable=distributed.silent(), leave=False,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )  # fmt: skip

    def planned(self, index: int, evaluations: int) -> None:
        self._bar.total += self._work[index] * evaluations

    def done(self, index: int, evaluations: int) -> None:
        self._bar.update(self._work[index] * evaluations)

    def error(self, index: int, relative: float) -> None:
        if not math.isfinite(relative):
            return
        self._errors[index] = relative
        largest = max(self._errors.values())
        self._bar.set_postfix_str(f"error up to {100 * largest:.1f} % of a layer's scores")

    def __enter__(self) -> "ScoringBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
