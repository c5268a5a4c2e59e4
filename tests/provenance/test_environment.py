"""Environment variables that the user's code reads are part of what a result is computed from."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning_lab.experiment import fingerprint
from pruning_lab.experiment.baseline import Baseline
from pruning_lab.experiment.fingerprint import digest_of_network
from pruning_lab.experiment.runner import finished
from pruning_lab.provenance import environment, inputs_read
from pruning_lab.provenance.environment import UNSET, VARIABLE, variables, working
from pruning_lab.provenance.inputs_read import Seen, watching
from tests.running import TINY, experiment


@pytest.fixture(autouse=True)
def _own_notes(monkeypatch):
    """Nothing is known of other tests' files, modules and variables."""
    monkeypatch.setattr(inputs_read, "_files", {})
    monkeypatch.setattr(inputs_read, "_modules", {})
    monkeypatch.setattr(environment, "_noted", {})
    for name in ("_set_by_driver", "_set_by_job", "_listings"):
        monkeypatch.setattr(environment, name, set())
    for name in ("FREEZE", "GRAD", "MOM"):
        monkeypatch.delenv(name, raising=False)


READS = {
    "[]": lambda: os.environ["GRAD"],
    "get": lambda: os.environ.get("GRAD"),
    "getenv": lambda: os.getenv("GRAD", "1"),
    "in": lambda: "GRAD" in os.environ,
    "bytes": lambda: os.environb.get(b"GRAD"),
    "copy": lambda: {key: os.environ[key] for key in os.environ if key.startswith("GRA")},
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("context", [watching, working])
def test_a_variable_that_is_read_is_kept_as_a_hash(how, context, monkeypatch):
    monkeypatch.setenv("GRAD", "secret")
    with context():
        READS[how]()
    kept = Seen([]).by_now()
    assert "environment GRAD" in kept["inputs"]
    assert "secret" not in str(kept)
    assert Seen([]).changed_since(kept) is None
    monkeypatch.setenv("GRAD", "other")
    assert Seen([]).changed_since(kept) == "environment GRAD has changed since"
    monkeypatch.setenv("GRAD", "secret")
    assert Seen([]).changed_since(kept) is None


def test_unset_and_empty_are_told_apart(monkeypatch):
    with working() as read:
        os.environ.get("GRAD")
    kept = Seen([]).by_now()
    assert read == {"environment GRAD": UNSET}
    assert kept["inputs"]["environment GRAD"] == UNSET
    monkeypatch.setenv("GRAD", "")
    assert Seen([]).changed_since(kept) == "environment GRAD has changed since"
    monkeypatch.delenv("GRAD")
    assert Seen([]).changed_since(kept) is None


def test_equal_values_of_two_variables_are_kept_differently(monkeypatch):
    monkeypatch.setenv("GRAD", "1"), monkeypatch.setenv("MOM", "1")
    with working() as read:
        assert os.environ["GRAD"] == os.environ["MOM"]
    assert len(set(read.values())) == 2


def module_in(folder, monkeypatch, text, name="reads_a_variable"):
    """A module of this text that is imported from ``folder``."""
    monkeypatch.syspath_prepend(folder)
    (folder / f"{name}.py").write_text(text)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    environment._is_of_user.cache_clear()
    return importlib.import_module(name)


READER = "import os\ndef read():\n    return os.environ.get('GRAD')\n"


@pytest.mark.parametrize("whose", ["users", "installed"])
def test_only_what_the_users_own_code_reads_counts(whose, tmp_path, monkeypatch):
    module = module_in(tmp_path, monkeypatch, READER)
    if whose == "installed":
        monkeypatch.setattr(environment, "INSTALLED", {str(tmp_path)})
    with working() as read:
        module.read()
        torch.hub.get_dir()  # reads TORCH_HOME
        Path.home()
    assert list(read) == ([f"{VARIABLE}GRAD"] if whose == "users" else [])


def test_what_is_read_outside_of_a_job_does_not_count():
    READS["get"]()
    assert not variables()


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "HOME"])
def test_variables_of_launchers_and_machines_do_not_count(name, monkeypatch):
    monkeypatch.setenv(name, "3")
    with working() as read:
        assert os.environ[name] == "3"
    assert not read


