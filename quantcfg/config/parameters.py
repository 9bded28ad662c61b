"""The parameters of every observer and fake quantize, typed per kind."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from quantcfg.config.kinds import accepted
from quantcfg.config.section import Positive, Section
from quantcfg.config.spec import FakeQuantSpec, QConfigSpec

DType = Literal[
    "qint2",
    "qint3",
    "qint4",
    "qint5",
    "qint6",
    "qint7",
    "qint8",
    "qint9",
    "qint10",
    "qint11",
    "qint12",
    "qint13",
    "qint14",
    "qint15",
    "qint16",
    "quint2",
    "quint3",
    "quint4",
    "quint5",
    "quint6",
    "quint7",
    "quint8",
    "quint9",
    "quint10",
    "quint11",
    "quint12",
    "quint13",
    "quint14",
    "quint15",
    "quint16",
]
QScheme = Literal["per_tensor_symmetric", "per_channel_symmetric", "per_tensor_affine", "per_channel_affine"]
AveragingConstant = Annotated[float, Field(ge=0, le=1)]


class Parameters(Section):
    """Base of all parameter sets."""


class ObserverParameters(Parameters):
    """What every observer takes."""

    dtype: DType = "qint8"
    """The integer grid: qint2 to qint16 or quint2 to quint16."""
    qscheme: QScheme = "per_tensor_symmetric"
    """One scale per tensor or per channel; symmetric around 0 or affine. Weights: per_channel_symmetric."""
    ch_axis: Annotated[int, Field(ge=0)] | None = None
    """Channel axis of a per-channel scheme; 0 for weights that do not say."""
    quant_min: int | None = None
    """Smallest integer used, when it is not the smallest of the dtype. Needs quant_max."""
    quant_max: int | None = None
    """Largest integer used, when it is not the largest of the dtype. Needs quant_min."""
    averaging_constant: AveragingConstant | None = None
    """Weight of the newest batch after the first: 0 freezes, 1 follows. Null: all at once."""
    nonfinite: Literal["error", "skip"] = "error"
    """What a NaN or infinity does: end the run naming op and batch, or be left out and counted."""


class MinMax(ObserverParameters):
    """Smallest and largest value seen."""

    averaging_constant: AveragingConstant = 0.01
    """Weight of the newest batch after the first: 0 freezes, 1 follows the latest batch."""


class FixedScale(ObserverParameters):
    """A scale that is known beforehand; the data is not looked at."""

    averaging_constant: AveragingConstant = 0.0
    """Weight of the newest batch after the first: 0 freezes, 1 follows the latest batch."""

    scale: Positive | None = None
    """Real units per integer step."""
    threshold: Positive | None = None
    """Largest magnitude to represent, in real units; gives scale = threshold / -quant_min."""
    zero_point: int = 0
    """The integer that stands for real 0."""


class Clip(ObserverParameters):
    """Smallest and largest value seen, cut to a given range."""

    averaging_constant: AveragingConstant = 1.0
    """Weight of the newest batch after the first: 0 freezes, 1 follows the latest batch."""

    xmin: float = -1.0
    """Lower end of the range, in real units."""
    xmax: float = 1.0
    """Upper end of the range, in real units."""


class Percentile(ObserverParameters):
    """The range that holds a given share of the values."""

    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    """Share of the values inside the range, in percent."""
    bins: Annotated[int, Field(ge=16, le=4096)] = 2048
    """Bins of the histogram of magnitudes."""


class ClipStd(ObserverParameters):
    """Mean plus and minus some standard deviations."""

    averaging_constant: AveragingConstant = 0.01
    """Weight of the newest batch after the first: 0 freezes, 1 follows the latest batch."""

    std_scale: Positive = 3.0
    """How many standard deviations on each side."""


class MSE(ObserverParameters):
    """The range whose quantization error is the smallest in the mean square."""

    stride: Annotated[int, Field(ge=1, le=95)] = 1
    """Accepted for configs that have it: the search finds the same range whatever it is."""


class KL(ObserverParameters):
    """The range whose quantized histogram diverges least from the real one."""

    bins: Annotated[int, Field(ge=256, le=8192)] = 512
    """Bins of the histogram of magnitudes."""
    update_interval: Annotated[int, Field(ge=1)] = 1
    """Accepted for configs that have it: no range waits for so many batches."""


class Mix(ObserverParameters):
    """The best of nine percentiles, by quantization error."""


class FakeQuantizeParameters(Parameters):
    """Plain fake quantize has no parameters of its own."""


class LSQ(Parameters):
    """Learned step size."""

    use_grad_scaling: bool = False
    """Multiply the gradient of the scale by 1 / sqrt(elements * quant_max)."""


class PACT(Parameters):
    """Learned clipping."""

    alpha: Positive = 6.0
    """Where the clip starts when nothing was observed, in real units."""


OBSERVER_PARAMETERS: dict[str, type[ObserverParameters]] = {
    "min_max": MinMax,
    "fixed_scale": FixedScale,
    "clip": Clip,
    "percentile": Percentile,
    "clip_std": ClipStd,
    "mse": MSE,
    "kl": KL,
    "mix": Mix,
}
FAKE_QUANT_PARAMETERS: dict[str, type[Parameters]] = {
    "fake_quant": FakeQuantizeParameters,
    "lsq": LSQ,
    "pact": PACT,
}


PARAMETERS: dict[str, type[Parameters]] = OBSERVER_PARAMETERS | FAKE_QUANT_PARAMETERS


def with_defaults(spec: FakeQuantSpec) -> FakeQuantSpec:
    """The same slot with every parameter that it leaves open written out; equal when it quantizes alike."""
    kinds = accepted(spec.observer, spec.fake_quant)
    defaults = {name: PARAMETERS[kind].model_fields[name].default for name, kind in kinds.items()}
    kwargs = {name: value for name, value in (defaults | spec.kwargs).items() if value is not None}
    return FakeQuantSpec(spec.fake_quant, spec.observer, tuple(sorted(kwargs.items())))


def filled(spec: QConfigSpec) -> QConfigSpec:
    """A qconfig with both of its slots written out."""
    activation, weight = (slot and with_defaults(slot) for slot in (spec.activation, spec.weight))
    return replace(spec, activation=activation, weight=weight)
