"""Prepare, calibrate and train real architectures, and print what became of each.

Random weights are enough: what is looked at is whether a model can be prepared unchanged, which of its ops
are quantized, and whether gradients reach what they reach in float. Where 8 bits leave little of the output,
the same quantizers with 16 bits tell noise, which random weights amplify, from a mistake of ours. Needs
torchvision, timm and transformers, installed without their dependencies; `make models` does it.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quantcfg as qc
from quantcfg.numeric.qparams import EPS
from quantcfg.preparation.tensors import tensors_in
from tests.models.operators import declare_operators

Maker = Callable[[], tuple[nn.Module, dict[str, Any]]]


@dataclass
class Outcome:
    """One line of the table."""

    name: str
    ok: bool = False
    ops: int = 0
    quantized: int = 0
    passed: int = 0
    float_reasons: dict[str, int] = field(default_factory=dict)
    macs_share: float = 0.0
    cosine: float = 0.0
    note: str = ""
    prepare_s: float = 0.0
    forward_s: float = 0.0
    error: str = ""


_HUGE = frozenset({"regnet_y_128gf"})  # cannot be sized without being built
_LOW, _HIGH = 0.9, 0.99  # cosines: below the one 8 bits are questioned, above the other 16 bits answer


def torchvision_models() -> Iterator[tuple[str, Maker]]:
    from torchvision import models

    for name in models.list_models(module=models):
        if not name.startswith("quantized") and name not in _HUGE:
            yield f"torchvision/{name}", lambda name=name: (_torchvision(models, name), _image(name))

    for package, inputs in _TASKS.items():
        for name in models.list_models(module=getattr(models, package)):
            yield (
                f"torchvision/{name}",
                lambda name=name, inputs=inputs: (_torchvision(models, name), inputs(name)),
            )


def _torchvision(models: Any, name: str) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if any(part in name for part in ("rcnn", "retinanet", "fcos", "ssd", "deeplab", "fcn", "lraspp")):
        options["weights_backbone"] = None
    if any(part in name for part in ("rcnn", "retinanet", "fcos")):
        options |= {"min_size": 128, "max_size": 160}
    if "rcnn" in name:
        options |= dict.fromkeys(("rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test"), 50)
    return models.get_model(name, **options)


def _detection(name: str) -> dict[str, Any]:
    """Two images of different sizes with a box each: a detector returns its losses in training."""
    size = 320 if "ssd" in name else 128
    target = {
        "boxes": torch.tensor([[10.0, 12.0, 90.0, 96.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, size, size, dtype=torch.uint8),
        "keypoints": torch.tensor([[[40.0, 40.0, 1.0]] * 17]),
    }
    return {
        "images": [torch.rand(3, size, size), torch.rand(3, size, size - 32)],
        "targets": [target, target | {"masks": target["masks"][:, :, 32:]}],
    }


def _segmentation(name: str) -> dict[str, Any]:
    del name
    return {"x": torch.randn(2, 3, 96, 96)}


def _video(name: str) -> dict[str, Any]:
    size = 224 if "mvit" in name or name == "s3d" else 112
    return {"x": torch.randn(2, 3, 16, size, size)}


def _flow(name: str) -> dict[str, Any]:
    del name
    return {
        "image1": torch.randn(1, 3, 128, 128),
        "image2": torch.randn(1, 3, 128, 128),
        "num_flow_updates": 3,
    }


_TASKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "detection": _detection,
    "segmentation": _segmentation,
    "video": _video,
    "optical_flow": _flow,
}


def _image(name: str) -> dict[str, Any]:
    size = 299 if "inception" in name else 518 if "h_14" in name else 224
    return {"x": torch.randn(2, 3, size, size)}


def timm_models() -> Iterator[tuple[str, Maker]]:
    import timm

    for family in timm.list_modules():
        names = sorted(timm.list_models(module=family), key=lambda name: (_weight_of(name), len(name)))
        if names:
            yield f"timm/{family}/{names[0]}", lambda name=names[0]: _timm(timm, name)


def _weight_of(name: str) -> int:
    order = ("test", "atto", "nano", "pico", "femto", "tiny", "xxs", "xs", "small", "s_", "base", "b0", "18")
    return next((rank for rank, part in enumerate(order) if part in name), len(order))


def _timm(timm: Any, name: str) -> tuple[nn.Module, dict[str, Any]]:
    model = timm.create_model(name, pretrained=False)
    return model, {"x": torch.randn(2, *model.default_cfg["input_size"])}


def transformers_models() -> Iterator[tuple[str, Maker]]:
    from benchmarks.transformers_cases import cases

    yield from cases()


def examine(name: str, make: Maker) -> Outcome:
    """Everything the issue asks of one model, on inputs of two batches."""
    outcome = Outcome(name)
    try:
        torch.manual_seed(0)
        model, inputs = make()
        _fill_zeros(model)
        _examine(model.eval(), inputs, outcome)
        outcome.ok = True
    except Exception as error:  # whatever a model raises is a line of the table
        outcome.error = f"{type(error).__name__}: {error}".splitlines()[0][:180]
        traceback.print_exc(limit=-3, file=sys.stderr)
    return outcome


def _examine(model: nn.Module, inputs: dict[str, Any], outcome: Outcome) -> None:
    def run(module: nn.Module) -> list[torch.Tensor]:
        own = copy.deepcopy(inputs)  # some models write into their inputs
        torch.manual_seed(0)  # and some draw random numbers
        result = module(own["x"]) if set(own) == {"x"} else module(**own)
        return [t for t in tensors_in(result) if t.is_floating_point()]

    with torch.no_grad():
        _warm(model, run)
        begin = time.perf_counter()
        expected = run(model)
        outcome.forward_s = time.perf_counter() - begin
        begin = time.perf_counter()
        prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, forward=run, bn="keep")
        outcome.prepare_s = time.perf_counter() - begin
        _fill(outcome, qc.plan_of(prepared))
        qc.set_fake_quantize(prepared, qc.FakeQuantState.FLOAT)
        for actual, wanted in zip(run(prepared), expected, strict=True):
            if not torch.equal(actual, wanted):
                raise AssertionError("the FLOAT state differs from the original")
        with qc.calibrating(prepared):
            run(prepared)
            run(prepared)
        qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
        outcome.cosine = _cosine(run(prepared)[0], expected[0])
        outcome.note = _note(outcome.cosine, model, run, expected[0])
    _train(model, prepared, run)
    fresh = qc.prepare(model, {"": qc.get_default_qconfig()}, forward=run, bn="keep")
    fresh.load_state_dict(prepared.state_dict())


@torch.no_grad()
def _fill_zeros(model: nn.Module) -> None:
    """Give weights that start at zeros other values: nothing would be seen of what is before them."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _warm(model: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]]) -> None:
    """Let batch norms see a batch: with random weights and no statistics, deep models fade to nothing."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    run(model.train() if norms else model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _fill(outcome: Outcome, plan: qc.Plan) -> None:
    outcome.ops = len(plan.rows)
    outcome.quantized = sum(row.role in ("quantized", "fused") for row in plan.rows)
    outcome.passed = sum(row.role == "passed through" for row in plan.rows)
    outcome.float_reasons = dict(Counter(row.reason for row in plan.rows if row.role == "float"))
    outcome.macs_share = plan.coverage.macs_share


def _note(
    cosine: float, model: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]], expected: torch.Tensor
) -> str:
    """What a low cosine comes from.

    Raises:
        AssertionError: neither from having 8 bits only nor from the model: a quantizer stands where none may.
    """
    if math.isnan(cosine):
        return "finds another number of objects"
    if cosine > _LOW:
        return ""
    if not expected.numel():
        return "finds no object"
    if (most := float(expected.abs().max())) < EPS:
        return f"random weights leave {most:.0e} of the output, which no scale is small enough for"
    wide = _of_16_bits(model, run, expected)
    if wide > _HIGH:
        return f"with 16 bits {wide:.4f}: random weights amplify what 8 bits leave out"
    alone = _cosine(run(_shaken(model))[0], expected)
    if alone > _HIGH:
        raise AssertionError(f"cosine {cosine:.4f} with 8 bits, and {wide:.4f} with 16")
    return f"with 16 bits {wide:.4f}; in float, weights that differ by 1e-4 leave {alone:.4f}"


def _shaken(model: nn.Module) -> nn.Module:
    """The float model with weights that are off by 1e-4 of their value, about what 16 bits leave out."""
    shaken = copy.deepcopy(model)
    for parameter in shaken.parameters():
        parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
    return shaken


def _of_16_bits(
    model: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]], expected: torch.Tensor
) -> float:
    """The cosine that the same quantizers leave when they have 16 bits."""
    wide = {"dtype": "qint16"}
    qconfig = qc.get_default_qconfig(activation_qkwargs=wide, weight_qkwargs=wide)
    prepared = qc.prepare(model, {"": qconfig}, forward=run, bn="keep")
    with qc.calibrating(prepared):
        run(prepared)
    qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
    return _cosine(run(prepared)[0], expected)


def _cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.shape != right.shape:
        return math.nan  # a detector that finds another number of boxes
    finite = right.isfinite()
    return float(torch.cosine_similarity(left[finite].double(), right[finite].double(), dim=0))


def _train(model: nn.Module, prepared: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]]) -> None:
    reached = []
    for module in (copy.deepcopy(model), prepared):
        if module is prepared:
            qc.set_fake_quantize(prepared, qc.FakeQuantState.QAT)
        module.train().zero_grad()
        sum(t.float().square().mean() for t in run(module)).backward()
        reached.append({name for name, p in module.named_parameters() if p.grad is not None})
    missing = reached[0] - reached[1]
    if missing:
        raise AssertionError(f"no gradient for {sorted(missing)[:3]}")
    broken = [n for n, p in prepared.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if broken:
        raise AssertionError(f"gradient not finite: {broken[:3]}")


SOURCES = {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=list(SOURCES), help="torchvision, timm, transformers")
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--limit-params", type=float, default=60e6, help="skip larger models")
    parser.add_argument(
        "--json", type=Path, help="where to keep the outcomes; models that passed there are not run again"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    declare_operators()
    outcomes = _passed(options.json)
    for source in options.sources or SOURCES:
        for name, make in SOURCES[source]():
            if name not in outcomes and options.only in name and _size(make) <= options.limit_params:
                outcomes[name] = examine(name, make)
                print(line(outcomes[name]), flush=True)
                gc.collect()  # a prepared model refers to itself: left alone, the large ones pile up
                _keep(outcomes, options.json)
    print(f"{sum(outcome.ok for outcome in outcomes.values())} of {len(outcomes)} models passed")
    sys.exit(0 if all(outcome.ok for outcome in outcomes.values()) else 1)


def _passed(path: Path | None) -> dict[str, Outcome]:
    """The outcomes of an earlier run that was broken off, but for its failures."""
    if path is None or not path.exists():
        return {}
    found = (Outcome(**fields) for fields in json.loads(path.read_text()))
    return {outcome.name: outcome for outcome in found if outcome.ok}


def _keep(outcomes: dict[str, Outcome], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps([asdict(outcome) for outcome in outcomes.values()], indent=1) + "\n")


def _size(make: Maker) -> int:
    with torch.device("meta"):
        try:
            return sum(p.numel() for p in make()[0].parameters())
        except Exception:  # a model that cannot be built without data is built for real
            return 0


def line(outcome: Outcome) -> str:
    """One row of the table."""
    if not outcome.ok:
        return f"{outcome.name:58} FAILED  {outcome.error}"
    floats = sum(outcome.float_reasons.values())
    return (
        f"{outcome.name:58} {outcome.ops:5} ops {outcome.quantized:5} quantized {outcome.passed:5} passed "
        f"{floats:4} float  macs {outcome.macs_share:6.1%}  cosine {outcome.cosine:.4f}  "
        f"prepare {outcome.prepare_s:5.2f} s = {outcome.prepare_s / outcome.forward_s:4.1f} forwards"
        f"{outcome.note and '  '}{outcome.note}"
    )


if __name__ == "__main__":
    main()
