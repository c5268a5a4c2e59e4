"""What a user sees: what cannot be done, before any work; and where to look at the end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from pruning_lab.__main__ import _disk_error
from pruning_lab.errors import UserError
from tests.commands import python
from tests.running import TINY, experiment

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


def test_a_run_says_where_to_look(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pruning_lab", *TINY, "schedule.steps=2", "metric=shapley"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = {name: re.search(rf"{name} +(\S.*)", done.stdout)[1] for name in
            ("Table", "Figure", "Pruned model", "MLflow")}  # fmt: skip
    for name in ("Table", "Figure", "Pruned model"):
        assert Path(said[name]).exists()
    assert said["MLflow"].endswith("mlflow ui --backend-store-uri sqlite:///mlflow.db")
    assert Path(said["MLflow"].split()[0]).exists()
    assert (tmp_path / "mlflow.db").exists()
    settings = "reduction=mean_plus_2_std, sv_samples=2, samples=16, seed=0, precision=fp32"
    assert f"by shapley ({settings})" in done.stdout
    assert "Step 2 of 2: " in done.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metric=shaply"], r"(?s)Could not find 'metric/shaply'.*apoz.*shapley.*weight_norm"),
        (
            ["schedule.target=1.5"],
            "schedule.target=1.5 is not possible; it is a number between 0 and 1",
        ),
    ],
)
def test_a_refusal_is_one_message_without_traceback(overrides, message, tmp_path):
    done = python(tmp_path, "-m", "pruning_lab", *TINY, *overrides)
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize(
    ("group", "choices"),
    [
        ("metric", ["apoz", "shapley", "taylor_signed"]),
        ("model", ["convnet", "torchvision", "vgg16"]),
        ("dataset", ["cifar10", "digits", "image_folder"]),
        ("schedule", ["geometric", "layer_by_layer"]),
        ("finetune", ["none", "sgd"]),
    ],
)
def test_an_unknown_choice_lists_the_choices(group, choices, tmp_path):
    with pytest.raises(MissingConfigException) as caught:
        experiment(tmp_path, f"{group}=nonsense")
    for choice in choices:
        assert choice in str(caught.value)


@pytest.mark.parametrize("override", ["schedule.targt=0.5", "seeed=1", "metric.sv_samples=3"])
def test_an_unknown_key_is_refused(override, tmp_path):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        experiment(tmp_path, override)


class Output(nn.Sequential):
    """Nothing but an output layer."""

    def __init__(self, num_classes, input_size):
        super().__init__(nn.Flatten(), nn.Linear(input_size[1] * input_size[2], num_classes))


class Two(nn.Sequential):
    """Two classes, whatever the data."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2))


