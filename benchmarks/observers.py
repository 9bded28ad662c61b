"""Observers beside their peers, one batch and the solving at the end: ``python -m benchmarks.observers``.

Budgets are those of the design: a batch in copies of a 32x64x56x56 float32 activation, solving in
milliseconds, and the true squared error of the range that mse finds over that of the best of 1,000.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, arguments, begin, measure, milliseconds, peer, print_table, write_json
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.qparams import QParams, choose_qparams, fake_quantize

ACTIVATION, SMALL, WEIGHT = (32, 64, 56, 56), (16, 128, 384), (512, 512, 3, 3)
SOLVED = ("percentile", "mse", "kl", "mix")
BUDGETS = {"min_max": 1.0, **dict.fromkeys(SOLVED, 6.0)}
SOLVING_BUDGET, ERROR_BUDGET = 5.0, 1.005


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    begin(options)
    torch.manual_seed(0)
    x = torch.randn(ACTIVATION, device=options.device)
    small = torch.randn(SMALL, device=options.device)
    results = measure(list(_cases(x)), x, rounds=options.rounds)
    results += measure(list(_small_cases(small)), small, rounds=options.rounds)
    print_table(results)
    solving, errors = _solving(x, rounds=options.rounds), _errors(options.device)
    _print_figures("solving, ms", solving, {f"{kind}, tensor": SOLVING_BUDGET for kind in SOLVED})
    _print_figures("error of mse over the best of 1,000", errors, dict.fromkeys(errors, ERROR_BUDGET))
    if options.json:
        write_json(options.json, results, solving_ms=solving, mse_over_best=errors)


def _cases(x: Tensor) -> Iterator[Case]:
    for kind, observer_type in OBSERVERS.items():
        yield Case(f"{kind}, one batch", "quantcfg", _see(observer_type(), x), BUDGETS.get(kind))
    yield Case("relu, mse, one batch", "quantcfg", _see(OBSERVERS["mse"](), x.relu()), BUDGETS["mse"])
    for kind in ("min_max", "mse"):
        yield Case(f"{kind} per channel, one batch", "quantcfg", _see(_per_channel(kind, x, 1), x))
    for kind in SOLVED:
        yield Case(f"{kind}, one step of training", "quantcfg", _see(_training(kind), x))
    yield from (Case("one batch", tool, run) for tool, run in _peers(x))


def _small_cases(x: Tensor) -> Iterator[Case]:
    shape = "x".join(map(str, x.shape))
    for kind in ("min_max", *SOLVED):
        yield Case(f"{kind}, one batch of {shape}", "quantcfg", _see(OBSERVERS[kind](), x))
    yield from (Case(f"one batch of {shape}", tool, run) for tool, run in _peers(x))


def _see(observer: Observer, x: Tensor) -> Callable[[], object]:
    return partial(observer.to(x.device), x)


def _per_channel(kind: str, x: Tensor, ch_axis: int) -> Observer:
    channels = {"ch_axis": ch_axis, "num_channels": x.shape[ch_axis]}
    return OBSERVERS[kind](qscheme="per_channel_symmetric", **channels).to(x.device)


def _training(kind: str) -> Observer:
    observer = OBSERVERS[kind]()
    observer.fold_batches = True
    return observer


def _peers(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """torch.ao's observers, while torch still has them."""
    if (module := peer("torch.ao.quantization.observer")) is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("MinMaxObserver", "HistogramObserver"):
            yield f"ao {name.removesuffix('Observer')}", partial(getattr(module, name)().to(x.device), x)


def _solving(x: Tensor, *, rounds: int) -> dict[str, float]:
    """Milliseconds for the range of the activation, and to see a weight and choose its ranges."""
    weight = torch.randn(WEIGHT, device=x.device)
    runs: dict[str, Callable[[], object]] = {}
    for kind in SOLVED:
        observer = OBSERVERS[kind]().to(x.device)
        observer(x)
        runs[f"{kind}, tensor"] = partial(_solve_again, observer)
        runs[f"{kind}, weight of {WEIGHT[0]} channels"] = partial(_see_once, kind, weight)
    return dict(zip(runs, milliseconds(list(runs.values()), x, rounds=rounds), strict=True))


def _solve_again(observer: Observer) -> QParams:
    observer.reset_dtype("qint8")  # forgets the solution and nothing else
    return observer.qparams()


def _see_once(kind: str, weight: Tensor) -> QParams:
    observer = _per_channel(kind, weight, 0)
    observer(weight)
    return observer.qparams()


def _errors(device: str) -> dict[str, float]:
    """The squared error of what mse finds over the least of 1,000 ranges; qint8, 200,000 values."""
    normal = torch.randn(200_000, device=device)
    outliers = torch.where(torch.rand_like(normal) < 0.003, normal * 30, normal)
    data = {
        "student-t(3)": torch.distributions.StudentT(3.0).sample((200_000,)).to(device),
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample((200_000,)).to(device),
        "relu of normal": normal.relu(),
        "outliers": outliers,
    }
    return {name: _error_of_mse(x) / _least_error(x) for name, x in data.items()}


def _error_of_mse(x: Tensor) -> float:
    observer = OBSERVERS["mse"]().to(x.device)
    observer(x)
    return _squared_error(x, observer.qparams())


def _least_error(x: Tensor) -> float:
    low, high = x.min(), x.max()
    grid = {"quant_min": -128, "quant_max": 127, "symmetric": True}
    return min(
        _squared_error(x, choose_qparams(low * k / 1000, high * k / 1000, **grid)) for k in range(1, 1001)
    )


def _squared_error(x: Tensor, qparams: QParams) -> float:
    error = fake_quantize(x, qparams, quant_min=-128, quant_max=127) - x
    return float(error.square().sum(dtype=torch.float64))


def _print_figures(title: str, figures: dict[str, float], budgets: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, figure in figures.items():
        missed = " missed" if figure > budgets.get(name, figure) else ""
        print(f"{name:<46} {figure:8.3f} {budgets.get(name, ''):>7}{missed}")


if __name__ == "__main__":
    main()
