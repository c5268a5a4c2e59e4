"""What a run cannot keep is refused before the work."""

import pytest
import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.rehearsal import check_storable


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
