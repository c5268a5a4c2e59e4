"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 photographs of 32x32 pixels."""

from torchvision import datasets

from pruning_lab.datasets.official import obtain, official_splits
from pruning_lab.datasets.splits import Splits
from pruning_lab.errors import UserError

# torchvision unpickles the batches, but only files with the published MD5: it refuses others when
# the data set is constructed.
CLASSES = {10: datasets.CIFAR10, 100: datasets.CIFAR100}
STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def cifar(
    classes: int = 10,
    root: str = "data",
    download: bool = True,
    augment: bool = True,
    train: int | None = None,
    score: int | None = 500,
    val: int | None = 1000,
    test: int | None = None,
    split_seed: int = 0,
) -> Splits:
    """Return CIFAR-10 or -100; ``score`` and ``val`` are taken from the official training part.

    ``augment`` randomly shifts and flips the training images.
    """
    if classes not in CLASSES:
        raise UserError(f"dataset.classes={classes} is not known; CIFAR has 10 or 100.")
    advice = (
        f"Run once with a network, or unpack the python version of CIFAR-{classes} to "
        f"{root}/{CLASSES[classes].base_folder}, or set dataset.root to where that folder is."
    )
    parts = obtain(CLASSES[classes], root, download, advice)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    return official_splits(parts, STATISTICS[classes], sizes, split_seed, augment=augment)
