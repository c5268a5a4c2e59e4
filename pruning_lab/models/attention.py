"""Self-attention whose heads can be pruned."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from pruning_lab.errors import UserError


class Attention(nn.Module):
    """nn.MultiheadAttention (batch first) with a separate layer for each of q, k, v and output.

    softmax(q k' / sqrt(head_dim)) v for each head (Vaswani et al., arXiv 1706.03762).
    nn.MultiheadAttention derives the size of a head from the width of its input, so no head can be
    removed; here the size is constant, and the number of heads follows from the layers' widths.
    """

    batch_first = True
    in_proj_bias = None
    """Makes torch's encoder layers call the module instead of their own kernel."""

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
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, None]:
        """Map inputs (N, tokens, width) to (N, tokens, width); weights are never returned.

        ``attn_mask`` (tokens, keys) and ``key_padding_mask`` (N, keys) are added to the products;
        if they are booleans, True excludes a key. ``is_causal`` only describes ``attn_mask``.
        """
        layers = ((self.q, query), (self.k, key), (self.v, value))
        q, k, v = (_by_head(layer(x), self.head_dim) for layer, x in layers)
        mask, rate = _mask(attn_mask, key_padding_mask, query), self.dropout * self.training
        scale = self.head_dim**-0.5
        mixed = F.scaled_dot_product_attention(q, k, v, mask, rate, scale=scale)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


