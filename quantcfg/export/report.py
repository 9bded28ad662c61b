"""What an export did and what its check found, as values to print or to store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from quantcfg.export.difference import Difference
from quantcfg.export.freeze import FrozenModel
from quantcfg.export.program import Program
from quantcfg.integer.compare import IntegerReport
from quantcfg.stages.job import Job

REPORT_VERSION = 1
RUNTIME = "ONNX Runtime"
"""Begins the name of each way to run a file there: alone, optimised."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: the models of the run, the program the file was made from, the data.

    ``deployed`` is ``model`` with its batch norms folded, in the dtype of the file; ``program`` is None for a
    file that holds no program; ``data`` names the data function that is run.
    """

    job: Job
    float_model: nn.Module
    model: nn.Module
    deployed: nn.Module
    frozen: FrozenModel
    program: Program | None
    data: str

    @property
    def exported(self) -> Program:
        """The program, of a file that holds one."""
        assert self.program is not None
        return self.program


@dataclass(frozen=True, slots=True)
class QuantizerDifference:
    """One quantizer of the file against that of the model: ``num_different`` of ``num_values`` integers.

    ``op`` is what it quantizes: the first op of a chain, or ``input``.
    """

    name: str
    op: str
    num_values: int
    num_different: int
    max_steps: int


@dataclass(frozen=True, slots=True)
class Check:
    """What the exported file computed beside the model, on the evaluation data.

    ``differences`` are from the fake-quant model, by what computed the file; ``bounds`` are the largest root
    mean squares allowed there. ``num_qparams`` counts the scales and zero points that are equal bit for bit.
    ``quantizers`` are compared as integers flow through the file, ``op_by_op``, by what computed it, with
    every op given the model's integers; both on the first batch. ``integers`` compares the integer model with
    the fake-quant model. ``latency_s`` is of one batch, ``sizes`` of the files in bytes.
    """

    metrics: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Difference]
    quantization_error: Difference
    bounds: Mapping[str, float]
    num_batches: int
    num_qparams: int = 0
    quantizers: tuple[QuantizerDifference, ...] = ()
    op_by_op: Mapping[str, tuple[QuantizerDifference, ...]] = field(default_factory=dict)
    integers: IntegerReport | None = None
    latency_s: Mapping[str, float] | None = None
    sizes: Mapping[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The check as plain data."""
        return asdict(self) | {
            "differences": {name: _shown(d) for name, d in self.differences.items()},
            "integers": self.integers.to_dict() if self.integers else None,
        }


@dataclass(frozen=True, slots=True)
class ExportReport:
    """One export. ``num_weights`` and ``num_activations`` count the quantizers in the file."""

    path: str
    format: str
    size_bytes: int
    num_weights: int
    num_activations: int
    dynamic_axes: tuple[str, ...]
    check: Check | None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for ``--json``."""
        own = {name: getattr(self, name) for name in self.__slots__ if name != "check"}
        return {
            "format_version": REPORT_VERSION, **own, "check": self.check.to_dict() if self.check else None
        }  # fmt: skip


def _shown(found: Difference) -> dict[str, float]:
    return {
        "max_abs": found.max_abs,
        "rms": found.rms,
        "signal_rms": found.signal_rms,
        "equal_share": found.equal_share,
    }
