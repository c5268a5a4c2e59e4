"""What a run cannot keep is refused before the work."""

import pytest
import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.experiment.rehearsal import check_storable, check_trained_state
from pruning_lab.pruner.saved_model import load_pruned, load_state, save_state
from pruning_lab.records.step import MAIN
from pruning_lab.runtime.model_state import all_tensors
from tests.running import TINY, TWO_STEPS, experiment


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def with_buffer(value):
    model = nn.Linear(2, 3)
    model.register_buffer("odd", value)
    return model


def test_ordinary_states_and_names_are_kept():
    tied = nn.ModuleDict({"conv(3,3)": nn.Linear(4, 4), "ünï/code |": nn.Linear(4, 4)})
    tied["ünï/code |"].weight = tied["conv(3,3)"].weight
    tied.register_buffer("none", torch.tensor([float("nan"), -0.0]), persistent=False)
    tied.register_buffer("turned", torch.rand(3, 4).T.to(torch.bfloat16))
    check_storable(tied, ["conv(3,3)", "ünï/code |"])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Extra(2, 3), "'_extra_state' is of type dict.*only tensors"),
        (with_buffer(torch.eye(3).to_sparse()), "cannot be kept"),
    ],
)
def test_what_cannot_be_kept_is_said(model, said):
    with pytest.raises(UserError, match=said):
        check_storable(model, [])


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_names_under_which_nothing_comes_back_are_said(name):
    with pytest.raises(UserError, match="does not come back from disk"):
        check_storable(nn.Linear(2, 3), ["fine", name])


class Peak(nn.Linear):
    """Makes, or lets grow, a buffer in training."""

    def __init__(self, peak):
        super().__init__(2, 3)
        self.register_buffer("peak", peak)

    def forward(self, x):
        if self.training:
            seen = x.new_zeros(0) if self.peak is None else self.peak
            self.peak = torch.cat([seen, x.max().view(1)])
        return super().forward(x)


@pytest.mark.parametrize(
    ("peak", "said"),
    [
        (None, r"'peak' is not there when it is new and of shape \(1,\) after a training step"),
        (torch.zeros(2), r"'peak' is of shape \(2,\) when it is new and of shape \(3,\) after"),
    ],
)
def test_states_that_change_their_shape_are_said(peak, said):
    with pytest.raises(UserError, match=said):
        check_trained_state(Peak(peak), (2,))


def test_a_models_own_training_state_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    before = model[1].running_mean.clone()
    check_trained_state(model, (2,))
    assert torch.equal(model[1].running_mean, before)
    assert not model.training


def test_a_state_that_is_not_the_parameters_own_is_said():
    model = nn.Linear(2, 3)
    model._register_state_dict_hook(lambda m, d, *_: {k: v.half() for k, v in d.items()})
    with pytest.raises(UserError, match="does not give its parameter 'weight' as it is"):
        check_storable(model, [])


class Small(nn.Module):
    """One hidden layer; subclasses keep something of their training."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.hidden, self.top = nn.Linear(64, 16), nn.Linear(16, num_classes)

    def forward(self, x):
        return self.learnt(self.top(self.hidden(x.flatten(1)).relu()))


class Averaged(Small):
    """Subtracts a running mean that its state dict leaves out."""

    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(num_classes), persistent=False)

    def learnt(self, y):
        if self.training:
            self.mean.lerp_(y.mean(0).detach(), 0.2)
        return y - self.mean


class Boxed(Small):
    """Adds what it has counted in a list."""

    step = 0.05

    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.box = [0.0]

    def learnt(self, y):
        if self.training:
            self.box[0] += self.step
        return y + self.box[0]


class Slow(Boxed):
    """The same, in such steps that a warm-up over 10 000 batches takes."""

    step = 1e-4


class Cached(Small):
    """Computes in eval mode with the weights of its last step of training."""

    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.last = self.top.weight.detach().clone()

    def forward(self, x):
        h = self.hidden(x.flatten(1)).relu()
        if self.training:
            self.last = self.top.weight.detach().clone()
            return self.top(h)
        return h @ self.last.T


class Counting(Small):
    """Counts its batches, for nothing that it computes."""

    calls = 0

    def learnt(self, y):
        self.calls += self.training
        return y


class NoisyInEval(Averaged):
    """Draws at random in eval mode, too: from torch's stream."""

    def learnt(self, y):
        return nn.functional.dropout(super().learnt(y), 0.5)