def test_all_variables_at_once_are_passed_on_and_do_not_count(monkeypatch):
    monkeypatch.setenv("GRAD", "1")
    with working() as read:
        assert {**os.environ}["GRAD"] == "1"
        assert dict(os.environ) == os.environ.copy()
        assert [value for key, value in os.environ.items() if key == "GRAD"] == ["1"]
    assert not read


def test_what_the_job_sets_itself_is_no_input(monkeypatch):
    with working() as read:
        monkeypatch.setenv("GRAD", "1")  # as installed code does: not noted as the job's own
        os.environ["MOM"] = "2"
        assert os.environ["MOM"] == "2"
        os.environ.setdefault("FREEZE", "3")
        assert os.environ["FREEZE"] == "3"
    assert read == {"environment FREEZE": UNSET}  # setdefault reads it first
    kept = Seen([]).by_now()
    assert Seen([]).changed_since(kept) is None
    monkeypatch.delenv("MOM"), monkeypatch.delenv("FREEZE")


def test_which_parameters_are_trained_and_the_modes_name_a_network():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))

    frozen, evaluated = net(), net()
    frozen[0].weight.requires_grad_(False)
    evaluated[1].eval()
    assert digest_of_network(net()) == digest_of_network(net())
    assert len(set(map(digest_of_network, (net(), frozen, evaluated)))) == 3


class Scaled(torch.autograd.Function):
    """Passes its input on; its gradient goes as a variable says."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float(os.environ.get("GRAD", "1"))


class Small(nn.Module):
    """One hidden layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.hidden, self.top = nn.Linear(64, 16), nn.Linear(16, num_classes)

    def forward(self, x):
        return self.top(self.hidden(x.flatten(1)).relu())


class Frozen(Small):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        if os.environ.get("FREEZE"):
            self.hidden.requires_grad_(False)


class Graded(Small):
    def forward(self, x):
        return Scaled.apply(super().forward(x))


class Rated(Small):
    """Has a rate that nothing of the fresh network's outputs tells."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.rate = float(os.environ.get("MOM", "0.1"))


@pytest.mark.parametrize(
    ("kind", "variable", "value"),
    [(Frozen, "FREEZE", "1"), (Graded, "GRAD", "0.01"), (Rated, "MOM", "0.5")],
)
def test_a_run_under_another_value_is_another_run(kind, variable, value, tmp_path, monkeypatch):
    base = [o for o in TINY if not o.startswith("model")]
    base += [
        "schedule.steps=1",
        "schedule.target=0.3",
        "finetune.epochs=1",
        "finetune.steps=null",
        "attributions=none",
    ]

    def made():
        target = f"model._target_={__name__}.{kind.__name__}"
        done = experiment(tmp_path, "model=custom", target, "metric=weight_norm", base=base)
        is_new = finished(done.setup) is None
        done.run()
        return is_new, done.baseline.name

    def forget():  # as a new process has read nothing
        fingerprint._network.cache_clear()
        environment._noted.clear()

    plain = made()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert made() == (False, plain[1])
    monkeypatch.setenv(variable, value)
    other = made()
    assert other[0]
    assert other[1] != plain[1]
    for new_process in (True, False):
        if new_process:
            forget()
        assert made() == (False, other[1])
    monkeypatch.delenv(variable)
    assert made() == (False, plain[1])
    forget()
    assert made() == (False, plain[1])


def test_a_baseline_lists_what_its_training_reads(tmp_path, monkeypatch):
    """Not what other parts of the job have read."""
    model = nn.Linear(2, 2)
    with working():
        os.environ.get("MOM")
    begun = Seen([], {})

    def train(*_):
        os.environ.get("GRAD")

    first = Baseline(tmp_path, {}, begun, begun)
    assert first.obtain(model, train)
    monkeypatch.setenv("MOM", "1")
    assert not Baseline(tmp_path, {}, begun, begun).obtain(model, train)
    monkeypatch.setenv("GRAD", "2")
    assert Baseline(tmp_path, {}, begun, begun).name == f"{first.name}-1"