class Colour(nn.Sequential):
    """Wants three channels."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Linear(2, 4))


REST = [override for override in TINY if not override.startswith("model")]
REFUSALS = {
    "target 0": (["schedule.target=0"], r"schedule.target=0 .*between 0 and 1 \(both excluded\)"),
    "target 1": (["schedule.target=1"], "schedule.target=1 is not possible"),
    "target below 0": (["schedule.target=-0.1"], "schedule.target=-0.1 is not possible"),
    "steps": (["schedule.steps=0"], "schedule.steps=0 .*whole number from 1"),
    "of": (["schedule.of=flop"], "schedule.of=flop .*flops, parameters, units"),
    "scope": (["schedule.scope=all"], "schedule.scope=all .*global, per_layer"),
    "normalise": (["schedule.normalise=l1"], "schedule.normalise=l1 .*none, l2, max"),
    "flops_penalty": (
        ["schedule.flops_penalty=-1"], "schedule.flops_penalty=-1 is not possible.* 0 or more"
    ),
    "beyond the floor": (
        ["schedule.target=0.9", "schedule.min_units=10"],
        r"0.900 cannot be removed: .*at most 0\.\d+ can be removed. Lower schedule.target",
    ),
    "reduction": (["metric.reduction=median"], "reduction='median' .*sum, mean_abs, mean_plus"),
    "samples": (["metric=shapley", "metric.samples=0"], "samples=0 is not possible"),
    "orders": (["metric=shapley", "metric.sv_samples=0"], "sv_samples=0 is not possible"),
    "device": (["device=tpu"], r"device=tpu is not available on this machine"),
    "epochs": (
        ["finetune.epochs=-1", "finetune.steps=null"],
        "finetune: epochs=-1 .*; it is a whole number from 0",
    ),
    "two lengths": (
        ["finetune.epochs=2"],
        "finetune: epochs=2 and steps=160: both are given, .* the other one to null",
    ),
    "no length": (["finetune.steps=null"], "epochs=None and steps=None: none is given"),
    "never below 0": (
        ["metric=shapley", "schedule=negative_scores"],
        "metric.reduction=mean_plus_2_std .* schedule=negative_scores .* metric.reduction=mean",
    ),
    "split": (
        ["dataset=digits", "dataset.test=5000"], r"dataset.test=5000 .* samples of 10 classes are",
    ),
    "no pixels": (["dataset.size=0"], "dataset.size=0 is not possible"),
    "one class": (["dataset.classes=1"], "dataset.classes=1 is not possible"),
    "missing data": (
        ["dataset=cifar10", "dataset.download=false", "dataset.root={folder}/data"],
        r"CIFAR10 is not in .*data and dataset.download=false. Run once with a network, or unpack",
    ),
    "folder": (["dataset=image_folder", "dataset.root={folder}/data"], "train is not a folder"),
    "missing checkpoint": (["baseline.checkpoint={folder}/no.pt"], "no.pt is not a file"),
    "size": (["model=vgg16"], "at least 32x32 pixels, these have 8x8"),
    "no layer": (
        ["model=custom", f"model._target_={__name__}.Output"], "no layer whose units can be removed"
    ),
    "no class": (["model=custom"], "model._target_ is missing"),
    "no number": (["schedule.target=abc"], "schedule.target=abc is not possible; it is a number"),
    "half an epoch": (
        ["finetune.epochs=1.5", "finetune.steps=null"], "finetune: epochs=1.5 is not possible"
    ),
    "infinite": (["baseline.training.lr=inf"], "baseline.training: lr=inf is not possible"),
    "seed": (["seed=-1"], "seeds.init=-1 is not possible; it is a whole number from 0"),
    "threads": (["threads=0"], "threads=0 is not possible"),
    "batch": (["scoring.batch_size=0"], "scoring.batch_size=0 is not possible"),
    "half a sample": (["metric=shapley", "metric.samples=1.5"], "samples=1.5 is not possible"),
    "new option": (["+metric.foo=1"], "metric: .*Metric takes no 'foo'; it takes"),
    "no root": (["dataset=image_folder"], "dataset.root is missing: set it on the command line"),
    "checkpoint": (["baseline.checkpoint={folder}/other.pt"], "other.pt does not fit"),
    "a folder": (["baseline.checkpoint={folder}"], "is not a file; give a state dict"),
    "too few outputs": (
        ["model=custom", f"model._target_={__name__}.Two"],
        r"gives \(2, 2\); for a data set of 4 classes it must give a tensor of shape \(2, 4\)",
    ),
    "other images": (
        ["model=custom", f"model._target_={__name__}.Colour"],
        r"cannot take the data set's images, \(2, 1, 8, 8\): .*3 channels",
    ),
    "tracking": (["tracking.uri=http://127.0.0.1:9"], "tracking.uri=http.* cannot be reached"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_impossible_is_refused_before_any_work(case, tmp_path):
    overrides, message = REFUSALS[case]
    overrides = [override.format(folder=tmp_path) for override in overrides]
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=message):
        experiment(tmp_path, *overrides, base=REST if "model" in overrides[0] else TINY).run()
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_config_composes_and_explains_its_keys(path):
    group = str(path.relative_to(CONF).parent)
    if group != "." and not group.startswith(
        "hydra"
    ):  # tests/test_launchers.py: with their plugins
        with initialize_config_module("pruning_lab.conf", version_base="1.3"):
            composed = compose("config", [f"{group}={path.stem}"])
        own = OmegaConf.load(path)
        if "_target_" in own:
            assert composed[group]._target_ == own._target_ or own._target_ == "???"
    first, *lines = path.read_text().partition("hydra:")[0].splitlines()
    assert first.startswith("# ")
    for line in lines if group != "experiment" else []:
        key, _, value = line.strip().partition(":")
        if value and not key.startswith(("_", "- ", "#")):
            assert "#" in value, f"{key} is not explained"


def test_an_error_of_a_disk_is_named_only_where_it_ended_the_run():
    def ended(error):
        try:
            try:
                raise error
            except type(error):
                sys.exit(1)
        except SystemExit as caught:
            return caught

    full, other = OSError(28, "No space left on device"), ValueError("a mistake")
    handler = ValueError("Unable to configure handler 'file'")
    handler.__cause__ = full
    assert _disk_error(ended(full)) is full
    assert _disk_error(ended(handler)) is full
    other.__context__ = full  # handled, and something else went wrong
    assert _disk_error(ended(other)) is None
    assert _disk_error(ended(CompactHydraException("said already"))) is None
    assert _disk_error(SystemExit(1)) is None
