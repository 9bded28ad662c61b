"""Which integer type of a file holds which grid: the narrowest of 4, 8 and 16 bits; activations from 8 on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantcfg.numeric.dtypes import QuantDType

_WIDTHS = (4, 8, 16)
_TORCH = {
    "int4": torch.int8,
    "uint4": torch.uint8,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
}


@dataclass(frozen=True, slots=True)
class Storage:
    """An integer type of ONNX. In torch, 4 bits lie in 8: torch has no arithmetic on less."""

    num_bits: int
    signed: bool

    @property
    def name(self) -> str:
        """The type as ONNX and numpy spell it: ``int8``, ``uint4``."""
        return f"{'' if self.signed else 'u'}int{self.num_bits}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of tensors that hold its integers."""
        return _TORCH[self.name]

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest integer."""
        grid = QuantDType(self.name, self.num_bits, self.signed)
        return grid.quant_min, grid.quant_max


def storage_of(dtype: QuantDType, *, least_bits: int = 4) -> Storage:
    """The narrowest type that holds every integer of ``dtype``: qint3 lies in int4, quint9 in uint16.

    ``least_bits`` is 8 for activations: ONNX Runtime (1.32) moves 4-bit values into ops that have no kernel
    for them, and refuses the file.
    """
    return Storage(next(width for width in _WIDTHS if width >= max(dtype.num_bits, least_bits)), dtype.signed)


def storage_named(name: str) -> Storage:
    """The type of that name."""
    return Storage(int(name.removeprefix("u").removeprefix("int")), not name.startswith("u"))
