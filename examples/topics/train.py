"""Train the float weights of ``model.py``: ``python examples/topics/train.py [--output FILE]``.

Seeded and on one thread: two runs on one machine and one version of Python give the same file.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from model import WEIGHTS, TopicEncoder, eval_data, train_data
from safetensors.torch import save_file
from torch import nn

SEED = 0
EPOCHS = 30


def train(model: nn.Module) -> None:
    data = train_data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(data))
    model.train()
    for _ in range(EPOCHS):
        for batch in data:
            optimizer.zero_grad()
            F.cross_entropy(model(batch["tokens"], batch["mask"]), batch["labels"]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    hits = [model(batch["tokens"], batch["mask"]).argmax(1) == batch["labels"] for batch in eval_data()]
    return torch.cat(hits).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = TopicEncoder()
    nn.init.normal_(model.words.weight, std=0.1)
    nn.init.normal_(model.positions.weight, std=0.02)
    train(model)
    save_file(model.state_dict(), output)
    print(f"accuracy on the held-out split: {accuracy(model):.4f} -> {output}")


if __name__ == "__main__":
    main()
