"""Bad inputs, one a line: what is given, and what is said before any work is done.

Other files test the commonest refusals of their own room; here are those of a sloppy or a hostile
user. Each message has the value that was wrong and what to do.
"""

import gzip
import http.server
import os
import pickle
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import HydraException
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab import setup, tracking
from pruning_lab.checkpoint import load_pruned, load_state, save_pruned
from pruning_lab.compare.__main__ import main as compare
from pruning_lab.datasets import Splits
from pruning_lab.datasets.cifar import cifar
from pruning_lab.datasets.fashion_mnist import FILES, fashion_mnist
from pruning_lab.datasets.image_folder import image_folder
from pruning_lab.datasets.mnist import mnist
from pruning_lab.errors import UserError
from pruning_lab.schedules import OneShot, Schedule
from pruning_lab.study import compare_criteria
from pruning_lab.training import Training, fit
from tests.experiment import TINY, experiment

DATA = [override for override in TINY if not override.startswith("model")]
QUICK = ["attributions=none", "finetune=none", "baseline.training.epochs=1", "schedule.target=0.3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all: making it takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}")
    return path


def statuses(store):
    with sqlite3.connect(store) as database:
        return [status for (status,) in database.execute("select status from runs")]


def own(name, *more):
    """The overrides that choose a model of this file."""
    return ["model=custom", f"model._target_={__name__}.{name}", *more]


def prepared(folder, store, overrides):
    """The experiment of these overrides, in whose text {folder} may stand."""
    chosen = any(override.startswith("model=") for override in overrides)
    base = [*(DATA if chosen else TINY), "attributions=none"]
    overrides = [override.format(folder=folder) for override in overrides]
    built = experiment(folder, f"tracking.uri=sqlite:///{store}", *overrides, base=base)
    assert built.client  # connects, as a run does before anything else
    return built


# -- what Hydra refuses ---------------------------------------------------------------------------

