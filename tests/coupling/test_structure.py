"""Which units go together, which stay, and why: small networks by hand."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.coupling.structure import find_structure
from pruning_lab.graph.refusals import UntraceableError
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.saved_model import load_pruned, save_pruned
from tests.coupling.checks import prune_and_compare
from tests.oracles.twin import randomise_all


class Code(nn.Module):
    """A forward as a function of the module, with named parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.code = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.code(self, x)


def groups(model, size):
    """group -> layer -> the player of each unit."""
    found = find_structure(model, size).groups
    return {
        name: {layer: row.tolist() for layer, row in group.unit_groups.items()}
        for name, group in found.items()
    }


def conv(inputs, outputs, **settings):
    return nn.Conv2d(inputs, outputs, 1, **settings)


IMAGE = (2, 4, 4)


def test_units_that_are_added_go_together():
    model = Code(
        lambda m, x: m.head(m.stem(x) + m.outer(F.relu(m.inner(m.stem(x))))),
        stem=conv(2, 3), inner=conv(3, 5), outer=conv(5, 3), head=conv(3, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {
        "stem": {"stem": [0, 1, 2], "outer": [0, 1, 2]},
        "inner": {"inner": [0, 1, 2, 3, 4]},
    }
    assert find_structure(model, IMAGE).frozen == {
        "head": "the caller of the model sees its output"
    }


def test_equal_rows_are_one_tensor_also_after_a_cut():
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), conv(3, 1))
    pruner = Pruner(model, IMAGE, "cpu")
    for _ in range(2):
        rows = pruner.structure.tensors
        assert rows["0.weight", 0] is rows["1.running_mean", 0] is rows["2.weight", 1]
        assert rows["0.weight", 0] is pruner.structure.units["0"]
        pruner.prune_model(model[0], [1])


