"""Train the float weights of ``model.py``: ``python examples/digits/train.py [--output FILE]``.

Those of ``wide.py`` come of ``--channels 32 --output examples/digits/wide.safetensors``.

Seeded and on one thread: two runs on one machine give the same file.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from model import WEIGHTS, DigitsNet, eval_data, train_data
from safetensors.torch import save_file
from torch import nn

SEED = 2
EPOCHS = 40


def train(model: nn.Module) -> None:
    data = train_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(data))
    model.train()
    for _ in range(EPOCHS):
        for images, labels in data:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    hits = [model(images).argmax(1) == labels for images, labels in eval_data()]
    return torch.cat(hits).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--channels", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = DigitsNet(options.channels)
    train(model)
    save_file(model.state_dict(), options.output)
    print(f"accuracy on the held-out split: {accuracy(model):.4f} -> {options.output}")


if __name__ == "__main__":
    main()
