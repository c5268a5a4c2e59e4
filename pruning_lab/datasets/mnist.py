"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels."""

from torchvision import datasets

from pruning_lab.datasets.official import obtain, official_splits
from pruning_lab.datasets.splits import Splits

STATISTICS = ((0.1307,), (0.3081,))


def mnist(
    root: str = "data",
    download: bool = True,
    size: int = 28,
    channels: int = 1,
    train: int | None = None,
    score: int | None = 256,
    val: int | None = 1000,
    test: int | None = None,
    split_seed: int = 0,
) -> Splits:
    """Return ten classes; ``score`` and ``val`` are taken from the official training part.

    Images are padded with black to ``size``.
    """
    advice = (
        f"Run once with a network, or put its four files (train-images-idx3-ubyte, ...) into "
        f"{root}/MNIST/raw, or set dataset.root to where they are."
    )
    parts = obtain(datasets.MNIST, root, download, advice)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    return official_splits(parts, STATISTICS, sizes, split_seed, channels, size=size)
