"""Score layers by a criterion, with what it takes; the only place where an experiment scores."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Self

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.evidence.activations import ActivationMetric, run_together
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.config.build import plain
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.pruning_run import Scored
from pruning_lab.profiling.passes import measured
from pruning_lab.runtime import distributed
from pruning_lab.runtime.random_streams import seeded
from pruning_lab.runtime.terminal import layers_in_words

log = logging.getLogger(__name__)


class ScoringBar(Progress):
    """A bar over all evaluations of a criterion, and the largest relative error so far.

    ``work`` is the cost of one evaluation of each set of unit groups, in any unit.
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
        if math.isfinite(relative):
            self._errors[index] = relative
            largest = max(self._errors.values())
            self._bar.set_postfix_str(f"error up to {100 * largest:.1f} % of a layer's scores")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def score(
    metric: AttributionMetric,
    unit_groups: Mapping[str, UnitGroups],
    device: torch.device,
    bar: ScoringBar | None = None,
) -> Scored:
    """Score after BatchNorm and non-linearity; ``bar`` shows the progress."""
    with bar or nullcontext(), measured(device) as cost:
        found = metric.estimate(list(unit_groups.values()), True, bar)
    return dict(zip(unit_groups, found, strict=True)), cost


def score_network(
    metric: AttributionMetric,
    network: Network,
    unit_groups: Mapping[str, UnitGroups],
    seed: int,
    name: str,
    settings: str = "",
) -> Scored:
    """Score unit groups of a network with a progress bar.

    ``seed`` is that of criteria that draw from the shared random streams.
    """
    log.info("Scoring %s by %s%s ...", layers_in_words(unit_groups), name, settings)
    later = network.work_after()
    bar = ScoringBar(name, [later.get(each, 1) for each in unit_groups])
    seeded(seed, 0)
    return score(metric, unit_groups, network.pruner.device, bar)


def score_together(
    metrics: Mapping[str, ActivationMetric],
    unit_groups: Mapping[str, UnitGroups],
    seed: int,
    device: torch.device,
) -> dict[str, Scored]:
    """Score by several criteria in one pass over the data; each is said to take all of it."""
    log.info("Scoring %s by %s in one pass ...", layers_in_words(unit_groups), ", ".join(metrics))
    seeded(seed, 0)
    with measured(device) as cost:
        found = run_together(list(metrics.values()), list(unit_groups.values()), True)
    return {
        name: (dict(zip(unit_groups, scores, strict=True)), cost)
        for name, scores in zip(metrics, found, strict=True)
    }


def settings_in_words(settings: DictConfig) -> str:
    """`` (reduction=mean, sv_samples=2)``: the settings of a criterion that are given."""
    shown = {k: v for k, v in plain(settings).items() if not (k.startswith("_") or v is None)}
    return f" ({', '.join(f'{key}={value}' for key, value in shown.items())})"