def test_a_squeeze_excite_gate_goes_with_what_it_gates():
    model = Code(
        lambda m, x: m.head((y := m.stem(x)) * torch.sigmoid(m.up(m.down(y.mean((2, 3), True))))),
        stem=conv(2, 3), down=conv(3, 2), up=conv(2, 3), head=conv(3, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {
        "stem": {"stem": [0, 1, 2], "up": [0, 1, 2]},
        "down": {"down": [0, 1]},
    }


def test_concatenated_units_stay_groups_of_their_own():
    model = Code(
        lambda m, x: m.head(torch.cat([m.one(x), m.other(x)], 1)),
        one=conv(2, 2), other=conv(2, 3), head=conv(5, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {"one": {"one": [0, 1]}, "other": {"other": [0, 1, 2]}}
    Pruner(model, IMAGE, "cpu").prune_model(model.other, [1])
    assert model.head.weight.shape[1] == 4


def test_behind_a_flatten_a_unit_owns_its_positions():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    structure = find_structure(model, IMAGE)
    classes = structure.units["0"].repeat_interleave(4)
    assert torch.equal(structure.tensors["3.weight", 1], classes)
    assert torch.equal(structure.tensors["2.running_var", 0], classes)


def test_the_halves_of_a_chunk_go_together():
    model = Code(
        lambda m, x: m.head(torch.cat([(p := m.stem(x).chunk(2, 1))[0], F.relu(p[1])], 1)),
        stem=conv(2, 6), head=conv(6, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {"stem": {"stem": [0, 1, 2, 0, 1, 2]}}


def test_a_channel_shuffle_ties_what_its_groups_interleave():
    def shuffled(m, x):
        x = m.stem(x)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return m.head(x.view(batch, channels, height, width))

    model = Code(shuffled, stem=conv(2, 6), head=conv(6, 1))
    assert groups(model, IMAGE) == {"stem": {"stem": [0, 1, 2, 0, 1, 2]}}
    classes = find_structure(model, IMAGE).units["stem"]
    behind = find_structure(model, IMAGE).tensors["head.weight", 1]
    assert torch.equal(behind, classes[[0, 3, 1, 4, 2, 5]])


def test_a_depthwise_convolution_goes_with_what_it_reads():
    model = nn.Sequential(conv(2, 3), conv(3, 6, groups=3), conv(6, 1))
    assert groups(model, IMAGE) == {"0": {"0": [0, 1, 2], "1": [0, 0, 1, 1, 2, 2]}}
    Pruner(model, IMAGE, "cpu").prune_model(model[0], [1])
    assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (2, 2, 4)
    assert model[1].weight.shape == (4, 1, 1, 1)


@pytest.mark.parametrize(
    ("between", "unit_groups"),
    [
        (conv(4, 6, groups=2), [0, 0, 1, 1]),
        (nn.ConvTranspose2d(4, 6, 1, groups=2), [0, 0, 1, 1]),
        (nn.GroupNorm(2, 4), [0, 0, 1, 1]),
        (nn.GroupNorm(1, 4), [0, 1, 2, 3]),
        (nn.InstanceNorm2d(4, affine=True), [0, 1, 2, 3]),
        (nn.PReLU(4), [0, 1, 2, 3]),
        (nn.PixelShuffle(2), None),
    ],
)
def test_what_stands_behind_decides_which_units_go_together(between, unit_groups):
    width = between(torch.randn(2, 4, 4, 4)).shape[1]
    model = nn.Sequential(conv(2, 4), between, conv(width, 1))
    found = groups(model, IMAGE)
    assert found.get("0", {}).get("0") == unit_groups


def test_tied_weights_and_a_module_that_runs_twice():
    twice = conv(3, 3)
    model = nn.Sequential(conv(2, 3), twice, nn.ReLU(), twice, conv(3, 1))
    assert groups(model, IMAGE) == {"0": {"0": [0, 1, 2], "1": [0, 1, 2]}}
    model = Code(
        lambda m, x: m.head(F.linear(m.code_of(x), m.code_of.weight.t())),
        code_of=nn.Linear(4, 3), head=nn.Linear(4, 1),
    )  # fmt: skip
    assert groups(model, (4,)) == {"code_of": {"code_of": [0, 1, 2]}}


def test_a_head_that_exists_only_in_training_counts():
    model = Code(
        lambda m, x: (m.head(y := m.stem(x)), m.aside(y)) if m.training else m.head(m.stem(x)),
        stem=nn.Linear(2, 3), head=nn.Linear(3, 1), aside=nn.Linear(3, 1),
    )  # fmt: skip
    Pruner(model.eval(), (2,), "cpu").prune_model(model.stem, [0])
    assert model.aside.in_features == 2
    assert not model.training


def literal(m, x):
    return m.head(m.stem(x).view(2, 3, -1).mean(2))


FROZEN = {
    "a literal size": (literal, "their number is fixed in the code, at `view`"),
    "softmax": (lambda m, x: m.head(m.stem(x).mean((2, 3)).softmax(1)), "`softmax`, which mixes"),
    "a mean over units": (
        lambda m, x: m.head(m.stem(x).mean((2, 3)) - m.stem(x).mean((1, 2, 3))[:, None]),
        "`mean`, which mixes them",
    ),
    "a slice": (lambda m, x: m.head(F.pad(m.stem(x)[:, :2].mean((2, 3)), (0, 1))), "`getitem`"),
    "split by numbers": (
        lambda m, x: m.head(torch.cat(m.stem(x).mean((2, 3)).split([1, 2], 1), 1)), "`split`",
    ),
    "all of std": (lambda m, x: m.head(m.stem(x).mean((2, 3))) / m.stem(x).std(False), "`std`"),
    "a roll over all units": (
        lambda m, x: m.head(m.stem(x).roll(3, 1).mean((2, 3))), "number is fixed in the code",
    ),
    "a list of all units": (
        lambda m, x: m.head(m.stem(x)[:, [0, 1, 2]].mean((2, 3))), "number is fixed in the code",
    ),
    "narrow": (lambda m, x: m.head(m.stem(x).narrow(1, 0, 3).mean((2, 3))), "`narrow`"),
    "a shape changed in place": (
        lambda m, x: m.head(m.stem(x).mean((2, 3)).t_().t_()), "`t_`, which cannot",
    ),
    "a layer's width in the formula": (
        lambda m, x: m.head(m.stem(x).mean((2, 3)) * m.stem.out_channels),
        "the code calculates with stem.out_channels",
    ),
    "a layer's width under a root": (
        lambda m, x: m.head(m.stem(x).mean((2, 3)) / m.stem.out_channels**0.5),
        "the code calculates with stem.out_channels",
    ),
    **{
        f"a layer's width, {name}": (
            lambda m, x, of=of: m.head(m.stem(x).mean((2, 3)) / of(m.stem.out_channels)),
            "the code calculates with stem.out_channels",
        )
        for name, of in {
            "int": int, "abs": abs, "divmod": lambda width: divmod(width, 2)[0],
            "math.sqrt": math.sqrt, "np.sqrt": lambda width: float(np.sqrt(width)),
            "range": lambda width: max(range(width)), "torch.tensor": torch.tensor,
            "as text": lambda width: float(str(width)), "in binary": int.bit_length,
            "a shift": lambda width: (width >> 3) + 1, "math.gcd": lambda w: math.gcd(w, 3),
            "a long tensor": lambda width: torch.full((1, 1), 1 + 1e-6 * len(range(width))),
        }.items()
    },
    "an unknown operation": (
        lambda m, x: m.head(torch.einsum("ncij->nc", m.stem(x))), "`einsum`, which cannot",
    ),
    "a width in the formula": (
        lambda m, x: m.head((y := m.stem(x)).mean((2, 3)) / y.shape[1] ** 0.5),
        "their number is used in the code, at `pow`",
    ),
    "a size as an argument": (
        lambda m, x: m.head(F.conv2d((y := m.stem(x)), m.each, groups=y.shape[1]).mean((2, 3))),
        "their number is used in the code, at `conv2d`",
    ),
    "a shape that an unknown operation changes": (
        lambda m, x: m.head(((y := m.stem(x).mean((2, 3))).unsqueeze_(0), y)[1][0]),
        "`unsqueeze_`, which cannot be followed",
    ),
    "rows that are looked up": (
        lambda m, x: m.head(m.stem(x).mean((2, 3)))
        + F.embedding((x[:, 0, 0, 0] > 0).long(), m.stem.weight.flatten(1)).sum(1, True),
        "which looks them up by number",
    ),
    "the raw input": (lambda m, x: m.head((m.stem(x) + x[:, :1]).mean((2, 3)) + x.sum()), None),
    "values of another width": (
        lambda m, x: m.head(m.stem(x).mean((2, 3)) + x.new_ones(1, 3)),
        "belong to no unit, in `add`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FROZEN)
def test_what_cannot_go_stays_and_says_why(case):
    code, reason = FROZEN[case]
    each = nn.Parameter(torch.randn(3, 1, 1, 1), False)
    model = Code(code, stem=conv(2, 3), head=nn.Linear(3, 1), each=each)
    structure = find_structure(model, IMAGE)
    if reason is None:  # one number that is broadcast over all units is in nobody's way
        assert groups(model, IMAGE) == {"stem": {"stem": [0, 1, 2]}}
        return
    assert structure.groups == {}
    assert reason in structure.frozen["stem"]
    with pytest.raises(ValueError, match="layer 'stem' cannot be removed"):
        Pruner(model, IMAGE, "cpu").prune_model(model.stem, [0])


FOLLOWED = {
    "expand_as": lambda m, x: m.head((y := m.stem(x)) * m.gate(y).sigmoid().expand_as(y)),
    "masked_fill": lambda m, x: m.head((y := m.stem(x)).masked_fill(m.gate(y) > 0, 0.5)),
    "where": lambda m, x: m.head(torch.where((y := m.stem(x)) >= 0, y, 0.1 * torch.ones_like(y))),
    "zeros_like": lambda m, x: m.head((y := m.stem(x)) + torch.zeros_like(y)),
    "comparisons": lambda m, x: m.head(
        (y := m.stem(x)) * (y > 0.1) + (y < -0.1) + (y <= 0) * (y == y) * (y != 0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_is_followed_is_exact(case):
    model = Code(FOLLOWED[case], stem=conv(2, 3), gate=conv(3, 1), head=conv(3, 2)).double()
    outcome = prune_and_compare(randomise_all(model), IMAGE)
    assert outcome.structure.groups.keys() == {"stem"}
    assert outcome.effect > 1e-3
    assert outcome.error < 1e-12
    assert outcome.step_error < 1e-12


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True), nn.GroupNorm(3, 3)]
)
def test_a_norm_over_tokens_takes_statistics_over_the_units_which_stay(norm):
    model = nn.Sequential(nn.Linear(4, 3), norm, nn.ReLU(), nn.Linear(3, 2))
    structure = find_structure(model, (3, 4))
    assert structure.groups == {}
    assert "whose statistics mix them" in structure.frozen["0"]


def test_only_some_units_of_a_layer_may_go():
    """Behind the padding only the first three channels of the shortcut have a partner."""
    model = Code(
        lambda m, x: m.head(m.wide(x) + F.pad(m.narrow(x), (0, 0, 0, 0, 1, 1))),
        narrow=conv(2, 3), wide=conv(2, 5), head=conv(5, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {"wide": {"wide": [-1, 0, 1, 2, -1], "narrow": [0, 1, 2]}}
    pruner = Pruner(model, IMAGE, "cpu")
    with pytest.raises(ValueError, match="unit 4 must stay: its units meet values that belong to"):
        pruner.prune_model(model.wide, [3, 4])
    pruner.prune_model(model.wide, [3])
    assert pruner.kept == {"wide": [0, 1, 2, 4], "narrow": [0, 1]}


def test_a_width_that_the_code_reads_off_the_tensor_follows():
    model = Code(
        lambda m, x: m.head((y := m.stem(x)).permute(0, 2, 3, 1).reshape(-1, y.shape[1])),
        stem=conv(2, 3), head=nn.Linear(3, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {"stem": {"stem": [0, 1, 2]}}


def test_squeeze_leaves_two_units():
    model = Code(
        lambda m, x: m.head(m.stem(x).mean((2, 3), True).squeeze()),
        stem=conv(2, 3), head=nn.Linear(3, 1),
    )  # fmt: skip
    assert groups(model, IMAGE) == {"stem": {"stem": [-1, -1, 0]}}


def test_units_in_the_batch_dimension_pass_through_a_convolution():
    model = Code(
        lambda m, x: m.head(
            m.each(m.stem(x).reshape(-1, 1, 4, 4)).reshape(x.shape[0], -1, 4, 4).mean((2, 3))
        ),
        stem=conv(2, 3), each=conv(1, 2), head=nn.Linear(6, 1),
    )  # fmt: skip
    Pruner(model, IMAGE, "cpu").prune_model(model.stem, [1])
    assert model(torch.randn(5, *IMAGE)).shape == (5, 1)


def test_weights_that_share_memory_stay():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 1))
    model[2].weight.data = model[0].weight.data.t()
    structure = find_structure(model, (4,))
    assert structure.groups == {}
    assert structure.frozen["0"] == "0.weight and 2.weight share their memory"


def test_what_cannot_be_traced_or_run_says_so():
    def branch(m, x):
        return m.head(m.stem(x) if x.sum() > 0 else x)

    model = Code(branch, stem=nn.Linear(3, 3), head=nn.Linear(3, 1))
    with pytest.raises(UntraceableError, match=r"Code cannot be traced.*cascading_modules"):
        find_structure(model, (3,))
    with pytest.raises(UntraceableError, match="with inputs of 5, "):
        find_structure(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), (5,))


def test_finding_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 2)
    )
    model[1].eval()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model[0].register_full_backward_hook(lambda *_: None)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_structure(model, IMAGE)
    assert not seen
    assert [module.training for module in model] == [True, False, True, True, True]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_pruned_model_is_exported_copied_and_pruned_again():
    model = nn.Sequential(
        conv(2, 4), nn.GroupNorm(2, 4), nn.ReLU(), conv(4, 4, groups=4), nn.Flatten(),
        nn.LayerNorm(64), nn.Linear(64, 2),
    ).eval()  # fmt: skip
    pruner = Pruner(model, IMAGE, "cpu")
    pruner.prune_groups({"0": [1]})
    assert (model[1].num_groups, model[1].num_channels) == (1, 2)
    assert model[5].normalized_shape == (32,)
    x = torch.randn(3, *IMAGE)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_buffer_that_is_not_in_the_state_dict_is_saved_with_the_pruned_model(tmp_path):
    def build():
        model = Code(
            lambda m, x: m.head((m.stem(x) * m.mask).mean((2, 3))),
            stem=conv(2, 3), head=nn.Linear(3, 1),
        ).eval()  # fmt: skip
        model.register_buffer("mask", torch.ones(3, 1, 1), persistent=False)
        return model

    model = build()
    model.mask[2] = 7
    pruner = Pruner(model, IMAGE, "cpu")
    pruner.prune_model(model.stem, [0])
    save_pruned(model, tmp_path, pruner.kept)
    loaded = load_pruned(build(), tmp_path)
    x = torch.randn(3, *IMAGE)
    assert loaded.mask.flatten().tolist() == [1, 7]
    assert torch.equal(loaded(x), model(x))
