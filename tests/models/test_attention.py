"""Attention with prunable heads: the same numbers as torch's, and whole heads go."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from pruning_lab.coupling.structure import find_structure
from pruning_lab.errors import UserError
from pruning_lab.models.attention import Attention, with_prunable_heads
from tests.coupling.checks import prune_and_compare
from tests.oracles.twin import randomise_all


def transformer():
    model = torchvision.models.VisionTransformer(16, 8, 2, 4, 16, 32, num_classes=5)
    return randomise_all(model.double()).eval()


def swin():
    model = torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2], [4, 4], [3, 3], stochastic_depth_prob=0, num_classes=5
    )
    return randomise_all(model.double()).eval()


@pytest.mark.parametrize("size", [12, 20, 24, 28, 48])
def test_windows_are_padded_shifted_and_masked_as_torchvisions(size):
    original = swin()
    x = torch.randn(2, 3, size, size + 4, dtype=torch.float64)
    outputs = [model(x) for model in (original, with_prunable_heads(copy.deepcopy(original)))]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_heads_and_stream_of_swin_are_cut_exactly():
    model = with_prunable_heads(swin())
    structure = find_structure(model, (3, 24, 24))
    assert list(structure.frozen) == ["head"]
    heads = structure.groups["features.1.0.attn.q"].unit_groups["features.1.0.attn.v"]
    assert heads.tolist() == [head for head in range(4) for _ in range(4)]
    stream = structure.groups["features.0.0"]
    assert len(stream) == 16
    assert "features.1.1.mlp.3" in stream.unit_groups
    outcome = prune_and_compare(model, (3, 24, 24))
    assert outcome.error < 1e-9
    assert outcome.step_error < 1e-9
    assert outcome.effect > 1e-2


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_those_of_multihead_attention(training):
    original = transformer().train(training)
    replaced = with_prunable_heads(copy.deepcopy(original))
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    outputs = [model(x) for model in (original, replaced)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    name = "encoder.layers.encoder_layer_0.self_attention"
    whole, parts = original.get_submodule(name), replaced.get_submodule(name)
    gradient = torch.cat([layer.weight.grad for layer in (parts.q, parts.k, parts.v)])
    torch.testing.assert_close(gradient, whole.in_proj_weight.grad, rtol=1e-9, atol=1e-9)


def test_a_player_is_a_head_with_its_queries_keys_and_values():
    model = with_prunable_heads(transformer())
    name = "encoder.layers.encoder_layer_0.self_attention"
    group = find_structure(model, (3, 16, 16)).groups[f"{name}.q"]
    heads = [head for head in range(4) for _ in range(4)]
    assert {layer: row.tolist() for layer, row in group.unit_groups.items()} == {
        f"{name}.{layer}": heads for layer in "qkv"
    }


def test_without_some_heads_it_is_the_masked_twin():
    outcome = prune_and_compare(with_prunable_heads(transformer()), (3, 16, 16), share=0.5)
    assert outcome.error < 1e-9
    assert outcome.step_error < 1e-9
    assert outcome.effect > 1e-2
    left = [module for module in outcome.pruner.model.modules() if isinstance(module, Attention)]
    assert [module.q.out_features for module in left] == [8, 8]


def test_what_attention_cannot_replace_is_refused():
    with pytest.raises(ValueError, match="'0' cannot have prunable heads"):
        with_prunable_heads(nn.Sequential(nn.MultiheadAttention(4, 2)))


MASKS = {
    "none": {},
    "causal": {"mask": nn.Transformer.generate_square_subsequent_mask(9), "is_causal": True},
    "between tokens": {"mask": torch.arange(9)[:, None] + 3 < torch.arange(9)},
    "padding": {"src_key_padding_mask": torch.arange(9) >= torch.tensor([[6], [9]])},
    "both": {
        "mask": torch.arange(9)[:, None] + 3 < torch.arange(9),
        "src_key_padding_mask": torch.arange(9) >= torch.tensor([[6], [9]]),
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masks", MASKS)
def test_encoders_of_torch_take_prunable_heads_and_masks(masks, training):
    layer = nn.TransformerEncoderLayer(16, 4, 12, 0.0, batch_first=True)
    original = randomise_all(nn.TransformerEncoder(layer, 2).double()).train(training)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    replaced = with_prunable_heads(copy.deepcopy(original))
    given = {
        name: each.double() if getattr(each, "dtype", None) == torch.float32 else each
        for name, each in MASKS[masks].items()
    }
    with torch.no_grad():
        expected, found = original(x, **given), replaced(x, **given)
        if masks == "padding" and not training:
            found = found * (expected != 0)  # torch's kernel puts what is padded to 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_mask_for_each_head_is_refused():
    attention, x = Attention(8, 2, 4), torch.randn(1, 3, 8)
    with pytest.raises(UserError, match=r"attn_mask has the shape \(2, 3, 3\)"):
        attention(x, x, x, attn_mask=torch.zeros(2, 3, 3))
