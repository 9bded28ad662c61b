"""A small transformer encoder that tells topics of Python's own documentation apart.

An ordinary float model with its own attention, made without a thought of quantization. Its text is
``pydoc_data.topics`` of the standard library; ``train.py`` made ``weights.safetensors``.
"""

import re
import zlib
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

WEIGHTS = Path(__file__).with_name("weights.safetensors")
GROUPS = {  # what is told apart: the topics of each group
    "statements": ("compound",),
    "debugger": ("debugger",),
    "strings": ("formatstrings", "string-methods"),
    "data model": ("specialnames",),
}
VOCABULARY = 4096  # words are hashed, so a word has the same number whatever the version of the text
WINDOW = 48  # words
BATCH_SIZE = 64
Window = tuple[list[int], int]  # numbers of the words, number of the group


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x), mask)
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, dim = x.shape
        heads = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        return self.proj(y.transpose(1, 2).reshape(batch, length, dim))


class TopicEncoder(nn.Module):
    def __init__(self, dim: int = 32, depth: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, dim)
        self.positions = nn.Embedding(WINDOW, dim)
        self.dropout = nn.Dropout(0.5)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, len(GROUPS))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores (N, groups) of words (N, WINDOW); ``mask`` is True at a word and False at padding."""
        x = self.dropout(self.words(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        weights = mask.unsqueeze(-1).to(x.dtype)
        pooled = (self.norm(x) * weights).sum(1) / weights.sum(1)
        return self.classifier(self.dropout(pooled))


def build_model() -> nn.Module:
    model = TopicEncoder()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def calib_data() -> DataLoader:
    return DataLoader(load_split("train")[:512], BATCH_SIZE, collate_fn=collate)


def train_data() -> DataLoader:
    return DataLoader(load_split("train"), BATCH_SIZE, shuffle=True, collate_fn=collate)


def eval_data() -> DataLoader:
    return DataLoader(load_split("test"), BATCH_SIZE, collate_fn=collate)


def load_split(part: str) -> list[Window]:
    """The held-out windows (``"test"``) or the others (``"train"``), shuffled once by a fixed seed.

    The words of a window decide its side, so equal windows are never on both.
    """
    windows = [
        (window, label)
        for label, names in enumerate(GROUPS.values())
        for name in names
        for window in cut_windows(topics[name])
        if (sum(window) % 5 == 0) == (part == "test")
    ]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    return [windows[index] for index in order]


def cut_windows(text: str) -> list[list[int]]:
    """Whole paragraphs, as many as fit into a window; only a longer paragraph is cut."""
    windows: list[list[int]] = [[]]
    for paragraph in text.split("\n\n"):
        words = re.findall(r"\w+|[^\w\s]", paragraph.lower())
        if len(windows[-1]) + len(words) > WINDOW:
            windows.append([])
        for word in words:
            if len(windows[-1]) == WINDOW:
                windows.append([])
            windows[-1].append(zlib.crc32(word.encode()) % VOCABULARY)
    return [window for window in windows if len(window) >= 4]


def collate(windows: list[Window]) -> dict[str, Tensor]:
    tokens = torch.zeros(len(windows), WINDOW, dtype=torch.long)
    mask = torch.zeros(len(windows), WINDOW, dtype=torch.bool)
    for row, (window, _) in enumerate(windows):
        tokens[row, : len(window)] = torch.tensor(window)
        mask[row, : len(window)] = True
    return {"tokens": tokens, "mask": mask, "labels": torch.tensor([label for _, label in windows])}
