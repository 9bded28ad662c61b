"""Observers side by side: what a batch and the end of a calibration cost, as multiples of one copy.

    python benchmarks/observers.py [--rounds N] [--threads N] [--device cpu|cuda] [--json FILE]

Every round times each candidate once, in turn, so that a busy machine slows all of them alike; the table has
the median, and the least of the rounds beside it. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from quantcfg.numeric.observers import OBSERVERS

SHAPE = (32, 64, 56, 56)
BUDGETS = {"min_max": 1.0, "percentile": 6.0, "mse": 6.0, "kl": 6.0, "mix": 6.0}
SOLVE_BUDGET_MS = 5.0


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    x = torch.randn(SHAPE, device=arguments.device)
    batch = measure(batch_candidates(x), arguments.rounds, arguments.device)
    solve = measure(solve_candidates(x), arguments.rounds, arguments.device)
    report = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "device": arguments.device,
        "copy_ms": batch["copy"][0],
        "batch_copies": {
            name: [time_ms / batch["copy"][k] for k, time_ms in enumerate(times)]
            for name, times in batch.items()
        },
        "solve_ms": solve,
    }
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def batch_candidates(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    copy = torch.empty_like(x)
    candidates: dict[str, Callable[[], object]] = {"copy": lambda: copy.copy_(x)}
    for kind, observer_type in OBSERVERS.items():
        observer = observer_type().to(x.device)
        candidates[kind] = lambda observer=observer: observer(x)
    per_channel = {"qscheme": "per_channel_symmetric", "ch_axis": 1, "num_channels": SHAPE[1]}
    for kind in ("min_max", "mse"):
        observer = OBSERVERS[kind](**per_channel).to(x.device)
        candidates[f"{kind} per channel"] = lambda observer=observer: observer(x)
    return candidates | peers(x)


def peers(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """torch.ao's observers, while torch still has them."""
    try:
        module = importlib.import_module("torch.ao.quantization.observer")
    except ImportError:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [getattr(module, name)().to(x.device) for name in ("MinMaxObserver", "HistogramObserver")]
    return {
        f"torch.ao {type(observer).__name__}": lambda observer=observer: observer(x) for observer in found
    }


def solve_candidates(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    candidates: dict[str, Callable[[], object]] = {}
    for kind in ("percentile", "mse", "kl", "mix"):
        observer = OBSERVERS[kind]().to(x.device)
        observer(x)

        def solve(observer=observer) -> None:
            observer.reset_dtype("qint8")  # forgets the solution and nothing else
            observer.qparams()

        candidates[kind] = solve
    return candidates


def measure(
    candidates: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, tuple[float, float]]:
    """Milliseconds of each candidate: the median and the least."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, run in candidates.items():
            elapsed = timed(run, device)
            if turn >= 2:  # the first two warm up
                times[name].append(elapsed)
    return {name: (statistics.median(found), min(found)) for name, found in times.items()}


def timed(run: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def print_report(report: dict) -> None:
    print(
        f"torch {report['torch']}, {report['threads']} threads, {report['device']}: "
        f"one copy {report['copy_ms']:.2f} ms"
    )
    print(f"{'one batch':<28}{'copies':>8}{'least':>8}{'budget':>8}")
    for name, (median, least) in report["batch_copies"].items():
        print(f"{name:<28}{median:>8.2f}{least:>8.2f}{BUDGETS.get(name, ''):>8}")
    print(f"{'solving':<28}{'ms':>8}{'least':>8}{'budget':>8}")
    for name, (median, least) in report["solve_ms"].items():
        print(f"{name:<28}{median:>8.2f}{least:>8.2f}{SOLVE_BUDGET_MS:>8}")


if __name__ == "__main__":
    main()
