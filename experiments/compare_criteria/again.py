"""How far does a criterion agree with itself, by other draws and on other pictures?"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from pruning_lab.attributions import (
    APoZAttributionMetric,
    SensitivityAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from pruning_lab.attributions.scores import LayerScores
from pruning_lab.checkpoint import load_state
from pruning_lab.compare import between_scorings, markdown, style_of
from pruning_lab.datasets import Splits, loader
from pruning_lab.datasets.fashion_mnist import fashion_mnist
from pruning_lab.graph import find_structure
from pruning_lab.models.convnet import ConvNet
from pruning_lab.prunable import choose_layers

CRITERIA = {
    "apoz": lambda *given, seed: APoZAttributionMetric(*given),
    "sensitivity": lambda *given, seed: SensitivityAttributionMetric(*given),
    "taylor": lambda *given, seed: TaylorAttributionMetric(*given),
    "weight_norm": lambda *given, seed: WeightNormAttributionMetric(*given),
    "shapley": partial(ShapleyAttributionMetric, sv_samples=2, samples=16),
}
"""As the study has them; random scores are not asked."""

SCORED = 256


def scores_of(model: nn.Module, layers: dict[str, nn.Module], data: Dataset, seed: int,
              criterion: str) -> LayerScores:  # fmt: skip
    """What a criterion says about each layer."""
    metric = CRITERIA[criterion](model, loader(data, 64), F.cross_entropy, "cpu", seed=seed)
    return {name: metric.run(layer, True) for name, layer in layers.items()}


def agreement(model: nn.Module, one: Dataset, other: Dataset, splits: Splits) -> pd.DataFrame:
    """Scorings of a network by each criterion, by other draws on ``one``, and on ``other``."""
    structure = find_structure(model, splits.input_size)
    layers = choose_layers(model, structure, splits.input_size)[0]
    found = []
    for criterion in CRITERIA:
        given, redrawn, elsewhere = (
            scores_of(model, layers, data, seed, criterion)
            for data, seed in ((one, 0), (one, 1), (other, 1))
        )
        for what, again in (("other draws", redrawn), ("other pictures and draws", elsewhere)):
            found.append(between_scorings([given, again]).assign(criterion=criterion, what=what))
    return pd.concat(found, ignore_index=True)


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation and the overlap by criterion and layer, means over the networks."""
    found = found.assign(layer=[f"{row.layer} ({row.units} units)" for row in found.itertuples()])
    means = found.groupby(["what", "criterion", "layer"], sort=False)[
        ["spearman", "overlap"]
    ].mean()
    cells = means.apply(lambda row: f"{row['spearman']:.2f} / {row['overlap']:.2f}", axis="columns")
    shown = cells.unstack("layer")[found["layer"].unique()].reset_index()
    named = shown.assign(criterion=[style_of(name).label for name in shown["criterion"]])
    order = [style_of(name).label for name in CRITERIA]
    named["place"] = named["criterion"].map(order.index)
    named = named.sort_values(["what", "place"], kind="stable").drop(columns="place")
    return (
        named.rename_axis(columns=None).rename(columns={"what": "again by"}).set_index("again by")
    )


def main() -> None:
    """Score every network three times, and write again.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", type=Path, nargs="+", help="trained: baselines/*/*.safetensors")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "again.md")
    given = parser.parse_args()
    splits = fashion_mnist(train=10_000, score=SCORED, val=1000, test=SCORED)
    found = []
    for path in tqdm(given.networks, "Networks", disable=None):
        model = ConvNet(splits.num_classes, splits.in_channels, splits.input_size)
        load_state(model, path)
        found.append(agreement(model.eval(), splits.score, splits.test, splits))
    text = (
        f"Spearman's correlation / overlap of the 30 % lowest (by chance 0.30) between two "
        f"scorings of the same network, means over {len(given.networks)} networks. Pictures: "
        f"{SCORED} of the training part, and {SCORED} of the test part; Shapley values use 16.\n\n"
    )
    text += markdown(table(pd.concat(found)))
    given.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
