"""A small residual CNN for the 1,797 handwritten digits that come with scikit-learn.

An ordinary float model: nothing in it knows of quantization. ``train.py`` made ``weights.safetensors``.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WEIGHTS = Path(__file__).with_name("weights.safetensors")
BATCH_SIZE = 64
NUM_TEST = 500  # held out: neither trained nor calibrated on
NUM_CALIB = 512  # of the training part


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class DigitsNet(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.block1 = Residual(channels)
        self.pool = nn.MaxPool2d(2)
        self.block2 = Residual(channels)
        self.classifier = nn.Linear(2 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        early = self.pool(self.block1(self.stem(images)))
        late = self.block2(early)
        features = F.adaptive_avg_pool2d(torch.cat([early, late], dim=1), 1)
        return self.classifier(features.flatten(1))


def build_model() -> nn.Module:
    model = DigitsNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def calib_data() -> DataLoader:
    images, labels = load_split("train")
    return DataLoader(TensorDataset(images[:NUM_CALIB], labels[:NUM_CALIB]), BATCH_SIZE)


def train_data() -> DataLoader:
    return DataLoader(TensorDataset(*load_split("train")), BATCH_SIZE, shuffle=True)


def eval_data() -> DataLoader:
    return DataLoader(TensorDataset(*load_split("test")), BATCH_SIZE)


def load_split(part: str) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] of shape (N, 1, 8, 8) and their labels: the same images in the same order, always."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    chosen = order[:NUM_TEST] if part == "test" else order[NUM_TEST:]
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[chosen], torch.as_tensor(digits.target)[chosen]
