"""What every fake quantize shares: its observer, its two switches, and qparams that survive everything."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from quantcfg.errors import NumericError
from quantcfg.numeric.dtypes import QuantDType
from quantcfg.numeric.exact import ExactModule
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.qparams import QParams, is_per_channel

_ONE_AT_A_TIME = threading.Lock()
_READY = 0.99  # in an average over models, of which the first may have had no qparams yet
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FakeQuantizeBase(ExactModule, ABC):
    """Rounds a tensor to an integer grid and stays in floating point.

    Two switches, set by the state of the prepared model and no part of its state dict, say what a call does:

        observing              the observer sees the tensor, which is returned as it is
        observing, quantizing  the observer sees the tensor, then it is quantized with the new qparams
        quantizing             quantized with the qparams there are
        neither                nothing: the same object is returned

    The qparams stay in float32 whatever the model is cast to; ``x`` keeps its own dtype, and half
    precisions are computed in float32. NaN in ``x`` comes out as NaN, +-inf as the end of the grid.

    Attributes:
        observing, quantizing: the switches, independent of ``train()`` and ``eval()``.
        observer: what watches the tensor; dtype, qscheme, ch_axis, quant_min and quant_max are its own.

    Shapes:
        zero_point: float32, ``(1,)`` per tensor, ``(num_channels,)`` per channel; whole numbers, see below.
        has_qparams: float32, ``(1,)``: 1 where the qparams come from data, from a loaded or a fixed range,
        else 0.

    Both are floats for those who average a model over its training, with its buffers: an average of integers
    is cut off, and stays behind for good. One of zero points is rounded where it is used.
    """

    has_default: ClassVar[bool] = False
    """Whether there are qparams to quantize with although nothing was ever observed."""

    observer: Observer
    zero_point: Tensor
    has_qparams: Tensor

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observing = False
        self.quantizing = False
        self.observer = observer
        self.register_buffer("zero_point", torch.zeros_like(observer.min_val))
        self.register_buffer("has_qparams", torch.zeros_like(observer.min_val[:1]))
        # What has_qparams says, on the host: asking the tensor at every step would wait for the device.
        self._is_ready = False

    @property
    def name(self) -> str:
        """The quantizer's name in the model, shared with its observer; errors begin with it."""
        return self.observer.name

    @name.setter
    def name(self, name: str) -> None:
        self.observer.name = name

    @property
    def dtype(self) -> QuantDType:
        """The integer grid."""
        return self.observer.dtype

    @property
    def qscheme(self) -> torch.qscheme:
        """Per tensor or per channel, symmetric or affine."""
        return self.observer.qscheme

    @property
    def ch_axis(self) -> int:
        """The channel axis of a per-channel scheme, else -1."""
        return self.observer.ch_axis

    @property
    def quant_min(self) -> int:
        """The lowest integer in use."""
        return self.observer.quant_min

    @property
    def quant_max(self) -> int:
        """The highest integer in use."""
        return self.observer.quant_max

    @property
    def observed(self) -> bool:
        """Whether there is something to quantize with: qparams, or statistics to solve them from."""
        return self._ready() or self.observer.observed

    def forward(self, x: Tensor) -> Tensor:
        """``x`` observed, fake quantized, both, or the same object, as the switches say.

        Raises:
            NumericError: ``x`` is no dense float tensor or has not the observer's channels; or it is to be
                quantized and nothing was ever observed.
        """
        if not (self.observing or self.quantizing):
            return x
        self._check_input(x)
        inside = self.observing and not _is_recomputing() and self._observe_alone(x.detach())
        if not self.quantizing:
            return x
        self._check_ready(x)
        return self._fake_quantize(x, inside=inside)

    def qparams(self) -> QParams:
        """The qparams that forward quantizes with, detached.

        Raises:
            NumericError: nothing was ever observed.
        """
        if not (self._ready() or self.has_default):
            raise self._never_observed()
        return self._qparams()

    def finish_observation(self) -> None:
        """Solve the observer and keep its qparams: the end of calibration.

        Raises:
            NumericError: nothing was ever observed.
        """
        if not self.observer.observed:
            raise self._never_observed()
        self._set_qparams(self.observer.qparams())
        self._set_ready()

    def follow_observer(self) -> None:
        """Quantize with what the observer says now, as training does after each batch."""
        self._set_qparams(self.observer.qparams())

    def load_qparams_from(self, other: FakeQuantizeBase) -> None:
        """Start from what another fake quantize, of any kind, has calibrated or learned.

        On the same grid and scheme the qparams are taken as they are; on another one they are chosen for the
        same range, which also becomes the observer's. A ``fixed_scale`` observer keeps what it was given, and
        one that clips takes no more of a range than it may cover.

        Raises:
            NumericError: the other one has never observed anything.
        """
        if isinstance(self.observer, FixedScaleObserver):
            return
        given = other.value_range()
        self.observer.load_range(*given)
        same_grid = self._grid() == other._grid() and self.zero_point.shape == other.zero_point.shape
        as_is = same_grid and other._ready() and self._covers(given)
        self._set_qparams(other.qparams() if as_is else self.observer.qparams())
        self._set_ready()

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The real range (min, max) that gives the qparams.

        Shapes:
            float32, ``(1,)`` per tensor, ``(num_channels,)`` per channel.

        Raises:
            NumericError: nothing was ever observed.
        """
        if not self.observed:
            raise self._never_observed()
        self.observer.solve()
        return self.observer.min_val, self.observer.max_val

    def extra_repr(self) -> str:
        """The grid and the scheme, for ``print(model)``."""
        axis = f", ch_axis={self.ch_axis}" if is_per_channel(self.qscheme) else ""
        return f"{self.dtype}, {str(self.qscheme).removeprefix('torch.')}{axis}"

    @abstractmethod
    def _fake_quantize(self, x: Tensor, *, inside: bool) -> Tensor:
        """``x`` on the grid; ``inside``: all of it is known to lie between the ends."""

    @abstractmethod
    def _observe(self, x: Tensor) -> bool:
        """Show the observer ``x``, which is detached; take its qparams when quantizing.

        Returns:
            Whether all of ``x`` is known to lie on the grid of these qparams.
        """

    @abstractmethod
    def _qparams(self) -> QParams:
        """The qparams in use."""

    @abstractmethod
    def _set_qparams(self, qparams: QParams) -> None:
        """Quantize with these from now on."""

    def _observe_alone(self, x: Tensor) -> bool:
        """Observe while no other thread does: statistics are read and written in several steps."""
        if torch.compiler.is_compiling():
            return self._observe(x)
        with _ONE_AT_A_TIME:
            return self._observe(x)

    def _integer_zero_point(self) -> Tensor:
        return self.zero_point.round().int()

    def _grid(self) -> tuple[int, int, torch.qscheme]:
        return self.quant_min, self.quant_max, self.qscheme

    def _covers(self, given: tuple[Tensor, Tensor]) -> bool:
        """Whether the observer has a range that was given it, and not a part of it."""
        kept = (self.observer.min_val, self.observer.max_val)
        return all(torch.equal(own, end.to(own)) for own, end in zip(kept, given, strict=True))

    def _adopt_known_range(self) -> None:
        """Take the qparams of an observer that has a range before any data."""
        if self.observer.observed:
            self.finish_observation()

    def _seen_first_batch(self) -> Tensor:
        """Whether the observer has a range and there are no qparams yet: bool, ``(1,)``, on the device."""
        seen = (self.observer.min_val <= self.observer.max_val).all()
        return seen & (self.has_qparams == 0)

    def _set_ready(self) -> None:
        self.has_qparams.fill_(1.0)
        self._is_ready = True

    def _ready(self) -> bool:
        if not self._is_ready:
            self._is_ready = not self.has_qparams.is_meta and bool((self.has_qparams > _READY).all())
        return self._is_ready

    def _check_ready(self, x: Tensor) -> None:
        if torch.compiler.is_compiling() or self._is_ready or x.numel() == 0:
            return
        if not (self._ready() or self.has_default):
            raise self._never_observed()

    def _check_input(self, x: Tensor) -> None:
        if x.dtype not in _DTYPES or x.layout is not torch.strided:
            layout = "" if x.layout is torch.strided else f" and layout {x.layout}"
            raise self._error(f"expected a dense tensor of 16, 32 or 64 bit floats, got {x.dtype}{layout}")
        observer = self.observer
        ch_axis = observer.ch_axis
        if ch_axis < 0 or (x.dim() > ch_axis and x.shape[ch_axis] == observer.num_channels):
            return
        raise self._error(
            f"expected {observer.num_channels} channels along axis {ch_axis}, got shape {tuple(x.shape)}",
            hint="prepare the model after its layers have got the shapes that they are to have",
        )

    def _never_observed(self) -> NumericError:
        hint = "run calibration batches through the model, or load the qparams of a calibrated one"
        return self._error("never observed a batch", hint=hint)

    def _error(self, message: str, *, hint: str = "") -> NumericError:
        return NumericError(f"{self.name or 'fake quantize'}: {message}", hint=hint, quantizer=self.name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_ready = False
        self._ready()  # now: a learned scale would otherwise show its observer one batch more


class LearnedFakeQuantize(FakeQuantizeBase):
    """What is learned by gradient descent: started once from statistics, then left to the optimizer."""

    @torch.no_grad()
    def _observe(self, x: Tensor) -> bool:
        if not (self.quantizing and self._is_ready):
            self.observer(x)
            if self.quantizing:
                self._start_at(self.observer.qparams(), where=self._seen_first_batch())
        return False

    @abstractmethod
    def _start_at(self, qparams: QParams, *, where: Tensor) -> None:
        """Start from ``qparams`` where the first batch has just been seen."""


def _is_recomputing() -> bool:
    """Whether activation checkpointing runs this forward again, inside backward: it was observed already."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
