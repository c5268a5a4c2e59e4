"""Random networks for Hypothesis: a catalogue of the pieces that networks are written with.

``graphs()`` draws a stem and pieces for an image (N, C, H, W), perhaps pieces for tokens (N, T, C),
then pieces for a vector (N, C), and a head. What is simpler stands further up in the catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

IMAGE, TOKENS, VECTOR = STAGES = 4, 3, 2
"""A stage is known by the number of dimensions of its tensors."""

SIDES = 4, 8
WIDTHS = 4, 2, 3, 5, 6, 8, 12
WIDEST = max(WIDTHS)


class RandomGraph(nn.Module):
    """The drawn steps one after the other; an auxiliary head, if any, speaks only in training."""

    def __init__(self, steps, features, auxiliary=None, auxiliary_after=0):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.auxiliary, self.auxiliary_after = auxiliary, auxiliary_after
        self.head = nn.Linear(features, 3)

    def forward(self, image):
        x, aside = image, None
        for number, step in enumerate(self.steps):
            x = applied(step, x, image)
            if self.training and self.auxiliary is not None and number == self.auxiliary_after:
                aside = self.auxiliary(x.mean((2, 3)))
        return self.head(x) if aside is None else (self.head(x), aside)


class Step(nn.Module):
    """``run(self, x)``, or an expression of both, with modules, Parameters and numbers of its own.

    Being called goes past the tracer: it would keep a module without children whole.
    """

    piece = "Step"
    arguments = "self, x"

    def __init__(self, run: str | Callable[..., torch.Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = eval(f"lambda {self.arguments}: {run}") if isinstance(run, str) else run
        self.code = run if isinstance(run, str) else run.__name__
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, *inputs):
        return self.run(self, *inputs)

    def _get_name(self):
        return self.piece

    def extra_repr(self):
        return self.code


class InputReader(Step):
    """A step that reads the network's input once more."""

    arguments = "self, x, image"


def applied(step, x, image):
    return step(x, image) if isinstance(step, InputReader) else step(x)


@dataclass(frozen=True)
class Place:
    """Where a piece is put, known by an example of what arrives there; and what it draws from."""

    draw: Callable[..., Any]
    image: torch.Tensor
    example: torch.Tensor

    @property
    def stage(self):
        return self.example.ndim

    @property
    def dim(self):
        """The dimension of the channels."""
        return 2 if self.stage == TOKENS else 1

    @property
    def c(self):
        return self.example.shape[self.dim]

    @property
    def space(self):
        """Height and width, or the number of tokens, or nothing."""
        return tuple(self.example.shape[1:-1] if self.stage == TOKENS else self.example.shape[2:])

    @property
    def sizes(self):
        """The literal sizes behind the batch."""
        return ", ".join(map(str, self.example.shape[1:]))

    @torch.no_grad()
    def behind(self, step):
        return replace(self, example=applied(step.double(), self.example, self.image))

    def choose(self, *options):
        return self.draw(st.sampled_from(options))

    def maybe(self):
        return self.draw(st.booleans())

    def width(self, most=WIDEST):
        return self.choose(*(width for width in WIDTHS if width <= most))

    def groups(self, *numbers):
        return self.choose(*(number for number in numbers if self.c % number == 0))

    def spelled(self, *codes):
        """One of several spellings: a module of torch.nn, or an expression of x."""
        code = self.choose(*codes)
        return eval(code) if code.startswith("nn.") else Step(code)

    def piece(self, catalogue):
        """A piece that can be put here."""
        name, build, _ = self.draw(st.sampled_from(catalogue).filter(lambda entry: entry[2](self)))
        step = build(self)
        step.piece = name
        return step

    def layer(self, outputs=None):
        """A convolution that keeps the space, or behind the image a Linear."""
        outputs, bias = outputs or self.c, self.maybe()
        if self.stage != IMAGE:
            return nn.Linear(self.c, outputs, bias=bias)
        kernel = self.choose(1, 3)
        return nn.Conv2d(self.c, outputs, kernel, padding=kernel // 2, bias=bias)

    def branch(self, outputs=None):
        """Up to two pieces that keep the space, and a layer."""
        at, steps = self, []
        for _ in range(self.draw(st.integers(0, 2))):
            steps.append(at.piece(INSIDE[at.stage]))
            at = at.behind(steps[-1])
        return nn.Sequential(*steps, at.layer(outputs or self.c))

    def per_channel(self):
        """A Parameter with one entry for each channel, or a Buffer, that broadcasts."""
        return nn.Parameter(torch.ones(self.c, 1, 1) if self.stage == IMAGE else torch.ones(self.c))


PIECES: dict[int, list[tuple]] = {stage: [] for stage in STAGES}
INSIDE: dict[int, list[tuple]] = {stage: [] for stage in STAGES}
"""The pieces that also occur inside branches: they leave height, width and tokens as they are."""


class Shelf:
    """``shelf[name] = build`` enters a piece into the catalogue, with where it can be put."""

    def __init__(self, *stages, inside=False, when=lambda at: True):
        self.stages, self.when = stages, when
        self.catalogues = [PIECES, INSIDE] if inside else [PIECES]

    def __setitem__(self, name, build):
        for catalogue in self.catalogues:
            for stage in self.stages:
                catalogue[stage].append((name, build, self.when))


# Steps and pieces of several statements


def grouped_conv(at):
    groups = at.groups(2, 3, 4)
    outputs = groups * at.choose(1, 2, 3)
    return nn.Conv2d(at.c, outputs, 3, padding=1, groups=groups, bias=at.maybe())


def transposed_conv(at):
    groups, outputs = at.groups(1, 2), at.choose(4, 2, 6)
    return nn.ConvTranspose2d(at.c, outputs, 3, padding=1, groups=groups, bias=at.maybe())


def weight_and_bias(outputs, *inputs):
    weight, bias = torch.ones(outputs, *inputs), torch.ones(outputs)
    return {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)}


