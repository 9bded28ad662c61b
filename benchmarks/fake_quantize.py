"""Fake quantize, forward and backward, beside its peers: ``python -m benchmarks.fake_quantize``.

Budgets are those of the design, in copies of the tensor: a 32x64x56x56 float32 activation, and a 512x512x3x3
weight for the per-channel rows. A weight is a leaf of the graph, an activation is not. The rows "clone" are
the floor: an autograd function that does no arithmetic, copies its input in forward and the gradient in
backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Result, arguments, begin, measure, peer, print_table, write_json
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES, FakeQuantizeBase
from quantcfg.numeric.observers.min_max import MinMaxObserver

ACTIVATION, WEIGHT = (32, 64, 56, 56), (512, 512, 3, 3)


@dataclass(frozen=True, slots=True)
class Work:
    """A row: a kind of fake quantize, and its budgets in eager mode and compiled, in copies of the tensor."""

    kind: str
    eager: float
    compiled: float
    is_weight: bool = False
    observing: bool = False
    backward: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """What it works on."""
        return WEIGHT if self.is_weight else ACTIVATION


WORKS = {
    "fake_quant forward": Work("fake_quant", 3.0, 1.3, backward=False),
    "fake_quant forward + backward": Work("fake_quant", 6.5, 4.2),
    "fake_quant forward + backward, min_max on": Work("fake_quant", 7.5, 5.0, observing=True),
    "lsq forward + backward": Work("lsq", 8.5, 4.2),
    "pact forward + backward": Work("pact", 9.0, 4.2),
    "lsq per channel, weight": Work("lsq", 12.0, 5.7, is_weight=True),
    "fake_quant per channel, weight, min_max on": Work(
        "fake_quant", 8.0, 5.5, is_weight=True, observing=True
    ),
}


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    begin(options)
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
    works = {title: work for title, work in WORKS.items() if work.shape == shape}
    cases = [case for title in works for case in _cases(title, works[title], x, compiled=compiled)]
    return measure([*_clones(x, compiled=compiled), *cases], x, rounds=rounds)


def _clones(x: Tensor, *, compiled: bool) -> Iterator[Case]:
    work = f"clone forward + backward, {'x'.join(map(str, x.shape))}"
    yield Case(work, "torch", _run(_Clone.apply, x=x, backward=True))
    if compiled:
        torch._dynamo.reset()
        clone = torch.compile(lambda x: _Clone.apply(x), fullgraph=True)
        yield Case(work, "torch compiled", _run(clone, x=x, backward=True))


class _Clone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad.clone()


def _cases(title: str, work: Work, x: Tensor, *, compiled: bool) -> Iterator[Case]:
    run = partial(_run, x=x, backward=work.backward)
    build = partial(_quantcfg, work.kind, x, observing=work.observing, per_channel=work.is_weight)
    yield Case(title, "quantcfg", run(build()), work.eager)
    if compiled:
        torch._dynamo.reset()
        yield Case(title, "quantcfg compiled", run(torch.compile(build(), fullgraph=True)), work.compiled)
    for tool, module in _peers(work.kind, x, observing=work.observing, per_channel=work.is_weight):
        yield Case(title, tool, run(module))


def _run(module: Callable[[Tensor], Tensor], *, x: Tensor, backward: bool) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(partial(module, x))
    leaf, grad = x.clone().requires_grad_(), torch.randn_like(x)
    is_weight = x.shape == WEIGHT

    def step() -> None:
        module(leaf if is_weight else leaf.view_as(leaf)).backward(grad)
        leaf.grad = None

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


def _peers(kind: str, x: Tensor, *, observing: bool, per_channel: bool) -> Iterator[tuple[str, nn.Module]]:
    """The same work in torch.ao and torchao, where they are installed. Neither has PACT."""
    ao = peer("torch.ao.quantization")
    learned = peer("torch.ao.quantization._learnable_fake_quantize")
    if kind == "lsq" and learned is not None:
        learnable = partial(learned._LearnableFakeQuantize, channel_len=x.shape[0] if per_channel else -1)
        module = _observing(ao, learnable, x, per_channel=per_channel)
        module.enable_param_learning()
        yield "torch.ao", module
    if kind == "fake_quant":
        for tool, library in {"torch.ao": ao, "torchao": peer("torchao.quantization.pt2e")}.items():
            if library is None:
                continue
            module = _observing(library, library.FakeQuantize, x, per_channel=per_channel)
            if not observing:
                module.disable_observer()
            yield tool, module


def _observing(library: Any, kind: Callable[..., nn.Module], x: Tensor, *, per_channel: bool) -> Any:
    """A fake quantize of ``library`` that has seen ``x``."""
    channels = "PerChannel" if per_channel else ""
    observer = getattr(library, f"MovingAverage{channels}MinMaxObserver")
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    grid = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8, "qscheme": scheme}
    module = kind(observer, **grid).to(x.device)
    module(x)
    return module


if __name__ == "__main__":
    main()
