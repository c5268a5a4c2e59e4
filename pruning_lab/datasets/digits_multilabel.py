"""Three labels of scikit-learn's handwritten digits: even, larger than 4, has a hole."""

import torch

from pruning_lab.datasets.digits import digits
from pruning_lab.datasets.splits import Images, Splits

LABELS = ("even", "larger than 4", "has a hole")

OF_DIGIT = torch.tensor(
    [[digit % 2 == 0, digit > 4, digit in (0, 6, 8, 9)] for digit in range(10)]
).long()


def digits_multilabel(
    size: int = 32,
    channels: int = 1,
    train: int | None = None,
    score: int | None = 256,
    val: int | None = 180,
    test: int | None = 360,
    split_seed: int = 0,
) -> Splits:
    """The images and splits of ``digits``; a target (3,) has 1 for each of ``LABELS`` it has."""
    whole = digits(size, channels, train, score, val, test, split_seed)
    parts: dict[str, Images] = {n: getattr(whole, n) for n in ("train", "score", "val", "test")}
    relabelled = {
        name: Images(
            part.images, OF_DIGIT[part.labels], tuple(part.mean.flatten().tolist()),
            tuple(part.std.flatten().tolist()),
        )
        for name, part in parts.items()
    }  # fmt: skip
    return Splits.of(relabelled, len(LABELS), whole.input_size, targets="labels")
