"""Small models prepared, calibrated, frozen and translated, without a run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from quantcfg.export.calls import Call, varying_axes
from quantcfg.export.deployed import deployed
from quantcfg.export.freeze import FrozenModel, freeze
from quantcfg.export.onnx_file import to_onnx
from quantcfg.export.ops import SINGLE
from quantcfg.export.program import Program, export_program
from quantcfg.export.session import FileModel, input_names, open_session, runner
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, set_fake_quantize
from quantcfg.qconfig import QConfig, get_default_qconfig
from quantcfg.stages.progress import Silence


def qconfig(activation: str = "qint8", weight: str = "qint8", *, affine: bool = False) -> QConfig:
    """Activations per tensor, weights per channel, both symmetric or both affine."""
    kind = "affine" if affine else "symmetric"
    return get_default_qconfig(
        activation_qkwargs={"dtype": activation, "qscheme": f"per_tensor_{kind}"},
        weight_qkwargs={"dtype": weight, "qscheme": f"per_channel_{kind}", "ch_axis": 0},
    )


@dataclass
class Exported:
    model: nn.Module  # fake-quant
    frozen: FrozenModel
    program: Program
    proto: onnx.ModelProto

    def file(self, *, optimised: bool = False) -> FileModel:
        session = open_session(self.proto.SerializeToString(), optimised=optimised)
        return FileModel(self.program, input_names(self.proto), runner(session))

    def constants(self) -> dict[str, np.ndarray]:
        return {t.name: onnx.numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    def nodes(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type == op]


def calibrated(model: nn.Module, qconfig: Mapping[str, Any], args: tuple[Any, ...]) -> nn.Module:
    prepared = prepare(model.eval(), qconfig, example_inputs=args)
    with calibrating(prepared):
        prepared(*args)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return prepared.eval()


def exported(model: nn.Module, qconfig: Mapping[str, Any], args: tuple[Any, ...]) -> Exported:
    return exported_as_prepared(calibrated(model, qconfig, args), args)


def exported_as_prepared(prepared: nn.Module, args: tuple[Any, ...]) -> Exported:
    frozen = freeze(deployed(prepared, in_float32=True), lambda m: m(*args), SINGLE)
    call = Call(args, {}).in_float32()
    program = export_program(frozen.model, call, varying_axes([call]), Silence())
    return Exported(prepared, frozen, program, ir.to_proto(to_onnx(program, {})))


def leaves(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