COMPOSITION = {
    "group": (["metrik=taylor"], "Could not override 'metrik'"),
    "attributions": (["attributions=sixx"], r"(?s)'attributions/sixx'.*cheap.*none.*six"),
    "preset": (["experiment=compare"], r"(?s)'experiment/compare'.*compare_criteria.*low_data"),
    "tracking": (["tracking=wandb"], r"(?s)'tracking/wandb'.*mlflow"),
    "another criterion's option": (["metric.samples=3"], "Could not override 'metric.samples'"),
    "another schedule's option": (
        ["schedule=one_shot", "schedule.steps=3"], "Could not override 'schedule.steps'",
    ),
    "a sweep without -m": (["seed=0,1,2"], "Ambiguous value for argument 'seed=0,1,2'"),
    "no value": (["schedule.target"], "Error parsing override 'schedule.target'"),
    "two values": (["schedule.target=0.5=0.6"], "mismatched input '='"),
    "an open list": (["model.hidden=[16,12"], r"no viable alternative at input '\[16,12'"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPOSITION)
def test_what_cannot_be_composed(case, tmp_path, store):
    overrides, message = COMPOSITION[case]
    with pytest.raises(HydraException, match=message):
        prepared(tmp_path, store, overrides)


# -- values that are not possible -----------------------------------------------------------------

SHARE = r"is not possible; it is a number between 0 and 1 \(both excluded\)"
COUNT = "is not possible; it is a whole number from"
SEED = f"{COUNT} 0 to 2147483647"
TEXT = "is not possible; it is text, .* for example"
VALUES = {
    "target null": (["schedule.target=null"], f"schedule.target=None {SHARE}"),
    "target a list": (["schedule.target=[0.5]"], rf"schedule.target=\[0.5\] {SHARE}"),
    "target true": (["schedule.target=true"], f"schedule.target=True {SHARE}"),
    "target in quotes": (["schedule.target='0.5'"], f"schedule.target=0.5 {SHARE}.*, not text"),
    "target nan": (["schedule.target=nan"], f"schedule.target=nan {SHARE}"),
    "target infinite": (["schedule.target=inf"], f"schedule.target=inf {SHARE}"),
    "steps null": (["schedule.steps=null"], f"schedule.steps=None {COUNT} 1 to 1000"),
    "steps broken": (["schedule.steps=2.5"], f"schedule.steps=2.5 {COUNT} 1"),
    "steps negative": (["schedule.steps=-3"], f"schedule.steps=-3 {COUNT} 1"),
    "steps true": (["schedule.steps=true"], f"schedule.steps=True {COUNT} 1"),
    "steps a mapping": (["schedule.steps={{a: 1}}"], r"schedule.steps=\{'a': 1\} is not possible"),
    "steps without end": ([f"schedule.steps={10**21}"], f"steps={10**21} {COUNT} 1 to 1000"),
    "multiple of 0": (["schedule.multiple_of=0"], f"schedule.multiple_of=0 {COUNT} 1 on"),
    "multiple of many": (
        ["schedule.multiple_of=1000"], r"0\.\d+ cannot be removed: .*at most 0.000 can go. Lower",
    ),
    "coupled": (["schedule.coupled=median"], "schedule.coupled=median .*together, mean, sum, max"),
    "of a list": (["schedule.of=[flops]"], r"schedule.of=\['flops'\] is not known; choose one of"),
    "no such schedule": (
        ["schedule._target_=nowhere.Steps"], "nowhere.Steps cannot be imported: .*No module named",
    ),
    "reduction null": (["metric.reduction=null"], "reduction=None is not known; choose .*mean"),
    "reduction none": (["metric.reduction=none"], "metric.reduction=none gives no ranking"),
    "signed maybe": (["metric.signed=maybe"], "signed=maybe is not possible; it is true or false"),
    "signed in numbers": (["metric.signed=2"], "signed=2 is not possible; it is true or false"),
    "criterion's seed": (["metric=shapley", "metric.seed=-1"], f"seed=-1 {SEED}"),
    "criterion's seed text": (["metric=random", "metric.seed=abc"], f"seed=abc {SEED}, not text"),
    "criterion's seed half": (["metric=owen_gradient", "metric.seed=1.5"], f"seed=1.5 {SEED}"),
    "budget": (["metric=shapley", "metric.evaluations=many"], f"evaluations=many {COUNT} 1"),
    "separated": (["metric=shapley", "metric.separated=2"], f"separated=2 {SHARE}"),
    "error": (["metric=shapley", "metric.relative_error=0"], f"relative_error=0 {SHARE}"),
    "seconds": (["metric=shapley", "metric.seconds=-1"], "seconds=-1 is not possible.*above 0"),
    "precision": (["metric=shapley", "metric.precision=fp16"], "precision=fp16 .*fp32, bf16"),
    "odd masks": (["metric=owen_gradient", "metric.masks=5"], "masks=5 .*they come in pairs"),
    "device null": (["device=null"], "device=None is not to be had here. Use auto or cpu"),
    "device a list": (["device=[cpu]"], r"device=\['cpu'\] is not to be had here"),
    "device": (["device=banana"], "device=banana is not to be had here"),
    "a missing GPU": (["device=cuda:99"], "device=cuda:99 is not to be had here"),
    "threads": (["threads=-1"], f"threads=-1 {COUNT} 1 to 1024"),
    "threads text": (["threads=many"], f"threads=many {COUNT} 1 to 1024, not text"),
    "threads without end": ([f"threads={10**6}"], f"threads={10**6} {COUNT} 1 to 1024"),
    "seed too large": ([f"seed={2**64}"], f"seeds.init={2**64} {SEED}"),
    "seed half": (["seed=0.5"], f"seeds.init=0.5 {SEED}"),
    "seed null": (["seed=null"], f"seeds.init=None {SEED}"),
    "seed true": (["seed=true"], f"seeds.init=True {SEED}"),
    "seed a list": (["seed=[1,2]"], rf"seeds.init=\[1, 2\] {SEED}"),
    "batch": (["scoring.batch_size=all"], f"scoring.batch_size=all {COUNT} 1 on, not text"),
    "recalibrate": (["after_cut.recalibrate=-1"], f"after_cut.recalibrate=-1 {COUNT} 0"),
    "rescale": (["after_cut.rescale_dropout=1"], "after_cut.rescale_dropout=1 .*true or false"),
    "learning rate": (["baseline.training.lr=fast"], "baseline.training: lr=fast .*number above 0"),
    "nesterov": (["finetune.nesterov=maybe"], "finetune: nesterov=maybe .*true or false, not text"),
    "momentum": (["finetune.momentum=1"], "finetune: momentum=1 .*from 0 to below 1"),
    "training null": (["baseline.training=null"], "baseline.training=None is not possible: .*_tar"),
    "baseline null": (["baseline=null"], "baseline=None is not possible: set its keys one by one"),
    "seeds a number": (["seeds=3"], "seeds=3 is not possible: set its keys one by one"),
    "folder null": (["baseline.folder=null"], f"baseline.folder=None {TEXT}"),
    "folder a list": (["baseline.folder=[a]"], rf"baseline.folder=\['a'\] {TEXT}"),
    "folder empty": (["baseline.folder=''"], f"baseline.folder= {TEXT}"),
    "checkpoint a number": (["baseline.checkpoint=5"], f"baseline.checkpoint=5 {TEXT}"),
    "checkpoint no file": (["baseline.checkpoint=/dev/null"], "/dev/null is not a file; give"),
    "store null": (["tracking.uri=null"], f"tracking.uri=None {TEXT}"),
    "store empty": (["tracking.uri=''"], f"tracking.uri= {TEXT}"),
    "store of no known kind": (["tracking.uri=foo://bar"], "tracking.uri=foo://bar .*give another"),
    "store a folder": (["tracking.uri={folder}"], "tracking.uri=.* cannot be reached: "),
    "store two slashes": (["tracking.uri=sqlite://mlflow.db"], "sqlite://mlflow.db .*sqlite:///ml"),
    "store nowhere": (["tracking.uri=sqlite:////proc/x/m.db"], "/proc/x/m.db cannot be reached"),
    "experiment empty": (["tracking.experiment=''"], f"tracking.experiment= {TEXT}"),
    "experiment null": (["tracking.experiment=null"], f"tracking.experiment=None {TEXT}"),
    "experiment a number": (["tracking.experiment=7"], f"tracking.experiment=7 {TEXT}"),
    "experiment a list": (["tracking.experiment=[a]"], rf"tracking.experiment=\['a'\] {TEXT}"),
    "split seed": (["dataset.split_seed=-1"], f"dataset.split_seed=-1 {SEED}"),
    "split seed text": (["dataset.split_seed=a"], f"dataset.split_seed=a {SEED}"),
    "split seed too large": (
        ["dataset=digits", f"dataset.split_seed={2**32}"], f"dataset.split_seed={2**32} {SEED}",
    ),
    "train null": (["dataset.train=null"], f"dataset.train=None {COUNT} 1"),
    "train text": (["dataset.train=all"], f"dataset.train=all {COUNT} 1 on, not text"),
    "train negative": (["dataset.train=-5"], f"dataset.train=-5 {COUNT} 1"),
    "val 0": (["dataset=digits", "dataset.val=0"], f"dataset.val=0 {COUNT} 1"),
    "two rests": (["dataset=digits", "dataset.val=null"], "dataset.train and dataset.val are null"),
    "noise": (["dataset.noise=loud"], "dataset.noise=loud is not possible; it is a number from 0"),
    "noise nan": (["dataset.noise=nan"], "dataset.noise=nan is not possible; it is a num"),
    "noise negative": (["dataset.noise=-1"], "dataset.noise=-1 is not possible; .*from 0 on"),
    "no channels": (["dataset.channels=0"], f"dataset.channels=0 {COUNT} 1"),
    "no channels of digits": (
        ["dataset=digits", "dataset.channels=0"], f"dataset.channels=0 {COUNT} 1",
    ),
    "size text": (["dataset=digits", "dataset.size=big"], f"dataset.size=big {COUNT} 1"),
    "more classes than samples": (["dataset.classes=1000"], "256 samples of 256 classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_values_that_are_not_possible(case, tmp_path, store):
    overrides, message = VALUES[case]
    with pytest.raises(UserError, match=f"(?s){message}"):
        prepared(tmp_path, store, overrides)
    assert not (tmp_path / "baselines").exists()
    assert not statuses(store)


# -- models ---------------------------------------------------------------------------------------


class Net(nn.Sequential):
    """What the models below do wrong is all that they do differently."""

    def __init__(self, num_classes=4):
        super().__init__(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, num_classes))


class FailsToStart(Net):
    def __init__(self):
        raise RuntimeError("no weights here")


class FailsToRun(Net):
    def forward(self, x):
        raise KeyError("features")


class FailsInTraining(Net):
    def forward(self, x):
        if self.training:
            raise RuntimeError("no auxiliary head")
        return super().forward(x)


class GivesTwo(Net):
    def forward(self, x):
        return super().forward(x), x


class GivesNames(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}


class Five(Net):
    def __init__(self):
        super().__init__(5)


class Broken(Net):
    def __init__(self):
        super().__init__()
        nn.init.constant_(self[1].bias, float("nan"))


class Endless(Net):
    def forward(self, x):
        return super().forward(x) / 0


class Branches(Net):
    def forward(self, x):
        x = self[1](self[0](x))
        return self[3](x if x.sum() > 0 else -x)


class WithoutParameters(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4]


class InDouble(Net):
    def __init__(self):
        super().__init__()
        self.double()


class OverTheBatch(Net):
    def __init__(self):
        super().__init__()
        self[2] = nn.BatchNorm1d(6, track_running_stats=False)


class NotInitialised(nn.Module):
    def __init__(self):
        self.head = nn.Linear(64, 4)


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


SHAPE = r"for a data set of 4 classes it must give a tensor of shape \(2, 4\)"
MODELS = {
    "no module": (["model=custom", "model._target_=Net"], "model._target_=Net cannot be imported"),
    "no class": (own("Nett"), r"_target_=\S+.Nett cannot be imported: .*Are you sure"),
    "a number": (["model=custom", "model._target_=5"], "model._target_=5 cannot be imported"),
    "a module": (["model=custom", f"model._target_={__name__}"], "is a module; name a class"),
    "a module that fails": (
        ["model=custom", "model._target_=failing.Net"],
        "failing.Net cannot be imported: .*not_installed",
    ),
    "constructor": (own("FailsToStart"), "FailsToStart cannot be built: no weights here"),
    "a lone image": (own("OverTheBatch"), r"images, \(1, 1, 8, 8\): Expected more than 1 value"),
    "no super().__init__()": (own("NotInitialised"), "cannot be built: cannot assign module"),
    "an argument too many": (own("Net", "+model.width=3"), "unexpected keyword argument 'width'"),
    "forward": (own("FailsToRun"), r"cannot take the data set's images, \(2, 1, .*: 'features'"),
    "training": (own("FailsInTraining"), "FailsInTraining cannot be traced: no auxiliary head"),
    "a tuple": (own("GivesTwo"), f"For two images the model gives tuple; {SHAPE}"),
    "a mapping": (own("GivesNames"), f"For two images the model gives dict; {SHAPE}"),
    "a class too many": (own("Five"), rf"For two images the model gives \(2, 5\); {SHAPE}"),
    "NaN in weights": (own("Broken"), r"For black images the model gives \[nan, nan, nan, nan\]"),
    "infinite": (own("Endless"), r"For black images the model gives \[-?inf, .*weights finite"),
    "code on data": (own("Branches"), "Branches cannot be traced: .*control flow"),
    "no parameters": (own("WithoutParameters"), "WithoutParameters has no layer whose units"),
    "in float64": (own("InDouble"), r"cannot take the data set's images, .*Float and Double"),
    "no hidden layer": (["model.hidden=[]"], "MLP has no layer whose units can be removed"),
    "no units": (["model.hidden=[0,12]"], f"model: hidden=0 {COUNT} 1"),
    "units negative": (["model.hidden=[-3]"], f"model: hidden=-3 {COUNT} 1"),
    "units text": (["model.hidden=[a]"], f"model: hidden=a {COUNT} 1 on, not text"),
    "a width for a list": (["model.hidden=16"], r"hidden=16 is not possible; it is a list, \[2024"),
    "null for a list": (["model.hidden=null"], "hidden=None is not possible; it is a list"),
    "three convolutions": (
        ["model=convnet", "model.channels=[1,2,3]"], r"channels=\[1, 2, 3\] .*two convolutions",
    ),
    "a width for two": (["model=convnet", "model.channels=32"], "channels=32 .*it is a list"),
    "no hidden units": (["model=convnet", "model.hidden=0"], f"model: hidden=0 {COUNT} 1"),
    "no hidden units of VGG": (
        ["model=vgg11", "model.hidden=0", "dataset.size=32"], f"model: hidden=0 {COUNT} 1",
    ),
    "depth": (["model=resnet20", "model.depth=21"], r"model: depth=21 .*it is 6n \+ 2"),
    "torchvision's name": (
        ["model=torchvision", "model.name=resnet19"], "model.name=resnet19 .*Close: resnet18",
    ),
    "no name": (["model=torchvision", "model.name=null"], "model.name=None is not one of torch"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_pruned(case, tmp_path, store, monkeypatch):
    (tmp_path / "failing.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    overrides, message = MODELS[case]
    with pytest.raises(UserError, match=f"(?s){message}"):
        prepared(tmp_path, store, overrides)
    assert not (tmp_path / "baselines").exists()
    assert not statuses(store)


@pytest.mark.parametrize("name", ["Frozen", "Detached"])
def test_a_model_that_cannot_be_trained_fails_at_its_first_batch(name):
    model, data = globals()[name](), TensorDataset(torch.ones(4, 64), torch.zeros(4).long())
    training = Training(epochs=3)
    optimizer, before = training.optimizer(model), [p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match=r"Training it is not possible: .*requires_grad"):
        fit(model, optimizer, data, training, torch.Generator(), "Training it")
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("group", "kind"), [("dataset", Splits), ("schedule", Schedule), ("finetune", Training)]
)
def test_another_object_than_the_group_is_for(group, kind):
    config = setup.OmegaConf.create({"_target_": "builtins.dict"})
    message = f"{group}._target_=builtins.dict gives a dict, not a {kind.__name__}"
    with pytest.raises(UserError, match=message):
        setup.build(config, group, kind)


# -- pictures on disk -----------------------------------------------------------------------------


def pictures(root, **counts):
    """``root/PART/CLASS/*.png``."""
    for name, count in counts.items():
        part, label = name.split("_")
        (root / part / label).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(root / part / label / f"{number}.png")
    return root


def folder(root, **counts):
    counts = counts or {"train_ape": 10, "train_bee": 10, "test_ape": 4, "test_bee": 4}
    return pictures(root, **counts)


def opened(root, **options):
    return image_folder(str(root), **{"size": 8, "score": 4, "val": 4} | options)


def without(root, content):
    """The pictures with one that holds something else."""
    (folder(root) / "test" / "ape" / "0.png").write_bytes(content)
    return opened(root)


def text_alone(root):
    for path in (folder(root) / "train" / "ape").iterdir():
        path.rename(path.with_suffix(".txt"))
    return opened(root)


def forbidden(root, place):
    """As for one who may not read ``place``; the superuser is never refused."""
    folder(root)
    scan = os.scandir

    def refused(path="."):
        if Path(path) == root / place:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        return opened(root)


def cut_short(root):
    """A picture that begins well, and is found out when it is read."""
    path = folder(root) / "test" / "ape" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return opened(root).test[0]


PICTURES = {
    "nothing": (lambda root: opened(root), "train is not a folder"),
    "root null": (lambda root: image_folder(None), f"dataset.root=None {TEXT}"),
    "root a number": (lambda root: image_folder(5), f"dataset.root=5 {TEXT}"),
    "root a file": (lambda root: opened("/etc/passwd"), "/etc/passwd/train is not a folder"),
    "no classes": (
        lambda root: opened(pictures(root, train_ape=0, test_ape=0).parent / root.name / "train",
                            train_folder="ape", test_folder="ape"),
        "ape cannot be read: Couldn't find any class folder",
    ),
    "one class": (
        lambda root: opened(folder(root, train_ape=20, test_ape=4)),
        "has one class, ape: there is nothing to tell apart",
    ),
    "another class": (
        lambda root: opened(folder(root, train_ape=9, train_bee=9, test_ape=4, test_cat=4)),
        "different classes; in one of them only are bee, cat. Both need a folder for every class",
    ),
    "too few": (
        lambda root: opened(folder(root, train_ape=1, train_bee=9, test_ape=4, test_bee=4)),
        "dataset.val=4 is not possible: 10 samples of 2 classes",
    ),
    "text alone": (text_alone, "train cannot be read: Found no valid file for the classes ape"),
    "text for a picture": (lambda root: without(root, b"not a picture"),
                           r"0.png cannot be read as a picture: .*Delete or replace it"),
    "an empty file": (lambda root: without(root, b""), "0.png cannot be read as a picture"),
    "half a picture": (cut_short, "0.png cannot be read as a picture: .*Delete or replace it"),
    "a folder closed": (lambda root: forbidden(root, "train"), "train cannot be read: .*denied"),
    "a class closed": (
        lambda root: forbidden(root, "test/bee"), "test cannot be read: .*file for the classes bee",
    ),
    "augment": (lambda root: opened(root, augment="no"), "dataset.augment=no .*true or false"),
}  # fmt: skip


# -- files of published data sets -----------------------------------------------------------------

COUNTS = {"train": 80, "t10k": 30}


def idx(array, magic=0x0800):
    head = struct.pack(f">I{array.ndim}I", magic + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def laid(root, **other):
    """Fashion-MNIST's four files, some of them with another content."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in COUNTS.items():
        images, labels = np.zeros((count, 28, 28)), np.arange(count) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(other.get(f"{part}_images", idx(images)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(other.get(f"{part}_labels", idx(labels)))
    return root


def fashion(root, package="/nowhere", **options):
    options = {"download": False, "score": 10, "val": 20} | options
    return fashion_mnist(str(root), debian_package=str(package), **options)


def packed(root, content):
    """Debian's files, with this content."""
    package = root / "package"
    package.mkdir()
    for name in FILES:
        (package / f"{name}.gz").write_bytes(content)
    return fashion(root, package)


def labelled(last, count=80):
    return idx(np.append(np.arange(count - 1) % 10, last))


DAMAGED = "FashionMNIST in .* cannot be read: a file is damaged .*Delete its folder there"
OFFICIAL = {
    "pictures cut short": (
        lambda root: fashion(laid(root, t10k_images=idx(np.zeros((30, 28, 28)))[:5000])), DAMAGED,
    ),
    "pictures empty": (lambda root: fashion(laid(root, train_images=b"")), DAMAGED),
    "labels of another kind": (
        lambda root: fashion(laid(root, train_labels=b"\xff\xff\xff\xff" + labelled(9)[4:])),
        DAMAGED,
    ),
    "a damaged file is not downloaded over": (
        lambda root: fashion(laid(root, train_images=b""), download=True), DAMAGED,
    ),
    "numbers for bytes": (
        lambda root: fashion(laid(root, train_images=idx(np.zeros((80, 28, 28)), 0x0D00))), DAMAGED,
    ),
    "fewer labels": (
        lambda root: fashion(laid(root, train_labels=labelled(9, 40))),
        "80 pictures have 40 labels: the files do not belong together",
    ),
    "a label out of range": (
        lambda root: fashion(laid(root, train_labels=labelled(200))),
        r"labels \[200\] are none of 11 classes, 0 to 10: a file is damaged",
    ),
    "a test label out of range": (
        lambda root: fashion(laid(root, t10k_labels=labelled(77, 30))),
        r"labels \[77\] are none of 10 classes, 0 to 9: a file is damaged",
    ),
    "packed and cut short": (
        lambda root: packed(root, gzip.compress(bytes(1000))[:20]),
        "train-images-idx3-ubyte.gz cannot be unpacked to .*Install the package",
    ),
    "not packed": (lambda root: packed(root, b"hello"), "cannot be unpacked to .*Not a gzipped"),
    "no channels": (lambda root: fashion(laid(root), channels=0), f"dataset.channels=0 {COUNT} 1"),
    "channels text": (lambda root: fashion(laid(root), channels="a"), "dataset.channels=a is not"),
    "half a pixel": (lambda root: fashion(laid(root), size=30.5), f"dataset.size=30.5 {COUNT} 1"),
    "root null": (lambda root: mnist(None, download=False), f"dataset.root=None {TEXT}"),
    "root a file": (lambda root: mnist("/etc/passwd", download=False), "is not in /etc/passwd"),
    "root a file, with a network": (
        lambda root: mnist("/etc/passwd"), "MNIST is not in /etc/passwd and cannot be downloaded",
    ),
    "download in quotes": (
        lambda root: cifar(root=str(root), download="false"),
        "dataset.download=false is not possible; it is true or false, not text",
    ),
}  # fmt: skip


# -- what a criterion cannot score ----------------------------------------------------------------


class BatchStatistics(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(216, 4),
        )  # fmt: skip


BATCH = "'1' takes its statistics from the batch"
WIDE = ["model=mlp", "model.hidden=[30,12]"]
UNSCORED = {
    "coalitions without end": (
        [*WIDE, "metric=shapley_exact"],
        r"30 units has 2\^30 coalitions; .*up to 20 .*Use the sam",
    ),
    "a budget that does not do": (
        [*WIDE, "metric=shapley", "metric.evaluations=1000"],
        "evaluations=1000 do not do for 2 pairs .*; these take 2688. Give more, or use fewer",
    ),
    "statistics of the batch": (own("BatchStatistics"), BATCH),
    "statistics of the batch, by masks": (own("BatchStatistics", "metric=shapley"), BATCH),
}


def checked(done):
    players = done.main.players(tuple(done.network.layers))
    done.main.metric.check(list(players.values()), True)


@pytest.mark.parametrize("case", UNSCORED)
def test_what_a_criterion_cannot_score_is_known_before_the_training(case, tmp_path, store):
    overrides, message = UNSCORED[case]
    with pytest.raises(UserError, match=message):  # from here or, once it asks, the constructor
        checked(prepared(tmp_path, store, overrides))
    assert not (tmp_path / "baselines").exists()


# -- a data set of one's own ----------------------------------------------------------------------


def given(**wrong):
    """Splits of eight pictures each, whose fingerprint is asked for; ``wrong`` goes into one."""
    parts = {}
    for name in ("train", "score", "val", "test"):
        x, y = torch.zeros(8, 1, 8, 8), torch.arange(8) % 4
        change = wrong.get(name)
        parts[name] = TensorDataset(*(change(x, y) if change else (x, y)))
    return Splits(**parts, num_classes=4, input_size=(1, 8, 8))


def with_label(label):
    return lambda x, y: (x, y.index_fill(0, torch.tensor([5]), label))


def with_pixel(value):
    return lambda x, y: (x.index_fill(0, torch.tensor([3]), value), y)


GIVEN = {
    "NaN": (
        lambda _: given(train=with_pixel(float("nan"))).fingerprint(),
        r"Sample 3 of dataset.train has shape \(1, 8, 8\) and is not all finite",
    ),
    "infinite": (
        lambda _: given(test=with_pixel(float("inf"))).fingerprint(),
        "Sample 3 of dataset.test .* is not all finite; .*Leave it out",
    ),
    "a label too large": (
        lambda _: given(val=with_label(4)).fingerprint(),
        "Sample 5 of dataset.val has label 4; the 4 classes have 0 to 3",
    ),
    "a label below 0": (
        lambda _: given(score=with_label(-1)).fingerprint(), "dataset.score has label -1;",
    ),
    "another size": (
        lambda _: given(test=lambda x, y: (x[..., :7], y)).fingerprint(),
        r"Sample 0 of dataset.test has shape \(1, 8, 7\) .* of shape \(1, 8, 8\)",
    ),
    "a criterion of nothing": (
        lambda _: compare_criteria([], given(), {}, OneShot(target=0.5), Training(epochs=0)),
        "0 baselines and 0 criteria",
    ),
}  # fmt: skip


# -- files with weights ---------------------------------------------------------------------------


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def weights(name, content):
    """Load a file of this name and content into a small layer."""

    def attempt(root):
        path = root / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is None:
            path.mkdir()
        else:
            torch.save(content, path)
        load_state(nn.Linear(2, 2), path)

    return attempt


def layer(**other):
    return {"weight": torch.ones(2, 2), "bias": torch.zeros(2)} | other


def pruned(change):
    """Load a pruned layer into another after ``change`` was made to its folder."""

    def attempt(root):
        save_pruned(nn.Sequential(nn.Linear(2, 3)), root, {"0": [0, 1, 2]})
        model = change(root) or nn.Sequential(nn.Linear(2, 3))
        load_pruned(model, root)

    return attempt


WEIGHTS = {
    "empty": (weights("w.pt", b""), "w.pt cannot be read: it is damaged"),
    "empty safetensors": (weights("w.safetensors", b""), "w.safetensors cannot be read: it is dam"),
    "a folder": (weights("w.pt", None), "w.pt is not there; give the path of a file"),
    "code": (weights("w.pth", pickle.dumps(Harm(), protocol=2)), "not loaded for safety"),
    "a list": (weights("w.pt", [torch.ones(2)]), "w.pt holds no state dict"),
    "NaN": (
        weights("w.pt", layer(weight=torch.full((2, 2), float("nan")))),
        r"w.pt holds NaN in 1 keys \(weight\): training diverged before it was saved",
    ),
    "whole numbers": (
        weights("w.pt", layer(weight=torch.ones(2, 2).long())),
        "weight is torch.int64 there and torch.float32 in the model",
    ),
    "complex numbers": (
        weights("w.pt", layer(bias=torch.zeros(2, dtype=torch.complex64))), "bias is torch.complex",
    ),
    "a pruned model nowhere": (
        lambda root: load_pruned(nn.Linear(2, 2), root / "no"), "model.safetensors is not there",
    ),
    "a pruned model in a file": (
        lambda root: load_pruned(nn.Linear(2, 2), "/etc/passwd"), "model.safetensors is not there",
    ),
    "tensors cut short": (
        pruned(lambda root: os.truncate(root / "model.safetensors", 20)), "cannot be read: it is",
    ),
    "a recipe that is a list": (
        pruned(lambda root: (root / "recipe.json").write_text("[]") and None), "has version None",
    ),
    "a recipe of another model": (
        pruned(lambda root: nn.Sequential(nn.Linear(2, 2))), "0.weight is 3x2 there and 2x2 in the",
    ),
}  # fmt: skip

FILED = {
    f"{group}: {name}": case
    for group, cases in {
        "pictures": PICTURES, "official": OFFICIAL, "given": GIVEN, "weights": WEIGHTS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("case", FILED)
def test_files_and_data_that_cannot_be_used(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt, message = FILED[case]
    with pytest.raises(UserError, match=f"(?s){message}"):
        attempt(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_file_that_is_no_picture_beside_pictures_is_passed_over(tmp_path):
    (folder(tmp_path) / "train" / "ape" / "notes.txt").write_text("seen at noon")
    assert len(opened(tmp_path).train) == 20 - 4 - 4


# -- stores that fail -----------------------------------------------------------------------------


def test_a_server_that_answers_with_500(tmp_path, store):
    class Fails(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(500)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Fails) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=rf"tracking.uri={uri} cannot be reached: .*500"):
            prepared(tmp_path, store, [f"tracking.uri={uri}"])
        server.shutdown()


def test_a_database_that_cannot_be_written(tmp_path, store):
    path = tmp_path / "read_only.db"
    with sqlite3.connect(path) as database:
        database.execute("create table notes (text)")
    fixed = shutil.which("chattr")
    if not fixed or subprocess.run([fixed, "+i", path], check=False).returncode:
        pytest.skip("this file system cannot make a file immutable")
    try:
        with pytest.raises(UserError, match=r"read_only.db cannot be reached: .*readonly database"):
            prepared(tmp_path, store, [f"tracking.uri=sqlite:///{path}"])
    finally:
        subprocess.run([fixed, "-i", path], check=True)


@pytest.mark.parametrize("place", ["{folder}/file", "/dev/full", "/proc/nothing"])
def test_a_folder_for_baselines_that_cannot_be_written(place, tmp_path, store):
    (tmp_path / "file").touch()
    place = place.format(folder=tmp_path)
    with pytest.raises(UserError, match=rf"baseline.folder={place} cannot be written: "):
        prepared(tmp_path, store, [f"baseline.folder={place}", *QUICK])


# -- the command that compares --------------------------------------------------------------------

COMPARE = {
    "no store": (["--uri", "sqlite:///{folder}/no.db"], "no.db is not there"),
    "an unknown kind of store": (["--uri", "foo://bar"], "tracking.uri=foo://bar cannot be"),
    "a folder": (["--uri", "sqlite:///{folder}"], "is not there: no runs were recorded"),
    "text": (["--uri", "sqlite:///{folder}/text"], "text cannot be reached: .*not a database"),
    "nothing recorded": ([], "no experiment 'pruning_lab' in this store; there are: .*Default"),
    "nothing finished": (["--experiment", "Default"], "No run of Default .* is finished"),
    "a tag without a value": (["--tag", "metric"], "--tag metric is not NAME=VALUE"),
    "a tag of no run": (
        ["--experiment", "Default", "--tag", "metric=x"], "No run has the tag metric=x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPARE)
def test_comparisons_that_cannot_be_made(case, tmp_path, store, monkeypatch):
    (tmp_path / "text").write_text("no database")
    arguments, message = COMPARE[case]
    arguments = [each.format(folder=tmp_path) for each in arguments]
    monkeypatch.setattr(sys, "argv", ["compare", "--uri", f"sqlite:///{store}", *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        compare()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "--since: yesterday is no day; write it as 2026-01-31"),
        (["--until", "2026-13-45"], "--until: 2026-13-45 is no day"),
        (["--experimnt", "x"], "unrecognized arguments: --experimnt x"),
        (["--uri"], "--uri: expected one argument"),
    ],
)
def test_arguments_that_cannot_be_read(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as stopped:
        compare()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# -- the process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("pruning_lab", ["threads=1000000"], "threads=1000000 is not possible"),
        ("pruning_lab.compare", [], "mlflow.db is not there: no runs were recorded"),
    ],
)
def test_a_process_ends_with_one_message_and_status_1(module, arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "baselines").exists()


def test_an_output_folder_that_cannot_be_made(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pruning_lab", "hydra.run.dir=/proc/nothing"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith(
        "'/proc/nothing'. Run the same command again when that is mended: what was finished is "
        "kept.\n"
    )
