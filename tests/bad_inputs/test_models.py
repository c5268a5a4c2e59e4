"""Models that cannot be pruned, trained or scored."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab.errors import UserError
from pruning_lab.tasks import Classification
from pruning_lab.training.fit import fit
from pruning_lab.training.recipe import Training
from tests.bad_inputs.attempts import COUNT, prepared, statuses

TASK = Classification()


def own(name, *more):
    """The overrides that choose a model of this file."""
    return ["model=custom", f"model._target_={__name__}.{name}", *more]


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
        return self[3](x if x.abs().sum() >= 0 else -x)


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
    "an argument too many": (own("Net", "+model.width=3"), r"model.width is not a setting of Net,"),
    "forward": (own("FailsToRun"), r"cannot take the data set's images, \(2, 1, .*: 'features'"),
    "training": (own("FailsInTraining"), "FailsInTraining cannot be traced: no auxiliary head"),
    "a tuple": (own("GivesTwo"), f"For two images the model gives tuple; {SHAPE}"),
    "a mapping": (own("GivesNames"), f"For two images the model gives dict; {SHAPE}"),
    "a class too many": (own("Five"), rf"For two images the model gives \(2, 5\); {SHAPE}"),
    "NaN in weights": (own("Broken"), r"For black images the model gives \[nan, nan, nan, nan\]"),
    "infinite": (own("Endless"), r"For black images the model gives \[-?inf, .*weights finite"),
    "code on data": (own("Branches"), "Branches cannot be traced: the code branches on the data"),
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
        fit(model, optimizer, data, training, TASK, torch.Generator(), "Training it")
    assert all(map(torch.equal, before, model.parameters()))


class BatchStatistics(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(216, 4),
        )  # fmt: skip


BATCH = r"depends on the others in its batch, .* \(track_running_stats=False\)"
WIDE = ["model=mlp", "model.hidden=[30,12]"]
UNSCORED = {
    "coalitions without end": (
        [*WIDE, "metric=shapley_exact"],
        r"30 units has 2\^30 coalitions; .*up to 20 .*Use the sam",
    ),
    "a budget that does not do": (
        [*WIDE, "metric=shapley", "metric.evaluations=1000"],
        r"evaluations=1000 are too few: the first round, \d+ samples with \d+ permutations",
    ),
    "statistics of the batch": (own("BatchStatistics"), BATCH),
    "statistics of the batch, by masks": (own("BatchStatistics", "metric=shapley"), BATCH),
}


def checked(done):
    unit_groups = done.main.unit_groups(tuple(done.network.layers))
    done.main.metric.check(list(unit_groups.values()), True)


@pytest.mark.parametrize("case", UNSCORED)
def test_what_a_criterion_cannot_score_is_known_before_the_training(case, tmp_path, store):
    overrides, message = UNSCORED[case]
    with pytest.raises(UserError, match=message):  # from here or, once it asks, the constructor
        checked(prepared(tmp_path, store, overrides))
    assert not (tmp_path / "baselines").exists()
