"""The integer grids that tensors are quantized to, by name."""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = range(2, 17)


@dataclass(frozen=True, slots=True, repr=False)
class QuantDType:
    """An integer grid of ``num_bits`` bits; its full range is used, so qint8 is [-128, 127].

    Fake quantization keeps values in floating point, so a grid needs no storage type of torch.
    """

    name: str
    num_bits: int
    signed: bool

    @property
    def quant_min(self) -> int:
        """The lowest integer of the grid."""
        return -(1 << (self.num_bits - 1)) if self.signed else 0

    @property
    def quant_max(self) -> int:
        """The highest integer of the grid."""
        return (1 << (self.num_bits - 1)) - 1 if self.signed else (1 << self.num_bits) - 1

    def __repr__(self) -> str:
        return self.name


def _signed(num_bits: int) -> QuantDType:
    return QuantDType(f"qint{num_bits}", num_bits, signed=True)


def _unsigned(num_bits: int) -> QuantDType:
    return QuantDType(f"quint{num_bits}", num_bits, signed=False)


qint2, qint3, qint4, qint5, qint6, qint7, qint8 = map(_signed, range(2, 9))
qint9, qint10, qint11, qint12, qint13, qint14, qint15, qint16 = map(_signed, range(9, 17))
quint2, quint3, quint4, quint5, quint6, quint7, quint8 = map(_unsigned, range(2, 9))
quint9, quint10, quint11, quint12, quint13, quint14, quint15, quint16 = map(_unsigned, range(9, 17))

DTYPES: dict[str, QuantDType] = {
    dtype.name: dtype for dtype in (*map(_signed, WIDTHS), *map(_unsigned, WIDTHS))
}


def as_dtype(dtype: str | QuantDType) -> QuantDType:
    """The grid of that name; a `QuantDType` is returned as it is.

    Raises:
        ValueError: there is no grid of that name.
    """
    if isinstance(dtype, QuantDType):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"dtype must be one of qint2..qint16 and quint2..quint16 (got {dtype!r})")


def quant_bounds(
    dtype: str | QuantDType, quant_min: int | None = None, quant_max: int | None = None
) -> tuple[int, int]:
    """The ends of the grid, inclusive: those of ``dtype``, or a narrower pair inside it.

    Raises:
        ValueError: only one end is given, or the pair is not ``quant_min <= 0 <= quant_max`` inside the
            dtype's range with at least two integers.
    """
    grid = as_dtype(dtype)
    if quant_min is None and quant_max is None:
        return grid.quant_min, grid.quant_max
    if quant_min is None or quant_max is None:
        raise ValueError(f"quant_min and quant_max go together (got {quant_min} and {quant_max})")
    inside = grid.quant_min <= quant_min <= 0 <= quant_max <= grid.quant_max
    if not inside or quant_min == quant_max:
        raise ValueError(
            f"quant_min and quant_max must contain 0 and lie inside the range of {grid}, "
            f"[{grid.quant_min}, {grid.quant_max}] (got {quant_min} and {quant_max})"
        )
    return quant_min, quant_max
