"""Self-attention whose heads can be pruned."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.errors import UserError


class Attention(nn.Module):
    """What nn.MultiheadAttention computes (batch first), with a layer each for q, k, v and output.

    softmax(q k' / sqrt(head_dim)) v for each head (Vaswani et al., arXiv 1706.03762).
    nn.MultiheadAttention takes the size of a head from the width of its input, so that no head can
    go; here it is a constant, and the number of heads follows the layers' widths.
    """

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_dim, self.dropout = head_dim, dropout
        self.q = nn.Linear(width, heads * head_dim)
        self.k = nn.Linear(width, heads * head_dim)
        self.v = nn.Linear(width, heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, None]:
        """(N, tokens, width) each -> (N, tokens, width); weights are never given."""
        q, k, v = (
            layer(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, scale=self.head_dim**-0.5)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


def with_prunable_heads(model: nn.Module) -> nn.Module:
    """``model`` with an Attention of the same weights for every nn.MultiheadAttention, in place.

    Outputs stay the same but for rounding. Raises UserError for one that Attention cannot replace.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            model.set_submodule(name, _of(name, module))
    return model


@torch.no_grad()
def _of(name: str, module: nn.MultiheadAttention) -> Attention:
    """An Attention with the weights of ``module``."""
    simple: list[Any] = [module.in_proj_weight, module.in_proj_bias, module.batch_first or None]
    if any(each is None for each in simple) or module.bias_k is not None or module.add_zero_attn:
        raise UserError(
            f"'{name}' cannot have prunable heads: only an nn.MultiheadAttention with "
            "batch_first=True, bias=True and nothing else beyond the defaults can be replaced."
        )
    head_dim = module.embed_dim // module.num_heads
    found = Attention(module.embed_dim, module.num_heads, head_dim, module.dropout)
    found.to(module.in_proj_weight.device, module.in_proj_weight.dtype).train(module.training)
    layers = (found.q, found.k, found.v)
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    found.out.load_state_dict(module.out_proj.state_dict())
    return found
