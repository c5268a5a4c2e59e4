"""The network that the benchmarks score: a trained VGG16, with a hundred samples."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from pruning_lab.datasets.digits import digits
from pruning_lab.models.vgg import VGG
from pruning_lab.pruner.saved_model import load_state, save_state
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import evaluate
from pruning_lab.training.fit import fit
from pruning_lab.training.recipe import Training
from tests.oracles import textbook

TASK = Classification()

SAMPLES = 100
Data = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Network:
    """A network, its samples in one batch, and its modules in order of execution."""

    model: nn.Module
    data: Data
    device: str
    accuracy: float

    @property
    def samples(self) -> int:
        return sum(len(x) for x, _ in self.data)

    @property
    def modules(self) -> list[nn.Module]:
        return textbook.chain(self.model)

    @property
    def places(self) -> dict[nn.Module, int]:
        """Layer -> index of the module after which its units are read."""
        return textbook.sites(self.modules)

    @property
    def names(self) -> dict[nn.Module, str]:
        """Layer -> name: conv1_1 ... conv5_3, fc1, fc2."""
        blocks = [2, 2, 3, 3, 3]
        names = [f"conv{b}_{k}" for b, n in enumerate(blocks, 1) for k in range(1, n + 1)]
        return dict(zip(self.places, [*names, "fc1", "fc2"], strict=True))


def trained_network(
    device: str = "cpu", samples: int = SAMPLES, cache: Path | None = None
) -> Network:
    """Train VGG16 on the digits for five epochs, as the main job's baseline, or load ``cache``."""
    torch.manual_seed(0)
    splits = digits()
    model = VGG(16, in_channels=1)
    if cache is not None and cache.exists():
        load_state(model, cache)
    else:
        training = Training(
            epochs=5, lr=0.05, momentum=0.9, weight_decay=5e-4, lr_schedule="one_cycle"
        )
        order = torch.Generator().manual_seed(0)
        model.to(device)
        fit(model, training.optimizer(model), splits.train, training, TASK, order, "Training VGG16")
        if cache is not None:
            save_state(model, cache)
    model.to(device).eval()
    batches = DataLoader(Subset(splits.score, range(samples)), samples)
    data = [(x.to(device), target.to(device)) for x, target in batches]
    return Network(model, data, device, evaluate(model, splits.test, TASK).values["accuracy"])
