"""What targets take: small tables, from their documentation. A profile is data; `prepare` checks ops with it.

Only ONNX Runtime on a CPU was ever run; what the others are said to take is their documentation's word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantcfg.config.collect import Findings
from quantcfg.config.rules import Rule
from quantcfg.config.slot_checks import dtype_bits
from quantcfg.config.spec import QSCHEME_DEFAULTS, FakeQuantSpec, QConfigSpec, Scalar
from quantcfg.errors import Place

Grid = tuple[str, str]
"""A dtype and a qscheme."""

_AFFINE, _SYMMETRIC = "per_tensor_affine", "per_tensor_symmetric"
_PER_CHANNEL = "per_channel_symmetric"
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True, slots=True)
class Profile:
    """One target. The grids are those that it computes with in integers; none listed means any.

    ``weight_of`` has the exceptions by op. ``adds_to_accumulator`` says that a convolution and the add behind
    it are one op there; where they are not, the convolution gets a quantizer of its own. ``notes`` are rules
    of the target that need no setting here.
    """

    name: str
    source: str
    was_run: bool
    activation: tuple[Grid, ...] = ()
    weight: tuple[Grid, ...] = ()
    weight_of: Mapping[str, tuple[Grid, ...]] = field(default_factory=dict)
    adds_to_accumulator: bool = True
    notes: str = ""

    def grids(self, slot: str, op: str = "") -> tuple[Grid, ...]:
        """The grids of a slot of an op, the preferred one first; nothing means any."""
        return self.activation if slot == "activation" else self.weight_of.get(op, self.weight)


_PROFILES = (
    Profile("generic", "none: every grid that quantcfg has", was_run=False),
    Profile(
        "onnxruntime",
        "measured with ONNX Runtime 1.32 on an x86 CPU with VNNI; its page on quantization, data types",
        was_run=True,
        activation=(("quint8", _AFFINE),),
        weight=(("qint8", _PER_CHANNEL), ("qint8", _SYMMETRIC), ("quint8", _AFFINE)),
        adds_to_accumulator=False,
        notes="Signed activations are accepted, and a convolution with a ReLU behind it is then computed in "
        "float; 4 and 16 bits are accepted and computed in float.",
    ),
    Profile(
        "tensorrt",
        "TensorRT documentation, Working with Quantized Types: symmetric, INT8; INT4 for weights alone",
        was_run=False,
        activation=(("qint8", _SYMMETRIC),),
        weight=(("qint8", _PER_CHANNEL), ("qint8", _SYMMETRIC)),
        weight_of=dict.fromkeys(_TRANSPOSED, (("qint8", _SYMMETRIC),)),
        notes="Transposed convolutions per tensor: TensorRT wants their scales along the input channels "
        "(NVIDIA/TensorRT#2380), where they cannot be taken out of the sum.",
    ),
    Profile(
        "qnn",
        "ONNX Runtime documentation, QNN Execution Provider: uint8 or uint16 activations, 8-bit weights",
        was_run=False,
        activation=(("quint8", _AFFINE), ("quint16", _AFFINE)),
        weight=(("qint8", _PER_CHANNEL), ("qint8", _SYMMETRIC), ("quint8", _AFFINE), ("qint4", _PER_CHANNEL)),
        adds_to_accumulator=False,
    ),
    Profile(
        "openvino",
        "OpenVINO documentation, Low Precision Transformations, Convolution: activations per tensor",
        was_run=False,
        activation=(("quint8", _AFFINE), ("qint8", _SYMMETRIC)),
        weight=(("qint8", _PER_CHANNEL), ("qint8", _SYMMETRIC)),
    ),
    Profile(
        "horizon",
        "Horizon OpenExplorer documentation, operator constraints of the BPU: int8 and int16, symmetric",
        was_run=False,
        activation=(("qint8", _SYMMETRIC), ("qint16", _SYMMETRIC)),
        weight=(("qint8", _PER_CHANNEL), ("qint8", _SYMMETRIC)),
        notes="Outputs of 32 bits only where nothing but a dequantization reads them.",
    ),
)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _PROFILES}


def grid_of(spec: FakeQuantSpec, slot: str) -> Grid:
    """The dtype and the qscheme of a slot, defaults filled in."""
    return spec.dtype, str(spec.kwargs.get("qscheme", QSCHEME_DEFAULTS[slot]))


def fits(profile: Profile, spec: FakeQuantSpec | None, slot: str, op: str = "") -> bool:
    """Whether the target takes a slot as it is."""
    grids = profile.grids(slot, op)
    return spec is None or not grids or grid_of(spec, slot) in grids


def adjusted(profile: Profile, spec: FakeQuantSpec, slot: str, op: str = "") -> FakeQuantSpec | None:
    """The slot on the nearest grid that the target takes; None where its kind is bound to its own grid.

    Nearest is: not fewer bits if there is one, then the same granularity, then the order of the profile.
    """
    if fits(profile, spec, slot, op):
        return spec
    dtype, qscheme = min(profile.grids(slot, op), key=lambda grid: _distance(grid, grid_of(spec, slot)))
    bound = spec.observer == "fixed_scale" or (spec.fake_quant == "pact" and qscheme.endswith("affine"))
    if bound:
        return None
    dropped = ("quant_min", "quant_max", "dtype", "qscheme", "ch_axis")
    kwargs: dict[str, Scalar] = {name: value for name, value in spec.kwargs.items() if name not in dropped}
    kwargs |= {"dtype": dtype, "qscheme": qscheme}
    if qscheme.startswith("per_channel"):
        kwargs["ch_axis"] = spec.kwargs.get("ch_axis", 0)
    return replace(spec, qkwargs=tuple(sorted(kwargs.items())))


def _distance(grid: Grid, wanted: Grid) -> tuple[bool, int, bool]:
    bits, wanted_bits = dtype_bits(grid[0]), dtype_bits(wanted[0])
    same_granularity = grid[1].startswith("per_channel") == wanted[1].startswith("per_channel")
    return bits < wanted_bits, abs(bits - wanted_bits), not same_granularity


def check_target(profile: Profile, rules: Sequence[Rule], findings: Findings) -> None:
    """Report what no op of the target takes of the qconfigs of rules; which ops there are is not known."""
    for rule in rules:
        for slot, spec in rule.spec.slots.items() if rule.spec else ():
            if spec is not None and not _fits_some_op(profile, spec, slot):
                refuse(findings, profile, slot, spec, origin_of(rule.spec, slot) or rule.place)


def _fits_some_op(profile: Profile, spec: FakeQuantSpec, slot: str) -> bool:
    return any(fits(profile, spec, slot, op) for op in ("", *profile.weight_of))


def refuse(
    findings: Findings,
    profile: Profile,
    slot: str,
    spec: FakeQuantSpec,
    place: Place | None,
    *,
    op: str = "",
    names: str = "",
) -> None:
    """Report a slot that the target does not take; ``names`` are the ops of a model that have it."""
    grids = ", ".join(map(" ".join, profile.grids(slot, op)))
    summary = f"`{profile.name}` takes no {' '.join(grid_of(spec, slot))} {slot}s"
    findings.error(
        "QC216" if names else "QC132",
        f"{summary}: {names}" if names else summary,
        place,
        label=f"{profile.name} takes {grids}",
        help="`export.unsupported: adjust` takes the nearest of these, `float` leaves such ops in float",
    )


def origin_of(qconfig: QConfigSpec | None, slot: str) -> Place | None:
    """Where the dtype or the qscheme of a slot was written in a file."""
    origins = dict(qconfig.origins) if qconfig else {}
    found = (origins.get(f"{slot}_qkwargs.{name}") for name in ("dtype", "qscheme"))
    return next((origin for origin in found if isinstance(origin, Place)), None)
