"""What people write who come from PyTorch's own quantization or from Python, and what it is called here."""

from __future__ import annotations

FLOAT_WORDS = frozenset(("none", "null", "float", "float32", "fp32", "fp"))
"""Texts that stand where a qconfig belongs and mean null."""
KEYS = {
    "": "global",
    "qconfig_dict": "qconfig",
    "object_type": "module_type",
    "module_name_regex": "module_name",
    "lr_scheduler": "scheduler",
    "learning_rate": "lr",
}
"""Keys of qconfig_dict and of other tools."""
VALUES = {
    "minmaxobserver": "min_max",
    "movingaverageminmaxobserver": "min_max",
    "perchannelminmaxobserver": "min_max",
    "histogramobserver": "mse",
    "histogram": "mse",
    "minmax": "min_max",
    "fakequantize": "fake_quant",
    "int8": "qint8",
    "uint8": "quint8",
}
"""Classes of torch.ao and of others; its histogram observer minimizes the squared error, as `mse` does."""


def native(value: str, choices: list[str]) -> str | None:
    """What a foreign name is called here, if that is among the choices."""
    bare = value.rpartition(".")[2]
    known = bare if bare in choices else VALUES.get(bare.lower().replace("_", ""))
    return known if known in choices else None