def _by_head(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(N, tokens, width) -> (N, heads, tokens, head_dim)."""
    return x.unflatten(2, (-1, head_dim)).transpose(1, 2)


def _mask(
    between: torch.Tensor | None, padding: torch.Tensor | None, query: torch.Tensor
) -> torch.Tensor | None:
    """Combine both masks to add: (tokens, keys) and (N, keys) -> (N or 1, 1, tokens, keys)."""
    if between is None and padding is None:
        return None
    if between is not None and between.ndim != 2:
        raise UserError(
            f"attn_mask has the shape {tuple(between.shape)}; with prunable heads it must be "
            "(tokens, keys), the same for every head."
        )
    mask = query.new_zeros(1)
    for given in (between, None if padding is None else padding[:, None, None]):
        if given is not None and given.dtype == torch.bool:
            given = query.new_zeros(1).masked_fill(given, float("-inf"))
        mask = mask if given is None else mask + given
    return mask if mask.ndim == 4 else mask[None, None]


class WindowAttention(nn.Module):
    """torchvision's ShiftedWindowAttention with a separate layer for each of q, k, v and output.

    Attention within windows of the image, each head with a bias for every relative position; the
    windows are shifted cyclically, and pairs of tokens that only the shift brings together are
    masked (Liu et al., arXiv 2103.14030). The size of a head is constant, as in Attention.
    """

    def __init__(self, original: ShiftedWindowAttention) -> None:
        super().__init__()
        width = original.qkv.in_features
        self.window, self.shift = tuple(original.window_size), tuple(original.shift_size)
        self.head_dim = width // original.num_heads
        self.attention_dropout, self.dropout = original.attention_dropout, original.dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.bias = nn.Parameter(original.relative_position_bias_table.detach().clone())
        self.position: torch.Tensor
        self.register_buffer("position", original.relative_position_index.clone())
        _copy(self, original.qkv.weight, original.qkv.bias, original.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, height, width, channels) to the same shape."""
        (tall, wide), height, width = self.window, x.shape[1], x.shape[2]
        x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
        rows, columns = x.shape[1] // tall, x.shape[2] // wide
        # windows as large as the image are not shifted
        down, right = self.shift[0] * (rows > 1), self.shift[1] * (columns > 1)
        x = torch.roll(x, (-down, -right), (1, 2))
        x = x.unflatten(2, (columns, wide)).unflatten(1, (rows, tall)).transpose(2, 3)
        x = self._attend(x.flatten(3, 4).flatten(0, 2), self._mask(x, down, right))
        x = x.unflatten(0, (-1, rows, columns)).unflatten(3, (tall, wide)).transpose(2, 3)
        x = torch.roll(x.flatten(3, 4).flatten(1, 2), (down, right), (1, 2))
        return x[:, :height, :width]

    def _attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend: (N windows, tokens, channels), mask (windows, tokens, tokens) -> like ``x``."""
        q, k, v = (_by_head(layer(x), self.head_dim) for layer in (self.q, self.k, self.v))
        tokens = self.window[0] * self.window[1]
        bias = F.embedding(self.position, self.bias).unflatten(0, (tokens, tokens))
        weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1) + bias.permute(2, 0, 1)
        weights = weights.unflatten(0, (-1, mask.shape[0])) + mask.unsqueeze(1)
        weights = F.dropout(
            weights.flatten(0, 1).softmax(-1), self.attention_dropout, self.training
        )
        mixed = self.out((weights @ v).transpose(1, 2).flatten(2))
        return F.dropout(mixed, self.dropout, self.training)

    def _mask(self, x: torch.Tensor, down: int, right: int) -> torch.Tensor:
        """Return -100 between tokens that only the shift brought into one window, else 0.

        ``x`` has the shape (N, rows, columns, height of a window, width of a window, channels).
        """
        (tall, wide), rows, columns = self.window, x.shape[1], x.shape[2]
        i = torch.arange(rows * tall, device=x.device)
        j = torch.arange(columns * wide, device=x.device)
        i = (i >= (rows - 1) * tall).int() + (i >= rows * tall - down).int()
        j = (j >= (columns - 1) * wide).int() + (j >= columns * wide - right).int()
        region = (3 * i.unsqueeze(1) + j).unflatten(1, (columns, wide)).unflatten(0, (rows, tall))
        region = region.transpose(1, 2).reshape(-1, tall * wide)
        return -100 * (region.unsqueeze(1) != region.unsqueeze(2)).to(x.dtype)


def with_prunable_heads(model: nn.Module) -> nn.Module:
    """Replace attention in ``model``, in place, by modules whose heads can be pruned; return it.

    Attention replaces every nn.MultiheadAttention, WindowAttention torchvision's
    ShiftedWindowAttention, with the same weights. Outputs stay the same up to rounding. Raises
    UserError for a module that cannot be replaced.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            model.set_submodule(name, _of(name, module).train(module.training))
        if type(module) is ShiftedWindowAttention:
            model.set_submodule(name, WindowAttention(module).train(module.training))
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # else it reads weights of torch's attention
    return model


def _of(name: str, module: nn.MultiheadAttention) -> Attention:
    """Return an Attention with the weights of ``module``."""
    stacked = module.in_proj_weight is not None and module.in_proj_bias is not None
    if not (stacked and module.batch_first) or module.bias_k is not None or module.add_zero_attn:
        raise UserError(
            f"'{name}' cannot have prunable heads: only an nn.MultiheadAttention with "
            "batch_first=True, bias=True and nothing else beyond the defaults can be replaced."
        )
    head_dim = module.embed_dim // module.num_heads
    attention = Attention(module.embed_dim, module.num_heads, head_dim, module.dropout)
    _copy(attention, module.in_proj_weight, module.in_proj_bias, module.out_proj)
    return attention


@torch.no_grad()
def _copy(
    module: Attention | WindowAttention, weight: torch.Tensor, bias: torch.Tensor, out: nn.Linear
) -> None:
    """Copy the weights of torch's attention, which stacks queries, keys and values in one layer."""
    module.to(weight.device, weight.dtype)
    layers = (module.q, module.k, module.v)
    for layer, rows, shifts in zip(layers, weight.chunk(3), bias.chunk(3), strict=True):
        layer.weight.copy_(rows)
        layer.bias.copy_(shifts)
    module.out.load_state_dict(out.state_dict())