class OwnNoise(Boxed):
    """Draws in eval mode from a stream of its own: no two outputs are alike."""

    draws = torch.Generator().manual_seed(0)

    def learnt(self, y):
        return y + torch.randn(y.shape, generator=self.draws)


@pytest.mark.parametrize("kind", [Boxed, Slow, Cached])
def test_what_training_leaves_outside_of_tensors_is_said(kind):
    model = kind()
    with pytest.raises(UserError, match=r"keeps something of its training outside.*register_buf"):
        check_trained_state(model, (1, 8, 8))
    assert getattr(model, "box", [0.0]) == [0.0]


@pytest.mark.parametrize("kind", [Small, Averaged, Counting, NoisyInEval, OwnNoise])
def test_what_comes_back_is_not_refused(kind, monkeypatch):
    monkeypatch.setattr(Small, "learnt", lambda _, y: y, raising=False)
    torch.manual_seed(0)
    model = kind()
    before, stream = {k: v.clone() for k, v in all_tensors(model).items()}, torch.get_rng_state()
    check_trained_state(model, (1, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in all_tensors(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), stream)


def test_buffers_that_the_state_dict_leaves_out_are_kept(tmp_path):
    torch.manual_seed(0)
    model, other, x = Averaged(), Averaged(), torch.randn(8, 64)
    fresh = other.mean
    model(x)
    save_state(model, tmp_path / "kept.safetensors")
    load_state(other, tmp_path / "kept.safetensors")
    assert torch.equal(other.mean, model.mean)
    assert other.mean is fresh
    assert model.mean.abs().max() > 0.01
    assert torch.equal(other.eval()(x), model.eval()(x))
    torch.save(model.state_dict(), tmp_path / "given.pt")  # that of a user's own has none
    last = Averaged()
    load_state(last, tmp_path / "given.pt")
    assert torch.equal(last.hidden.weight, model.hidden.weight)
    assert last.mean.tolist() == [0] * 4


def test_expanded_buffers_that_stay_as_they_are_come_back(tmp_path):
    model = nn.Linear(2, 3)
    model.register_buffer("ones", torch.ones(1).expand(5), persistent=False)
    check_trained_state(model, (2,))
    save_state(model, tmp_path / "kept.safetensors")
    load_state(model, tmp_path / "kept.safetensors")
    assert model.ones.tolist() == [1] * 5


def of_ones_own(folder, kind, *overrides):
    base = [o for o in (*TINY, *TWO_STEPS) if not o.startswith("model")]
    target = f"model._target_={__name__}.{kind.__name__}"
    return experiment(
        folder, "model=custom", target, "attributions=none", "metric=weight_norm", "force=true",
        *overrides, base=base,
    )  # fmt: skip


def test_a_baseline_that_is_found_is_the_one_that_was_trained(tmp_path):
    rows = []
    for _ in range(2):
        done = of_ones_own(tmp_path, Averaged)
        done.run()
        rows.append([[row[f"test_{key}_after"] for key in ("accuracy", "loss")]
                     for row in done.record.of(MAIN)])  # fmt: skip
        assert done.model.mean.abs().max() > 0.01
        pruned = load_pruned(Averaged(), done.output / "pruned_model")
        assert torch.equal(pruned.mean, done.model.mean)
    assert rows[0] == rows[1]


def test_a_baseline_that_could_not_be_found_is_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match="The model keeps something of its training outside"):
        of_ones_own(tmp_path, Boxed)
    assert not (tmp_path / "baselines").exists()
