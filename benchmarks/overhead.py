"""What a training step, a calibration pass and preparing cost over the float model, beside torch.ao.

    python -m benchmarks.overhead [--rounds N] [--threads N] [--only MODEL] [--work NAME ...] [--json FILE]

Every round times each candidate once, in turn, so that a busy machine slows all of them alike. A figure is
the median over rounds of a candidate's time by that of the float model in the same round.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantcfg as qc
from benchmarks.harness import Run, arguments, begin, peer, write_json

BUDGETS = {
    ("resnet18", "qat", "eager"): 1.20, ("resnet18", "qat", "compiled"): 1.10,
    ("encoder", "qat", "eager"): 1.08, ("encoder", "qat", "compiled"): 1.02,
    ("resnet18", "min_max", "eager"): 1.03, ("encoder", "min_max", "eager"): 1.08,
    **{("resnet18", observer, "eager"): 1.15 for observer in ("percentile", "mse", "kl")},
    **{("encoder", observer, "eager"): 1.12 for observer in ("percentile", "mse", "kl")},
    ("resnet50", "prepare", "eager"): 3.0,
}  # fmt: skip


class BasicBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(out), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        inner = out // 4
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2015, arXiv 1512.03385, table 1: ``depths`` blocks of the four widths."""

    def __init__(self, block: type[nn.Module], depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(*(
            nn.Sequential(block(before, out, 1 if out == widths[0] else 2),
                          *(block(out, out, 1) for _ in range(depth - 1)))
            for depth, (before, out) in zip(depths, itertools.pairwise((64, *widths)), strict=True)
        ))  # fmt: skip
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.average(self.layers(self.pool(self.stem(x)))).flatten(1))


def resnet18() -> nn.Module:
    return ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512))


def resnet50() -> nn.Module:
    return ResNet(Bottleneck, (3, 4, 6, 3), (256, 512, 1024, 2048))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """The size of MiniLM-L6-H384 (Wang et al. 2020, arXiv 2002.10957), from embeddings on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(384, 12, 1536) for _ in range(6)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet18": lambda: (resnet18(), torch.randn(16, 3, 128, 128)),
    "encoder": lambda: (MiniLM(), torch.randn(16, 128, 384)),
    "resnet50": lambda: (resnet50(), torch.randn(1, 3, 224, 224)),
}


WORK = {
    "resnet50": ("prepare",),
    **dict.fromkeys(("resnet18", "encoder"), ("qat", "min_max", "percentile", "mse", "kl", "compiled")),
}


@dataclass(frozen=True, slots=True)
class Result:
    """The ratio of one candidate's time to that of the float model: median, and best by best."""

    model: str
    work: str
    mode: str
    tool: str
    ratio: float
    best: float
    float_ms: float
    budget: float | None


def measure(model: str, work: str, mode: str, runs: dict[str, Run], rounds: int) -> list[Result]:
    """Time the candidates in turn; the first one is the float model."""
    for run in runs.values():
        run(), run()
    seconds = [{tool: _seconds(run) for tool, run in runs.items()} for _ in range(rounds)]
    floats = [row["float"] for row in seconds]
    return [
        Result(
            model, work, mode, tool,
            ratio=statistics.median(row[tool] / row["float"] for row in seconds),
            best=min(row[tool] for row in seconds) / min(floats),
            float_ms=statistics.median(floats) * 1e3,
            budget=BUDGETS.get((model, work, mode)) if tool == "quantcfg" else None,
        )
        for tool in runs if tool != "float"
    ]  # fmt: skip


def _seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def training_step(model: nn.Module, x: Tensor, *, compiled: bool) -> Run:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4)
    call = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        call(x).square().mean().backward()
        optimizer.step()

    return step


def qat_runs(make: Callable[[], tuple[nn.Module, Tensor]], *, compiled: bool) -> dict[str, Run]:
    model, x = make()
    prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, example_inputs=(x,), stage="qat")
    with qc.calibrating(prepared):
        prepared(x)
    models = {"float": copy.deepcopy(model), "quantcfg": prepared, "torch.ao": _torch_ao_qat(model, x)}
    return {name: training_step(m, x, compiled=compiled) for name, m in models.items() if m is not None}


