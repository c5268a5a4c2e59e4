"""Regression on real data without a download: scikit-learn's 442 patients, ten features each."""

import torch
from sklearn.datasets import load_diabetes

from pruning_lab.datasets.splits import Samples, Splits, part_indices


def diabetes(
    train: int | None = None,
    score: int | None = 64,
    val: int | None = 64,
    test: int | None = 100,
    split_seed: int = 0,
) -> Splits:
    """The progression of diabetes after a year, in standard deviations of the training targets.

    Features are as scikit-learn gives them, times 21: of mean 0 and standard deviation 1 over all
    patients (Efron et al., "Least angle regression", 2004).
    """
    data = load_diabetes()
    sizes = {"train": train, "score": score, "val": val, "test": test}
    quartiles = (data.target.argsort().argsort() * 4) // len(data.target)  # to stratify by
    parts = part_indices(quartiles, sizes, split_seed)
    inputs = torch.from_numpy(data.data * len(data.target) ** 0.5).float()
    targets = torch.from_numpy(data.target)[:, None]
    fitted = targets[parts["train"]]
    scaled = ((targets - fitted.mean()) / fitted.std(correction=0)).float()
    samples = {name: Samples(inputs[part], scaled[part]) for name, part in parts.items()}
    return Splits(**samples, num_classes=1, input_size=(10,), targets="numbers")
