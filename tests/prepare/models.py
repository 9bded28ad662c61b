"""Small models, each with one difficulty, and inputs that reach all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Residual(nn.Module):
    """One ReLU module called twice, a functional in-place add."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """Stem, two residual blocks, a branch with a convolution, pooling, cat, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.Sequential(Residual(), Residual())
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blocks(x) + self.shortcut(x)
        x = self.pool(x)
        low = F.adaptive_avg_pool2d(x, 1).flatten(1)
        high = F.adaptive_max_pool2d(x, 1).flatten(1)
        return self.classifier(torch.cat([low, high], dim=1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, how: str) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        keep = keep[:, None, None, :].bool()
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        else:
            y = self._masked(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, keep).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))

    def _masked(self, scores: Tensor, keep: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        if self.how == "add":
            return scores + (1.0 - keep.to(scores.dtype)) * lowest
        if self.how == "where":
            return torch.where(keep, scores, torch.tensor(-torch.inf))
        if self.how == "where_min":
            return torch.where(keep, scores, lowest)
        return scores.masked_fill(~keep, -torch.inf)


class Encoder(nn.Module):
    """A transformer layer of the user's own; ``how`` says how attention is masked."""

    def __init__(self, how: str = "sdpa", width: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.attention = Attention(width, 2, how)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.head = nn.Linear(width, 4)

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions[:, : ids.shape[1]]
        x = x + self.attention(self.norm1(x), keep)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class Branches(nn.Module):
    """Control flow that depends on data, and a loop whose length is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 4), nn.Linear(4, 4)
        self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor, rounds: int = 2) -> Tensor:
        x = self.large(x) if x.abs().max() > 1 else self.small(x)
        for _ in range(rounds):
            for step in self.steps:
                x = torch.tanh(step(x))
        return x


class InPlace(nn.Module):
    """In-place ops whose result is read through the old name, views, slices assigned to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y.mul_(2.0)
        z = y.clone()
        z[:, :3] += 1.0
        F.relu_(z)
        return z + y


class Tied(nn.Module):
    """One weight in two places, and a linear layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(torch.relu(self.mix(self.tokens(ids)))))


class ByHand(nn.Module):
    """Weights passed by hand to functions, a matrix product with a parameter, a constant in an add."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3) * 0.2)
        self.matrix = nn.Parameter(torch.randn(4, 5) * 0.3)
        self.register_buffer("offset", torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, padding=1).mean((2, 3))
        return y @ self.matrix + self.offset


class Parametrized(nn.Module):
    """A weight that is computed from other parameters at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(5, 5))
        self.second = parametrizations.orthogonal(nn.Linear(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.cell = cell(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(x)
        return self.head(y[:, -1])


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.layer(x, src_key_padding_mask=padding).mean(1))


class Boxes(NamedTuple):
    corners: Tensor
    scores: Tensor


@dataclass
class Pyramid:
    fine: Tensor
    coarse: Tensor


class Structured(nn.Module):
    """Dicts in, a dataclass between, a named tuple in a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"fine": nn.Conv2d(3, 4, 3), "coarse": nn.Conv2d(3, 4, 3, stride=2)})
        self.heads = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 2)])

    def forward(self, batch: dict[str, Tensor], *, scale: float = 1.0) -> dict[str, Any]:
        image = batch["image"] * scale
        levels = Pyramid(*(conv(image) for conv in self.body.values()))
        x = torch.cat([levels.fine.mean((2, 3)), levels.coarse.mean((2, 3))], 1)
        return {"boxes": Boxes(*(head(x) for head in self.heads)), "image_mean": image.mean()}


class IteratesChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = torch.sigmoid(child(x))
        return x + 1


class SequentialRoot(nn.Sequential):
    """A container with an op of its own, at the root."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x + x.flip(-1)


class TransposedConv(nn.Module):
    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups)
        self.bn = nn.BatchNorm2d(6)
        self.line = nn.ConvTranspose1d(6, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(F.relu(self.bn(self.up(x))).flatten(2))


class DenseLayer(nn.Module):
    """Standalone batch norms before their convolutions, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(7), nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        return self.conv2(F.relu(self.norm2(y)))


class TakesFlag(nn.Module):
    """Names that a container of quantizers could collide with."""

    def __init__(self) -> None:
        super().__init__()
        self.fake_quants = nn.Linear(4, 4)
        self.quantcfg = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantcfg(self.fake_quants(x)) * 2


def _ids() -> Tensor:
    return torch.randint(1, 9, (3, 7))


def _encoder_inputs() -> tuple[Tensor, Tensor]:
    keep = torch.ones(3, 7, dtype=torch.long)
    keep[1, 4:] = 0
    keep[2, 2:] = 0
    return _ids(), keep


Case = tuple[Callable[[], nn.Module], Callable[[], Any]]
"""A model, and what to call it with: a tuple of arguments."""


class PageModel(nn.Module):
    """`EXAMPLE_MODEL`, as the pages of the codes describe it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.spare = nn.Linear(4, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.drop(torch.relu(self.bn(self.conv(x)))))
        return self.head(x.mean((2, 3)))


CASES: dict[str, Case] = {
    "resnet": (ResNet, lambda: (torch.randn(4, 3, 8, 8),)),
    "encoder_sdpa": (Encoder, _encoder_inputs),
    "encoder_add": (lambda: Encoder("add"), _encoder_inputs),
    "encoder_masked_fill": (lambda: Encoder("masked_fill"), _encoder_inputs),
    "encoder_where": (lambda: Encoder("where"), _encoder_inputs),
    "encoder_where_min": (lambda: Encoder("where_min"), _encoder_inputs),
    "branches": (Branches, lambda: (torch.randn(3, 4) * 3,)),
    "in_place": (InPlace, lambda: (torch.randn(3, 6),)),
    "tied": (Tied, lambda: (_ids(),)),
    "by_hand": (ByHand, lambda: (torch.randn(2, 3, 6, 6),)),
    "parametrized": (Parametrized, lambda: (torch.randn(3, 5),)),
    "lstm": (Recurrent, lambda: (torch.randn(2, 5, 4),)),
    "gru": (lambda: Recurrent(nn.GRU), lambda: (torch.randn(2, 5, 4),)),
    "torch_attention": (TorchAttention, lambda: (torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool))),
    "structured": (Structured, lambda: ({"image": torch.randn(2, 3, 8, 8)},)),
    "iterates_children": (IteratesChildren, lambda: (torch.randn(2, 4),)),
    "sequential_root": (SequentialRoot, lambda: (torch.randn(2, 4),)),
    "transposed": (TransposedConv, lambda: (torch.randn(2, 4, 3, 3),)),
    "dense": (DenseLayer, lambda: (torch.randn(2, 3, 5, 5),)),
    "takes_flag": (TakesFlag, lambda: (torch.randn(2, 4),)),
}
