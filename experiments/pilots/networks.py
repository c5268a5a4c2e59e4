"""Networks for choosing defaults, which no study here uses, and their pruned copies."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from hydra import compose, initialize_config_module

from pruning_lab.config.build import build
from pruning_lab.datasets import Splits, loader
from pruning_lab.experiment.fingerprint import fresh_model
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.parts import build_data
from pruning_lab.experiment.study import Criterion
from pruning_lab.pruning.schedules import OneShot
from pruning_lab.runtime.random_streams import seeded
from pruning_lab.tasks import Classification
from pruning_lab.training.fit import fit
from pruning_lab.training.recalibration import recalibrate
from pruning_lab.training.recipe import Training

TASK = Classification()

NETWORKS = [
    ("convnet", "fashion_mnist", 100), ("vgg11", "digits", 100), ("resnet20", "fashion_mnist", 100),
    ("convnet", "digits", 100), ("resnet20", "digits", 100), ("convnet", "fashion_mnist", 101),
]  # fmt: skip
"""Model (convnets with 512 hidden units), data set (10,000 pictures of Fashion-MNIST), seed."""

TARGETS = (0.5, 0.8)
"""Shares of the FLOPs to remove at once."""

ABOUT = ["model", "dataset", "seed", "target", "criterion"]


@dataclass(frozen=True)
class Pilot:
    """A trained network and its data; ``about`` are its columns in a table of results."""

    network: Network
    splits: Splits
    about: dict[str, str | int]

    def pruned(self, criterion: Criterion) -> Iterator[tuple[float, Network]]:
        """Yield, for each target, a copy without that share of its FLOPs, recalibrated."""
        network, seed = self.network, int(self.about["seed"])
        metric = criterion(network.model, loader(self.splits.score, 64), F.cross_entropy, "cpu")
        unit_groups = network.unit_groups(tuple(network.layers), OneShot(target=0.5).coupled)
        estimates = metric.estimate(list(unit_groups.values()), True)
        scores = {name: layer.scores for name, layer in zip(unit_groups, estimates, strict=True)}
        for target in TARGETS:
            pruned, schedule = network.copy(), OneShot(target=target)
            (step,) = schedule.steps_for([[*pruned.layers]])
            pruned.pruner.prune_groups(pruned.plan(scores, step, schedule))
            recalibrate(pruned.model, self.splits.train, 1000, TASK, seeded(seed, 99))
            yield target, pruned


def pilots() -> Iterator[Pilot]:
    """Train one network after the other."""
    for model, dataset, seed in NETWORKS:
        overrides = [f"model={model}", f"dataset={dataset}", f"seed={seed}"]
        if dataset == "fashion_mnist":
            overrides.append("dataset.train=10000")
        if model == "convnet":
            overrides.append("model.hidden=512")
        with initialize_config_module("pruning_lab.conf", version_base="1.3"):
            config = compose("config", overrides)
        splits = build_data(config.dataset)
        network = Network(fresh_model(config.model, splits, TASK, seed), splits.input_size, "cpu")
        training: Training = build(config.baseline.training, "baseline.training", Training)
        about = {"model": model, "dataset": dataset, "seed": seed}
        pilot = Pilot(network, splits, about)
        train(pilot, network, training)
        yield pilot


def train(pilot: Pilot, network: Network, training: Training) -> None:
    """Fit from a fresh optimizer; all recipes see the pictures in the same order."""
    optimizer = training.optimizer(network.model)
    order, label = seeded(int(pilot.about["seed"]), 0), " ".join(map(str, pilot.about.values()))
    fit(network.model, optimizer, pilot.splits.train, training, TASK, order, label)
