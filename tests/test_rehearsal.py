"""What a run cannot keep is refused before the work."""

import pytest
import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.rehearsal import check_storable, check_trained_state


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