def batch_norm(at):
    kind = nn.BatchNorm2d if at.stage == IMAGE else nn.BatchNorm1d
    norm = kind(at.c, affine=at.maybe(), track_running_stats=at.maybe())
    if at.stage != TOKENS:
        return norm
    return Step("self.norm(x.transpose(1, 2)).transpose(1, 2)", norm=norm)


def layer_norm(at):
    norm = nn.LayerNorm(at.c, elementwise_affine=at.maybe())
    if at.stage != IMAGE:
        return norm
    return Step("self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", norm=norm)


def sum_in_place(self, x):
    y = self.f(x)
    y += x
    return y


def bottleneck(kind, at):
    width = at.width()
    return nn.Sequential(kind(at.c, width), nn.ReLU(), kind(width, at.c))


def pointwise_conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


def layers_with_one_weight(at):
    kind = pointwise_conv if at.stage == IMAGE else nn.Linear
    first, second = kind(at.c, at.c), kind(at.c, at.c)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def concat_with_input(at):
    if at.space == at.image.shape[2:]:
        return InputReader("torch.cat([x, image], 1)")
    return InputReader(f"torch.cat([F.adaptive_avg_pool2d(image, {at.space}), x], 1)")


def second_half_transformed(self, x):
    one, other = x.chunk(2, self.dim)
    return torch.cat([one, self.f(other)], self.dim)


