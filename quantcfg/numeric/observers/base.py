"""What every observer shares: the running range, the batches it rests on, and what a tensor may hold."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from quantcfg.errors import NumericError
from quantcfg.numeric.bins import in_memory_order
from quantcfg.numeric.dtypes import QuantDType, as_dtype, quant_bounds
from quantcfg.numeric.exact import ExactModule
from quantcfg.numeric.host import ValueRange
from quantcfg.numeric.observers.records import BatchRecords, Range
from quantcfg.numeric.qparams import QParams, as_qscheme, choose_qparams, is_per_channel, is_symmetric

Nonfinite = Literal["error", "skip"]

_SKIP_HINT = "look for the op that overflows, or leave such batches out with nonfinite: skip"


class Observer(ExactModule, ABC):
    """Watches a tensor, batch after batch, and says which range its grid should cover.

    Every batch gives a range (low, high) of its own. With an ``averaging_constant`` c they are folded:

        first batch    min_val = low,  max_val = high
        later batches  min_val += c * (low - min_val),  max_val += c * (high - max_val)

    so 0 freezes the first (or the loaded) range and 1 follows the newest batch. With None the statistics are
    those of the whole stream, in whatever order and division it came.

    A batch that holds NaN or inf never changes a range. With ``nonfinite="error"`` it raises, at once in
    calibration and at the next `check` in training or under ``torch.compile``, where asking would wait for
    the device; with ``"skip"`` it is left out. Both count it in ``skipped``. An empty tensor is no batch.

    Attributes:
        per_channel, symmetric: whether each channel has a range of its own; whether the zero point is 0.
        name: the quantizer's name in the model; used in errors.
        fold_batches: True in training. Each batch is folded into the range (the histogram family too, with
            0.01 unless told otherwise), nothing is recorded for a merge and nothing waits for the device.
        batch_index: place of the next batch in the whole stream, set by who divides it among processes;
            None counts the batches seen here.
        taken: where each observation leaves what it added, for a trainer that takes in the batches of a step
            in one order (see `replay`); None: nowhere.

    Shapes:
        min_val, max_val: float32, ``(1,)`` per tensor, ``(num_channels,)`` per channel. Before the first
        batch they are +inf and -inf.

    Raises:
        ValueError: a parameter is out of its range, or parameters contradict each other.
    """

    own_parameters: ClassVar[tuple[str, ...]] = ()
    """The parameters of this kind alone, for its repr and to know what can be merged."""

    min_val: Tensor
    max_val: Tensor
    num_batches: Tensor
    skipped: Tensor

    def __init__(
        self,
        *,
        dtype: str | QuantDType = "qint8",
        qscheme: str | torch.qscheme = "per_tensor_symmetric",
        ch_axis: int = -1,
        num_channels: int = 1,
        quant_min: int | None = None,
        quant_max: int | None = None,
        averaging_constant: float | None = 0.01,
        nonfinite: Nonfinite = "error",
    ) -> None:
        super().__init__()
        self.dtype = as_dtype(dtype)
        self.qscheme = as_qscheme(qscheme)
        self.per_channel, self.symmetric = is_per_channel(self.qscheme), is_symmetric(self.qscheme)
        self.quant_min, self.quant_max = quant_bounds(dtype, quant_min, quant_max)
        _check_axis(self.qscheme, ch_axis, num_channels)
        _check_choices(averaging_constant, nonfinite)
        self.ch_axis = ch_axis
        self.num_channels = num_channels
        self.averaging_constant = averaging_constant
        self.nonfinite = nonfinite
        self.name = ""
        self.fold_batches = False
        self.batch_index: int | None = None
        self.taken: list[Tensor] | None = None
        # float32 whatever the default dtype: a model may be built in bfloat16.
        self.register_buffer("min_val", torch.full((num_channels,), torch.inf, dtype=torch.float32))
        self.register_buffer("max_val", -self.min_val)
        self.register_buffer("num_batches", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros(1, dtype=torch.int64))
        self.records = None if averaging_constant is None else BatchRecords(num_channels)

    @property
    def observed(self) -> bool:
        """Whether there is a range: a batch was seen, or one was loaded."""
        return bool((self.min_val <= self.max_val).all())

    def forward(self, x: Tensor) -> ValueRange | None:
        """Take one batch into the statistics; ``x`` is not changed.

        Returns:
            The least and the greatest value of the batch, where they and the range that they were folded into
            are in the host's memory; else None.

        Raises:
            NumericError: ``x`` holds NaN or inf (see the class), or has not the observer's channels.
        """
        if x.numel() == 0:
            return None
        x = self._readable(x)
        low, high = channel_aminmax(x, self.ch_axis)
        finite = (torch.maximum(low.abs(), high.abs()) < torch.inf).all()  # a third of the cost of isfinite
        self._observe(x, low, high, finite)
        # In place by name: `+=` assigns to a buffer, which a module takes 8 us for and compiles badly.
        self.num_batches.add_(1)
        self.skipped.add_(~finite)
        if self.nonfinite == "error" and not self._is_deferred() and not finite:
            raise self._error(
                f"batch {self._index_of_last()} held {_count_nonfinite(x)} NaN or inf of {x.numel()} values",
                hint=_SKIP_HINT,
            )
        return None

    def solve(self) -> None:
        """Bring ``min_val`` and ``max_val`` up to date with the statistics. Most kinds always are."""

    def qparams(self) -> QParams:
        """The scale and zero point of the range.

        Raises:
            NumericError: there is no range yet. In training and under ``torch.compile`` the scale is the
                smallest one instead, and `check` raises.
        """
        self.solve()
        if not self._is_deferred() and not self.observed:
            raise self._never_observed()
        return self._to_qparams(self.min_val, self.max_val)

    def check(self) -> None:
        """Raise what training could not raise at once; to be called where waiting for the device is fine.

        Raises:
            NumericError: batches held NaN or inf under ``nonfinite="error"``, or no batch was usable.
        """
        if self.nonfinite == "error" and (count := int(self.skipped)):
            raise self._error(f"{count} of {int(self.num_batches)} batches held NaN or inf", hint=_SKIP_HINT)
        if int(self.num_batches) and not self.observed:
            raise self._never_observed()

    def load_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Start from a known range: the next batch is folded into it as if it had been observed.

        Shapes:
            min_val, max_val: ``(1,)`` or ``(num_channels,)``; per tensor, their union is taken.

        Raises:
            ValueError: a bound is not finite, they are in the wrong order, or their number does not fit.
        """
        low, high = min_val.detach().float().reshape(-1), max_val.detach().float().reshape(-1)
        if not bool((low.isfinite() & high.isfinite() & (low <= high)).all()):
            raise ValueError(f"a range to load must be finite with min_val <= max_val (got {low}, {high})")
        if not self.per_channel:
            low, high = low.min().reshape(1), high.max().reshape(1)
        if low.numel() not in (1, self.num_channels):
            raise ValueError(f"a range to load must have 1 or {self.num_channels} values (got {low.numel()})")
        self.min_val.copy_(low)
        self.max_val.copy_(high)
        if self.records is not None:
            self.records.restart(self.min_val, self.max_val)

    def merge(self, *others: Observer) -> None:
        """Become the observer that has seen all their streams as well.

        Without an ``averaging_constant`` this is exact in any order. With one, the batches are folded again
        in the order of their ``batch_index``, which gives the bits of one process that saw them all.

        Raises:
            ValueError: they are not observers of the same kind and parameters.
            NumericError: with an ``averaging_constant``: the order of the batches is not known.
        """
        for other in others:
            self._check_mergeable(other)
        if self.averaging_constant is None:
            for other in others:
                self._merge_statistics(other)
        else:
            self._merge_records(others)
        for other in others:
            self.num_batches.add_(other.num_batches)
            self.skipped.add_(other.skipped)

    @property
    def taken_size(self) -> int:
        """How many values an entry of ``taken`` has."""
        return 2 * self.num_channels + 1

    def replay(self, entry: Tensor) -> None:
        """Take in again what a batch added, an entry of ``taken``. Batches are not counted again.

        Shapes:
            entry: float64 ``(taken_size,)``.
        """
        low, high = entry[:-1].float().view(2, -1)
        self._fold((low, high), entry[-1] > 0)

    def reset_dtype(self, dtype: str | QuantDType) -> None:
        """Change to the full grid of another dtype; the statistics stay."""
        self.dtype = as_dtype(dtype)
        self.quant_min, self.quant_max = quant_bounds(dtype)

    def extra_repr(self) -> str:
        """The parameters, as in the constructor."""
        shared = (self.dtype, self.quant_min, self.quant_max, str(self.qscheme).removeprefix("torch."))
        own = "".join(f", {name}={getattr(self, name)}" for name in self.own_parameters)
        return "{}[{}, {}], {}, ".format(*shared) + (
            f"ch_axis={self.ch_axis}, num_channels={self.num_channels}, "
            f"averaging_constant={self.averaging_constant}{own}"
        )

    def _observe(self, x: Tensor, low: Tensor, high: Tensor, finite: Tensor) -> None:
        """Take in a batch whose range is (``low``, ``high``), float32 ``(num_channels,)``, if ``finite``."""
        self._fold(self._batch_range(x, low, high), finite)

    def _batch_range(self, x: Tensor, low: Tensor, high: Tensor) -> Range:  # noqa: ARG002
        """The range that this one batch asks for."""
        return low, high

    def _note(self, *terms: Tensor) -> None:
        if self.taken is not None:
            self.taken.append(torch.cat([term.double().reshape(-1) for term in terms]))

    def _fold(self, batch: Range, finite: Tensor) -> None:
        self._note(*batch, finite)
        if self.records is not None and not self.fold_batches:
            index = self.num_batches if self.batch_index is None else self.batch_index
            self.records.push(index, batch, finite, self._step)
        low, high = self._step((self.min_val, self.max_val), batch)
        self.min_val.copy_(torch.where(finite, low, self.min_val))
        self.max_val.copy_(torch.where(finite, high, self.max_val))

    def _step(self, state: Range, batch: Range) -> Range:
        """The range after one more batch."""
        return fold_range(state, batch, self.averaging_constant)

    def _merge_statistics(self, other: Observer) -> None:
        torch.minimum(self.min_val, other.min_val, out=self.min_val)
        torch.maximum(self.max_val, other.max_val, out=self.max_val)

    def _merge_records(self, others: Sequence[Observer]) -> None:
        records = cast(BatchRecords, self.records)
        try:
            low, high = records.merge([cast(BatchRecords, other.records) for other in others], self._step)
        except ValueError as error:
            hint = "merge more often, or use averaging_constant=None"
            raise self._error(f"cannot merge: {error}", hint=hint) from error
        self.min_val.copy_(low)
        self.max_val.copy_(high)

    def _check_mergeable(self, other: Observer) -> None:
        if repr(self) != repr(other):
            raise ValueError(f"cannot merge {other!r} into {self!r}")

    def _to_qparams(self, min_val: Tensor, max_val: Tensor) -> QParams:
        bounds = {"quant_min": self.quant_min, "quant_max": self.quant_max}
        return choose_qparams(min_val, max_val, **bounds, symmetric=self.symmetric)

    def _readable(self, x: Tensor) -> Tensor:
        if self.per_channel and (x.dim() <= self.ch_axis or x.shape[self.ch_axis] != self.num_channels):
            raise self._error(
                f"expected {self.num_channels} channels along axis {self.ch_axis}, got shape {tuple(x.shape)}"
            )
        if x.is_complex() or x.is_quantized or x.layout != torch.strided:
            raise self._error(f"cannot observe a tensor of {x.dtype} and layout {x.layout}")
        x = x.detach().resolve_neg()
        return x if x.dtype in NATIVE else x.float()

    def _is_deferred(self) -> bool:
        return self.fold_batches or torch.compiler.is_compiling()

    def _index_of_last(self) -> int:
        return int(self.num_batches) - 1 if self.batch_index is None else self.batch_index

    def _error(self, message: str, *, hint: str = "") -> NumericError:
        return NumericError(f"{self.name or 'observer'}: {message}", hint=hint, quantizer=self.name)

    def _never_observed(self) -> NumericError:
        return self._error("never observed a batch", hint="run calibration batches through the model")


