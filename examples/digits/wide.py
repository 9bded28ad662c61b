"""The same model with four times the channels: wide enough for 8 bits to be faster than float on a CPU."""

from pathlib import Path

from model import DigitsNet, calib_data, eval_data, train_data
from safetensors.torch import load_file
from torch import nn

__all__ = ["build_model", "calib_data", "eval_data", "train_data"]
CHANNELS = 32
WEIGHTS = Path(__file__).with_name("wide.safetensors")


def build_model() -> nn.Module:
    model = DigitsNet(CHANNELS)
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()
