"""Measure how far new biases of the output layer, ten numbers, repair a pruned network.

    python -m experiments.compare_criteria.biases 0 1 2

Convnets of the study with these seeds are pruned without fine-tuning. After every cut the ten
biases are changed in two ways, nothing else is. Adds the missing networks to ``biases.csv``.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from experiments.compare_criteria.run import BLOCKS, TO_95, arms, trained
from pruning_lab.datasets import loader
from pruning_lab.experiment.pruning_run import PruningRun, StepResult
from pruning_lab.experiment.study import compare_criteria
from pruning_lab.runtime.files import replacing
from pruning_lab.training.recipe import Training

RESULT = Path(__file__).with_name("biases.csv")
CRITERIA = ("random", "weight_norm", "taylor", "taylor_signed", "owen_gradient")
COLUMNS = [
    "network", "metric", "step", "removed_flops", "test_accuracy_after", "restored", "refitted",
    "imbalance", "restored_imbalance", "refitted_imbalance",
]  # fmt: skip


def fitted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return biases (classes,) with the least mean cross-entropy on logits (samples, classes)."""
    biases = torch.zeros(logits.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([biases], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(logits + biases, targets)
        value.backward()
        return value

    solver.step(loss)
    return biases.detach()


@torch.no_grad()
def answers(model: nn.Module, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (samples, classes) and targets."""
    pairs = [(model(inputs), targets) for inputs, targets in loader(data, 256)]
    logits, targets = zip(*pairs, strict=True)
    return torch.cat(logits), torch.cat(targets)


def with_new_biases(
    whole: torch.Tensor, run: PruningRun, step: int, result: StepResult
) -> dict[str, float]:
    """Return the test accuracy with biases of the output layer changed in two ways.

    ``restored``: the mean of each logit on the scoring pictures is that of the unpruned network,
    ``whole`` (classes,), as BatchNorm's statistics restore it in hidden layers; no label is used.
    ``refitted``: fitted to the labels of the scoring pictures. ``imbalance`` is the share of test
    pictures whose answer would have to change for all classes to be predicted equally often.
    """
    model, splits = run.network.model.eval(), run.conditions.splits
    scored, labels = answers(model, splits.score)
    logits, targets = answers(model, splits.test)
    biases = {
        "": torch.zeros_like(whole),
        "restored": whole - scored.mean(0),
        "refitted": fitted(scored, labels),
    }
    measures = {}
    for name, added in biases.items():
        answered = (logits + added).argmax(1)
        shares = answered.bincount(minlength=len(whole)) / len(answered)
        measures[f"{name}_imbalance".strip("_")] = float((shares - 1 / len(whole)).abs().sum()) / 2
        if name:
            measures[name] = float((answered == targets).float().mean())
    return measures


def study(network: int) -> pd.DataFrame:
    """Prune one network by the criteria, without fine-tuning."""
    model, splits, finetune = trained("convnet", network)
    criteria = arms(BLOCKS["convnet"], network, finetune, len(splits.train))[0].criteria  # type: ignore[arg-type]
    logits, _ = answers(model.eval(), splits.score)
    frame = compare_criteria(
        model, splits, {name: criteria[name] for name in CRITERIA}, TO_95, Training(epochs=0),
        undo_harm=False, every_stage=False, seeds=[network],
        also=partial(with_new_biases, logits.mean(0)),
    )  # fmt: skip
    return frame.assign(network=network)[COLUMNS]


def main() -> None:
    """Study the requested networks that are missing; write each one's rows when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", type=int, nargs="+", help="their seeds")
    torch.set_num_threads(1)
    frames = [pd.read_csv(RESULT)] if RESULT.exists() else []
    done = {network for frame in frames for network in frame["network"]}
    for network in parser.parse_args().networks:
        if network in done:
            continue
        frames.append(study(network))
        with replacing(RESULT) as temporary:
            pd.concat(frames).to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
