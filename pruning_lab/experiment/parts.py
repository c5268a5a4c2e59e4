"""Build the data set and the model that a configuration describes."""

import inspect

from omegaconf import DictConfig
from torch import nn

from pruning_lab.config.build import build, find_target, plain
from pruning_lab.datasets import Splits
from pruning_lab.datasets.samples import TWICE
from pruning_lab.errors import UserError
from pruning_lab.runtime.random_streams import seed_all, streams_kept
from pruning_lab.tasks.task import Task


def build_data(config: DictConfig) -> Splits:
    """The data set; code that draws at random while it is built draws the same each time.

    Raises UserError where a second one of the same settings has other samples.
    """
    target = str(config.get("_target_")) if isinstance(config, DictConfig) else ""
    with streams_kept():
        seed_all(0)
        splits: Splits = build(config, "dataset", Splits)
        if target.startswith("pruning_lab."):
            return splits
        first = splits.fingerprint(TWICE)
        del splits  # two of them may be too large
        seed_all(0)
        again: Splits = build(config, "dataset", Splits)
        if again.fingerprint(TWICE) != first:
            raise UserError(
                f"dataset._target_={target} gives other samples each time that it is built: no "
                "result could be repeated. Draw from numpy's, torch's or Python's own stream, or "
                "from np.random.default_rng(seed), and sort what a folder lists."
            )
    return again


def build_model(config: DictConfig, splits: Splits, task: Task) -> nn.Module:
    """Build the model with what its signature asks for of the data set."""
    known = {
        "num_classes": splits.num_classes,
        "in_channels": splits.in_channels,
        "input_size": splits.input_size,
    }
    signature = inspect.signature(find_target(plain(config)["_target_"], "model"))
    missing = {k: v for k, v in known.items() if k in signature.parameters and k not in config}
    try:
        model: nn.Module = build(config, "model", nn.Module, **missing)
    except UserError as error:
        if len(splits.input_size) != 3:
            raise UserError(
                f"{error} The inputs of this data set have the shape {splits.input_size}, not that "
                "of pictures; model=mlp takes any."
            ) from error
        if "required positional argument" not in str(error):
            raise
        raise UserError(
            f"{error} It is given {', '.join(known)} as far as it names them; give what else it "
            "needs on the command line, +model.width=8 for example."
        ) from error
    task.check(model, splits)
    return model