def chunk_and_transform_one_half(at):
    half = at.behind(Step(f"x.chunk(2, {at.dim})[1]"))
    return Step(second_half_transformed, dim=at.dim, f=half.branch(at.width(WIDEST // 2)))


def one_half_gates_the_other(self, x):
    one, other = x.chunk(2, self.dim)
    return one * other.sigmoid()


def parts_exchanged(self, x):
    one, other = torch.split(x, self.sizes, self.dim)
    return torch.cat([other, one.tanh()], self.dim)


def split_with_literal_sizes(at):
    first = at.draw(st.integers(1, at.c - 1))
    return Step(parts_exchanged, sizes=[first, at.c - first], dim=at.dim)


def slice_of_channels(at):
    before = "..." if at.stage == TOKENS else ":"
    return at.spelled(*(f"x[{before}, {part}]" for part in (":2", f":{at.c - 1}", "1:", "::2")))


def shuffle_as_in_shufflenet(self, x):
    batch, channels, height, width = x.size()
    x = x.view(batch, self.groups, channels // self.groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


def channel_shuffle(at):
    return Step(shuffle_as_in_shufflenet, groups=at.groups(2, 3, 4))


def channel_shuffle_with_literal_sizes(at):
    groups, (c, h, w) = at.groups(2, 3, 4), at.example.shape[1:]
    apart = f"x.view(-1, {groups}, {c // groups}, {h}, {w})"
    return Step(f"{apart}.transpose(1, 2).reshape(-1, {c}, {h}, {w})")


def attend(self, x):
    scores = torch.matmul(self.q(x), self.k(x).transpose(-2, -1)) / self.temperature
    return torch.matmul(torch.softmax(scores, dim=-1), self.v(x))


def attention_by_hand(at):
    width = at.width()
    q, k, v = nn.Linear(at.c, width), nn.Linear(at.c, width), nn.Linear(at.c, at.width())
    return Step(attend, q=q, k=k, v=v, temperature=width**0.5)


def attend_in_heads(self, x):
    q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def attention_in_heads(at):
    heads = at.choose(1, 2, 3)
    width = heads * at.choose(2, 1, 3, 4)
    qkv, out = nn.Linear(at.c, 3 * width), nn.Linear(width, at.c)
    return Step(attend_in_heads, qkv=qkv, out=out, heads=heads)


def multihead_attention(at):
    heads, batch_first = at.groups(1, 2, 3), at.maybe()
    attention = nn.MultiheadAttention(at.c, heads, batch_first=batch_first)
    if batch_first:
        return Step("self.attention(x, x, x, need_weights=False)[0]", attention=attention)
    y = "x.transpose(0, 1)"
    return Step(f"self.attention({y}, {y}, {y})[0].transpose(0, 1)", attention=attention)


# The catalogue

# Those on the trunk only
anywhere = Shelf(*STAGES, when=lambda at: at.c <= 4 * WIDEST)  # a flat image may be wider
narrow = Shelf(*STAGES, when=lambda at: at.c <= WIDEST - 2)
images, tokens = Shelf(IMAGE), Shelf(TOKENS)
many_tokens = Shelf(TOKENS, when=lambda at: at.space[0] >= 4)
small_images = Shelf(IMAGE, when=lambda at: max(at.space) <= 4)
large_images = Shelf(IMAGE, when=lambda at: min(at.space) >= 4)
narrow_images = Shelf(IMAGE, when=lambda at: at.c <= WIDEST - 3)

# Those on the trunk and in branches
inside = Shelf(*STAGES, inside=True)
image_inside, token_inside = Shelf(IMAGE, inside=True), Shelf(TOKENS, inside=True)
vector_inside, flat_inside = Shelf(VECTOR, inside=True), Shelf(TOKENS, VECTOR, inside=True)
wide_inside = Shelf(*STAGES, when=lambda at: at.c >= 3, inside=True)
even_inside = Shelf(*STAGES, when=lambda at: at.c >= 4 and at.c % 2 == 0, inside=True)
groups_inside = Shelf(IMAGE, when=lambda at: at.c % 2 == 0 or at.c % 3 == 0, inside=True)

# Layers
inside["layer"] = lambda at: at.layer(at.width())
image_inside["depthwise_conv"] = lambda at: nn.Conv2d(
    at.c, at.c * at.choose(1, 1 + (at.c <= 6)), 3, padding=1, groups=at.c, bias=at.maybe()
)
groups_inside["grouped_conv"] = grouped_conv
image_inside["transposed_conv"] = transposed_conv
image_inside["functional_conv"] = lambda at: Step(
    "F.conv2d(x, self.weight, self.bias, padding=1)", **weight_and_bias(at.width(), at.c, 3, 3)
)
large_images["strided_conv"] = lambda at: nn.Conv2d(
    at.c, at.width(), at.choose(1, 3), stride=2, padding=1
)
small_images["upsampling_conv"] = lambda at: nn.ConvTranspose2d(at.c, at.width(), 2, stride=2)
flat_inside["functional_linear"] = lambda at: Step(
    "F.linear(x, self.weight, self.bias)", **weight_and_bias(at.width(), at.c)
)
token_inside["conv1d_over_tokens"] = lambda at: Step(
    "self.conv(x.transpose(1, 2)).transpose(1, 2)", conv=nn.Conv1d(at.c, at.width(), 3, padding=1)
)
vector_inside["conv1d_at_one_position"] = lambda at: Step(
    "self.conv(x.unsqueeze(-1)).squeeze(-1)", conv=nn.Conv1d(at.c, at.width(), 1)
)

# Norms and activations
inside["activation"] = lambda at: at.spelled(
    *("nn.ReLU()", "nn.GELU()", "nn.Hardswish()", "nn.Softplus()", "nn.LeakyReLU(0.1)"),
    *("F.relu(x)", "torch.sigmoid(x)", "F.gelu(x)", "F.softplus(x)", "F.hardswish(x)"),
    *(
        "x.tanh()",
        "x + 1",
        "x * 0.5",
        "1 - x",
        "torch.where(x > 0, x + 0.2, 0.2 * torch.ones_like(x))",
    ),
)
inside["relu_in_place"] = lambda at: nn.Sequential(at.layer(at.width()), nn.ReLU(inplace=True))
inside["prelu"] = lambda at: nn.PReLU(at.choose(1, 1 if at.stage == TOKENS else at.c))
inside["softmax"] = lambda at: at.spelled(
    f"x.softmax({at.dim})", f"F.softmax(x, dim={at.dim - at.stage})"
)
inside["dropout"] = lambda at: at.spelled("nn.Dropout(0.0)", "F.dropout(x, 0.0, self.training)")
inside["batch_norm"] = batch_norm
inside["layer_norm"] = layer_norm
image_inside["group_norm"] = lambda at: nn.GroupNorm(at.groups(1, 2, 3, 4), at.c)
vector_inside["group_norm"] = lambda at: nn.GroupNorm(1 + (at.c % 2 == 0 and at.c > 2), at.c)
image_inside["instance_norm"] = lambda at: nn.InstanceNorm2d(
    at.c, affine=at.maybe(), track_running_stats=at.maybe()
)

# Space, tokens, shapes
large_images["pool"] = lambda at: at.spelled(
    *("nn.MaxPool2d(2)", "nn.AvgPool2d(2)", "F.max_pool2d(x, 2)", "F.avg_pool2d(x, 2)"),
    *("nn.AdaptiveAvgPool2d(2)", "F.adaptive_avg_pool2d(x, (2, 3))"),
    *("nn.AdaptiveMaxPool2d(3)", "F.adaptive_max_pool2d(x, 2)"),
)
small_images["upsample"] = lambda at: at.spelled(
    *("nn.Upsample(scale_factor=2)", "F.interpolate(x, scale_factor=2)"),
    "F.interpolate(x, size=(5, 6), mode='bilinear')",
)
small_images["pixel_shuffle"] = lambda at: nn.Sequential(
    at.layer(at.choose(8, 12)), at.spelled("nn.PixelShuffle(2)", "F.pixel_shuffle(x, 2)")
)
images["pad"] = lambda at: at.spelled(
    "nn.ZeroPad2d(1)", "F.pad(x, (1, 1, 1, 1))", "F.pad(x, (1, 0, 0, 1), value=0.5)"
)
images["move_in_space"] = lambda at: at.spelled(
    *("torch.roll(x, 1, 3)", "x.roll((1, 1), (2, 3))", "x.flip(3)", "torch.flip(x, (2, 3))"),
    *("x.transpose(2, 3)", "x.permute(0, 1, 3, 2)"),
)
images["flatten_and_back"] = lambda at: at.spelled(
    f"x.flatten(1).unflatten(1, ({at.sizes}))",
    f"torch.flatten(x, 1).view(x.size(0), {at.sizes})",
    f"x.reshape(x.shape[0], -1).reshape(-1, {at.sizes})",
    f"x.flatten(2).unflatten(2, {at.space})",
    "x.flatten(2).reshape(x.size())",
)
images["tokens_and_back"] = lambda at: Step(
    f"self.f(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, {at.space})",
    f=nn.Linear(at.c, at.width()),
)
anywhere["another_dimension_for_a_while"] = lambda at: at.spelled(
    "x.unsqueeze(1).squeeze(1)", "x.unsqueeze(-1).squeeze(-1)", "x[:, None].flatten(1, 2)"
)
many_tokens["move_or_drop_tokens"] = lambda at: at.spelled(
    "x.roll(1, 1)", "x.flip(1)", "x[:, :-1]", "x[:, ::2]"
)
tokens["subtract_the_mean_token"] = lambda at: Step("x - x.mean(1, keepdim=True)")
vector_inside["image_and_back"] = lambda at: Step(
    "self.conv(self.spread(x).unflatten(1, (3, 2, 2))).flatten(1)",
    spread=nn.Linear(at.c, 12),
    conv=nn.Conv2d(3, at.choose(1, 2, 3), 3, padding=1),
)

# Sums, products, gates
anywhere["residual"] = lambda at: Step("x + self.f(x)", f=at.branch())
anywhere["residual_in_place"] = lambda at: Step(sum_in_place, f=at.branch())
anywhere["product"] = lambda at: Step("x * self.f(x)", f=at.branch())
anywhere["stack_and_sum"] = lambda at: Step(
    at.choose(
        "torch.stack([self.f(x), self.g(x)], 1).sum(1)",
        "torch.stack((x, self.f(x), self.g(x))).sum(0)",
        "torch.stack([self.f(x), self.g(x)], -1).sum(-1)",
    ),
    f=at.branch(),
    g=at.branch(),
)
inside["gate_of_one_channel"] = lambda at: Step("x * self.gate(x).sigmoid()", gate=at.layer(1))
inside["gate_by_the_mean_channel"] = lambda at: Step(
    f"x * x.mean({at.dim}, keepdim=True).sigmoid()",
)
image_inside["mean_over_space_and_back"] = lambda at: at.spelled(
    "x - x.mean((2, 3), keepdim=True).expand_as(x) + torch.zeros_like(x)",
    "(x - x.mean((2, 3), keepdim=True)).masked_fill(x <= x.mean((2, 3), keepdim=True), 0)",
)
image_inside["squeeze_excite_by_linears"] = lambda at: Step(
    "x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]", gate=bottleneck(nn.Linear, at)
)
image_inside["squeeze_excite_by_convs"] = lambda at: Step(
    "self.gate(self.squeeze(x)).sigmoid() * x",
    squeeze=nn.AdaptiveAvgPool2d(1),
    gate=bottleneck(pointwise_conv, at),
)

# Joining, parting and moving channels
narrow["concat_with_branch"] = lambda at: Step(
    f"torch.cat([x, self.f(x)], {at.dim})", f=at.branch(at.width(WIDEST - at.c))
)
anywhere["concat_of_branches"] = lambda at: Step(
    f"torch.cat((self.f(x), self.g(x)), dim={at.dim})",
    f=at.branch(at.width(WIDEST // 2)),
    g=at.branch(at.width(WIDEST // 2)),
)
narrow_images["concat_with_input"] = concat_with_input
even_inside["chunk_and_transform_one_half"] = chunk_and_transform_one_half
even_inside["gate_by_the_other_half"] = lambda at: Step(one_half_gates_the_other, dim=at.dim)
wide_inside["split_with_literal_sizes"] = split_with_literal_sizes
wide_inside["slice_of_channels"] = slice_of_channels
wide_inside["move_channels"] = lambda at: at.spelled(
    f"x.flip({at.dim})", f"torch.roll(x, 1, {at.dim})"
)
groups_inside["channel_shuffle"] = channel_shuffle
groups_inside["channel_shuffle_with_literal_sizes"] = channel_shuffle_with_literal_sizes

# Bare Parameters and Buffers
inside["layer_scale"] = lambda at: Step("x * self.scale", scale=at.per_channel())
inside["bare_bias"] = lambda at: Step("x + self.bias", bias=at.per_channel())
inside["channel_buffer"] = lambda at: Step(
    "x * self.mask", mask=nn.Buffer(at.per_channel().detach())
)
image_inside["layer_scale_with_channels_last"] = lambda at: Step(
    "(self.scale * x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",
    scale=nn.Parameter(torch.ones(at.c)),
)
token_inside["positional_embedding"] = lambda at: Step(
    "x + self.positions", positions=nn.Parameter(torch.ones(1, *at.space, at.c))
)
tokens["class_token"] = lambda at: Step(
    "torch.cat([self.token.expand(x.size(0), -1, -1), x], 1)",
    token=nn.Parameter(torch.ones(1, 1, at.c)),
)

# Sharing
anywhere["layer_twice_in_a_row"] = lambda at: Step("self.f(self.f(x))", f=at.layer())
anywhere["layer_in_two_places"] = lambda at: Step(
    "self.f(self.g(F.relu(self.f(x))))", f=at.layer(), g=at.branch()
)
anywhere["layers_with_one_weight"] = layers_with_one_weight
flat_inside["layer_and_its_transposed_weight"] = lambda at: Step(
    "F.linear(F.relu(self.there(x)), self.there.weight.t())", there=nn.Linear(at.c, at.width())
)

# Attention
token_inside["attention_by_hand"] = attention_by_hand
token_inside["multihead_attention"] = multihead_attention
token_inside["scaled_dot_product_attention"] = attention_in_heads
token_inside["mix_tokens"] = lambda at: Step(
    "self.mix(x.transpose(1, 2)).transpose(1, 2)", mix=nn.Linear(*at.space, *at.space)
)

# From stage to stage, and the whole


def to_tokens(at):
    return at.spelled(
        *("x.flatten(2).transpose(1, 2)", "x.flatten(2).permute(0, 2, 1)"),
        "x.permute(0, 2, 3, 1).flatten(1, 2)",
        f"x.reshape(x.size(0), {at.c}, -1).transpose(1, 2)",
    )


def to_vector(at):
    size = at.example[0].numel()
    codes = ["torch.flatten(x, 1)", "x.flatten(1)", "nn.Flatten()", "x.reshape(x.shape[0], -1)"]
    # a bare view would work by chance: how values lie in memory depends on widths
    codes += [f"x.reshape(-1, {size})", "x.contiguous().view(x.size(0), -1)"]
    if at.stage == IMAGE:
        codes += ["x.mean((2, 3))", "F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)"]
    else:
        codes += ["x.mean(1)", "x[:, 0]"]
    return at.spelled(*codes)


@st.composite
def one_more(draw, at):
    """A piece or None. Drawn as one thing, a needless piece shrinks away as one."""
    return replace(at, draw=draw).piece(PIECES[at.stage]) if draw(st.integers(0, 3)) else None


@st.composite
def graphs(draw) -> tuple[nn.Module, tuple[int, ...]]:
    """(a random network, the size of its input without the batch)."""
    channels, side = draw(st.integers(1, 3)), draw(st.sampled_from(SIDES))
    image = torch.zeros(2, channels, side, side, dtype=torch.float64)
    at, steps, auxiliary = Place(draw, image, image), [], None

    def put(step):
        nonlocal at
        at = at.behind(step)
        steps.append(step)

    def grow():
        while (step := draw(one_more(at))) is not None:
            put(step)

    put(at.layer(at.width()))
    grow()
    if draw(st.booleans()):
        auxiliary = nn.Linear(at.c, 3)
    last_of_image = len(steps) - 1
    if draw(st.booleans()):
        put(to_tokens(at))
        grow()
    put(to_vector(at))
    grow()
    return RandomGraph(steps, at.c, auxiliary, last_of_image).double(), image.shape[1:]
