"""The reference networks and values in tests/data, made with the original TorchPruner."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DATA = Path(__file__).parent.parent / "data"

BUILD = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(10, 4),
    ),
}
BATCH = {"mlp": 8, "cnn": 24}
"""The original's gradients are those of the mean loss over batches of this size."""


class Reference:
    """One reference network: the model, its data in a fixed order, and the published values."""

    def __init__(self, name: str) -> None:
        self.values = np.load(DATA / f"{name}.npz")
        self.batch = BATCH[name]
        self.model = BUILD[name]().double()
        state = {
            key.removeprefix("state|"): torch.from_numpy(self.values[key])
            for key in self.values.files
            if key.startswith("state|")
        }
        self.model.load_state_dict(state)
        self.model.eval()
        self.dataset = TensorDataset(
            torch.from_numpy(self.values["x"]), torch.from_numpy(self.values["y"])
        )

    def loader(self, batch_size: int | None = None) -> DataLoader:
        return DataLoader(self.dataset, batch_size=batch_size or self.batch)

    def value(self, index: int, where: str, name: str) -> np.ndarray:
        return self.values[f"{index}|{where}|{name}"]

    def positions(self, index: int) -> int:
        """How many positions one unit of module ``index`` has in its output."""
        with torch.no_grad():
            output = self.model[: index + 1](self.dataset.tensors[0])
        return output[0, 0].numel()


CASES = sorted(
    (name, int(index), where)
    for name in BUILD
    for index, where in {
        tuple(key.split("|")[:2])
        for key in np.load(DATA / f"{name}.npz").files
        if key.count("|") == 2
    }
)