def _torch_ao_qat(model: nn.Module, x: Tensor) -> nn.Module | None:
    """The same with torch.ao's FX mode."""
    if (fx := peer("torch.ao.quantization.quantize_fx")) is None:
        return None
    mapping = torch.ao.quantization.get_default_qat_qconfig_mapping("x86")
    return fx.prepare_qat_fx(copy.deepcopy(model).train(), mapping, (x,))


def calibration_runs(make: Callable[[], tuple[nn.Module, Tensor]], observer: str) -> dict[str, Run]:
    model, x = make()
    qconfig = qc.get_default_qconfig(activation_observer=observer, weight_observer="min_max")
    prepared = qc.prepare(model.eval(), {"": qconfig}, example_inputs=(x,), stage="calib").eval()
    models = {"float": model, "quantcfg": prepared}
    counterpart = {"min_max": "MinMaxObserver", "mse": "HistogramObserver"}.get(observer)
    if counterpart is not None:
        models["torch.ao"] = _torch_ao_calibration(model, x, counterpart)
    return {name: _forward(m, x) for name, m in models.items() if m is not None}


def _torch_ao_calibration(model: nn.Module, x: Tensor, observer: str) -> nn.Module | None:
    if (fx := peer("torch.ao.quantization.quantize_fx")) is None:
        return None
    ao = torch.ao.quantization
    qconfig = ao.QConfig(getattr(ao, observer), ao.default_weight_observer)
    return fx.prepare_fx(copy.deepcopy(model), ao.QConfigMapping().set_global(qconfig), (x,))


def preparing_runs(make: Callable[[], tuple[nn.Module, Tensor]]) -> dict[str, Run]:
    """Prepare, beside one float forward of the same input."""
    model, x = make()
    config = {"": qc.get_default_qconfig()}
    prepare = partial(qc.prepare, model, config, example_inputs=(x,), stage="qat")
    return {"float": _forward(model.eval(), x), "quantcfg": prepare}


def _forward(model: nn.Module, x: Tensor) -> Run:
    @torch.no_grad()
    def run() -> None:
        model(x)

    return run


def benchmark(name: str, work: str, rounds: int) -> list[Result]:
    """``work`` as in `WORK`: the qat step (``compiled``: by torch.compile), an observer, or preparing."""
    torch.manual_seed(0)
    make = MODELS[name]
    if work == "prepare":
        return measure(name, work, "eager", preparing_runs(make), rounds)
    if work == "qat":
        return measure(name, work, "eager", qat_runs(make, compiled=False), rounds)
    if work == "compiled":
        return measure(name, "qat", "compiled", qat_runs(make, compiled=True), rounds)
    return measure(name, work, "eager", calibration_runs(make, work), rounds)


def line(result: Result) -> str:
    budget = "" if result.budget is None else f"{result.budget:.2f}"
    missed = " missed" if result.budget is not None and result.ratio > result.budget else ""
    return (
        f"{result.model:<10} {result.work:<11} {result.mode:<9} {result.tool:<10} {result.ratio:6.2f} "
        f"{result.best:6.2f} {budget:>7} {result.float_ms:9.1f}{missed}"
    )


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--only", choices=list(MODELS), help="one model")
    choices = sorted({work for works in WORK.values() for work in works})
    parser.add_argument("--work", nargs="+", choices=choices, help="some rows; compiled ones take minutes")
    options = parser.parse_args()
    begin(options)
    warnings.simplefilter("ignore")
    print(
        f"{'model':<10} {'work':<11} {'mode':<9} {'tool':<10} {'ratio':>6} {'best':>6} {'budget':>7} "
        f"{'float ms':>9}"
    )
    results = []
    for name in [options.only] if options.only else MODELS:
        for work in (work for work in WORK[name] if options.work is None or work in options.work):
            for result in benchmark(name, work, options.rounds):
                results.append(result)
                print(line(result), flush=True)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
