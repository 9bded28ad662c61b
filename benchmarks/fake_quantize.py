"""Fake quantize, forward and backward, beside torch.ao: ``python -m benchmarks.fake_quantize``.

Budgets are those of the design, in copies of the tensor: a 32x64x56x56 float32 activation, and a 512x512x3x3
weight for the per-channel rows.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Result, measure, print_table, write_json
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES, FakeQuantizeBase
from quantcfg.numeric.observers.min_max import MinMaxObserver

ACTIVATION, WEIGHT = (32, 64, 56, 56), (512, 512, 3, 3)

# work: (shape, fake quantize, observer on, backward, eager budget, compiled budget)
WORKS = {
    "fake_quant forward": (ACTIVATION, "fake_quant", False, False, 3.0, 1.3),
    "fake_quant forward + backward": (ACTIVATION, "fake_quant", False, True, 6.5, 4.2),
    "fake_quant forward + backward, min_max on": (ACTIVATION, "fake_quant", True, True, 7.5, 5.0),
    "lsq forward + backward": (ACTIVATION, "lsq", False, True, 8.5, 4.2),
    "pact forward + backward": (ACTIVATION, "pact", False, True, 9.0, 4.2),
    "lsq per channel, weight": (WEIGHT, "lsq", False, True, 12.0, 5.7),
    "fake_quant per channel, weight, min_max on": (WEIGHT, "fake_quant", True, True, 8.0, 5.5),
}


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    results = [
        result
        for shape in (ACTIVATION, WEIGHT)
        for result in _measure(shape, options.device, options.rounds, compiled=not options.no_compile)
    ]
    print_table(results)
    if options.json:
        write_json(options.json, results)


def _measure(shape: tuple[int, ...], device: str, rounds: int, *, compiled: bool) -> list[Result]:
    torch.manual_seed(0)
    x = torch.randn(shape, device=device)
    cases = [case for work in WORKS if WORKS[work][0] == shape for case in _cases(work, x, compiled=compiled)]
    return measure(cases, x, rounds=rounds)


def _cases(work: str, x: Tensor, *, compiled: bool) -> Iterator[Case]:
    shape, kind, observing, backward, eager_budget, compiled_budget = WORKS[work]
    per_channel = shape == WEIGHT
    run = partial(_run, x=x, backward=backward)
    build = partial(_quantcfg, kind, x, observing=observing, per_channel=per_channel)
    yield Case(work, "quantcfg", run(build()), eager_budget)
    if compiled:
        torch._dynamo.reset()
        yield Case(work, "quantcfg compiled", run(torch.compile(build(), fullgraph=True)), compiled_budget)
    peer = _torch_ao(kind, x, observing=observing, per_channel=per_channel)
    if peer is not None:
        yield Case(work, "torch.ao", run(peer))


def _run(module: Callable[[Tensor], Tensor], *, x: Tensor, backward: bool) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(partial(module, x))
    leaf, grad = x.clone().requires_grad_(), torch.randn_like(x)

    def step() -> None:
        leaf.grad = None
        module(leaf).backward(grad)

    return step


def _quantcfg(kind: str, x: Tensor, *, observing: bool, per_channel: bool) -> FakeQuantizeBase:
    scheme = "per_channel_symmetric" if per_channel else "per_tensor_symmetric"
    channels = {"ch_axis": 0, "num_channels": x.shape[0]} if per_channel else {}
    observer = MinMaxObserver(qscheme=scheme, **channels)
    observer.fold_batches = True
    module = FAKE_QUANTIZES[kind](observer).to(x.device)
    module.observing = True
    module(x)
    module.finish_observation()
    module.observing, module.quantizing = observing, True
    return module


def _torch_ao(kind: str, x: Tensor, *, observing: bool, per_channel: bool) -> nn.Module | None:
    from torch.ao import quantization as ao
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

    if kind == "pact":
        return None
    grid = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    observer = ao.MovingAveragePerChannelMinMaxObserver if per_channel else ao.MovingAverageMinMaxObserver
    if kind == "lsq":
        module = _LearnableFakeQuantize(
            observer.with_args(qscheme=scheme), channel_len=x.shape[0] if per_channel else -1, **grid
        )
        module.to(x.device)(x)
        module.enable_param_learning()
        return module
    module = ao.FakeQuantize(observer, qscheme=scheme, **grid).to(x.device)
    module(x)
    if not observing:
        module.disable_observer()
    return module


if __name__ == "__main__":
    main()