NATIVE = (torch.float32, torch.float16, torch.bfloat16)


def fold_range(state: Range, batch: Range, averaging_constant: float | None) -> Range:
    """The range after one more batch: the union with None, else the exponential moving average.

    Computed in float64, so that ends of opposite sign near the largest float do not overflow.
    """
    (min_val, max_val), (low, high) = state, batch
    if averaging_constant is None:
        return torch.minimum(min_val, low), torch.maximum(max_val, high)
    if averaging_constant == 1:
        return low, high
    first = min_val > max_val
    return (
        torch.where(first, low, _moved(min_val, low, averaging_constant)),
        torch.where(first, high, _moved(max_val, high, averaging_constant)),
    )


def _moved(value: Tensor, current: Tensor, averaging_constant: float) -> Tensor:
    if averaging_constant == 0:
        return value
    exact = value.double()
    return (current - exact).mul_(averaging_constant).add_(exact).float()


def channel_aminmax(x: Tensor, ch_axis: int) -> Range:
    """The least and the greatest value, float32: of the tensor (``ch_axis`` < 0), or of each channel.

    Shapes:
        ``(1,)`` or ``(C,)``. NaN comes out as NaN.
    """
    if ch_axis < 0:
        low, high = torch.aminmax(in_memory_order(x))
        return low.float().reshape(1), high.float().reshape(1)
    others = tuple(axis for axis in range(x.dim()) if axis != ch_axis)
    if not others:
        return x.float(), x.float()
    # One reduction over several axes each: aminmax takes one axis and runs six times slower along it.
    return x.amin(others).float(), x.amax(others).float()


def _count_nonfinite(x: Tensor) -> int:
    return int((~x.isfinite()).sum())


def _check_axis(qscheme: torch.qscheme, ch_axis: int, num_channels: int) -> None:
    name = str(qscheme).removeprefix("torch.")
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1 (got {num_channels})")
    if is_per_channel(qscheme) and ch_axis < 0:
        raise ValueError(f"qscheme {name!r} needs ch_axis >= 0 (got {ch_axis})")
    if not is_per_channel(qscheme) and (ch_axis >= 0 or num_channels != 1):
        raise ValueError(
            f"ch_axis and num_channels have no meaning with qscheme {name!r} "
            f"(got {ch_axis} and {num_channels})"
        )


def _check_choices(averaging_constant: float | None, nonfinite: str) -> None:
    if averaging_constant is not None and not 0 <= averaging_constant <= 1:
        raise ValueError(f"averaging_constant must be in [0, 1] (got {averaging_constant})")
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"nonfinite must be 'error' or 'skip' (got {nonfinite!r})")
