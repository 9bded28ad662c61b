"""Timing in copies of the tensor: what a figure means on one machine, it means on another.

All candidates are timed in turn, round after round, so that a busy moment of the machine falls on all of
them. The unit is a plain ``y.copy_(x)`` of the same tensor, timed in the same rounds.

Freed memory is kept, for all candidates alike (see `keep_memory`): what is timed is arithmetic and memory,
not the pages that the kernel clears when glibc has handed memory back and asks for it again.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler tells of its start and end on stderr
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_conditions: dict[str, object] = {"malloc": "the system's"}  # what `begin` has set


@dataclass(frozen=True, slots=True)
class Case:
    """One candidate for one piece of work; ``budget`` is in copies."""

    work: str
    tool: str
    run: Run
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a case took. ``copies`` is the median over rounds of its time in copies of that round, ``best``
    the shortest time over the shortest copy, ``peak`` the memory allocated on top of the inputs and ``saved``
    the memory kept for backward, both in sizes of the tensor."""

    work: str
    tool: str
    copies: float
    best: float
    budget: float | None
    peak: float
    saved: float


def arguments(doc: str | None, *, rounds: int = 15) -> argparse.ArgumentParser:
    """The options that the measurements share, for `begin` and `write_json`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--system-malloc",
        action="store_true",
        help="let malloc return freed memory to the system, as it likes",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser


def begin(options: argparse.Namespace) -> None:
    """Set threads and malloc as ``options`` of `arguments` say, and print what the figures depend on."""
    torch.set_num_threads(options.threads)
    if not options.system_malloc and keep_memory():
        _conditions["malloc"] = "glibc's, which keeps what is freed"
    print(", ".join(f"{name} {value}" for name, value in machine().items() if value is not None))


def keep_memory() -> bool:
    """Have glibc keep the large blocks that are freed, which by default it may return to the system.

    Other C libraries are left as they are. The result says whether memory is kept.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library; Windows, which has no None
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def measure(cases: Sequence[Case], x: Tensor, *, rounds: int = 15) -> list[Result]:
    """Time the cases in turn against a copy of ``x``."""
    target = torch.empty_like(x)
    runs: list[Run] = [lambda: target.copy_(x), *(case.run for case in cases)]
    for run in runs:
        run(), run()
    seconds = [[_seconds(run, x) for run in runs] for _ in range(rounds)]
    return [_result(case, k, seconds, x) for k, case in enumerate(cases, start=1)]


def milliseconds(runs: Sequence[Run], x: Tensor, *, rounds: int = 15) -> list[float]:
    """The median time of each, taken in turn, for work that has no size to compare it with."""
    seconds = [[_seconds(run, x) for run in runs] for _ in range(rounds)]
    return [1e3 * statistics.median(times) for times in zip(*seconds, strict=True)]


def _result(case: Case, k: int, seconds: list[list[float]], x: Tensor) -> Result:
    size = x.numel() * x.element_size()
    return Result(
        work=case.work,
        tool=case.tool,
        copies=statistics.median(row[k] / row[0] for row in seconds),
        best=min(row[k] for row in seconds) / min(row[0] for row in seconds),
        budget=case.budget,
        peak=_peak_bytes(case.run, x) / size,
        saved=_saved_bytes(case.run) / size,
    )


def _seconds(run: Run, x: Tensor) -> float:
    run()  # the caches as this candidate leaves them, not as the one before did
    _synchronize(x)
    start = time.perf_counter()
    run()
    _synchronize(x)
    return time.perf_counter() - start


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def _peak_bytes(run: Run, x: Tensor) -> int:
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _saved_bytes(run: Run) -> int:
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        sizes[saved.data_ptr()] = saved.numel() * saved.element_size()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        run()
    return sum(sizes.values())


@cache
def peer(library: str) -> Any:
    """A module to compare with, or None where there is none: torch.ao is leaving torch.

    Nothing else is forgiven: a peer that does not work would be a row that goes missing silently.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        print(f"{library} left out: {error}", file=sys.stderr)
        return None


def machine() -> dict[str, object]:
    """What the figures depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        **_conditions,
    }


def print_table(results: Sequence[Result]) -> None:
    """One line per case, the ones that miss their budget marked."""
    print(f"{'work':<46} {'tool':<18} {'copies':>7} {'best':>6} {'budget':>7} {'peak':>6} {'saved':>6}")
    for result in results:
        budget = "" if result.budget is None else f"{result.budget:g}"
        missed = " missed" if result.budget is not None and result.copies > result.budget else ""
        print(
            f"{result.work:<46} {result.tool:<18} {result.copies:7.2f} {result.best:6.2f} {budget:>7} "
            f"{result.peak:6.2f} {result.saved:6.2f}{missed}"
        )


def write_json(path: Path, results: Sequence[Any], **more: object) -> None:
    """The figures of ``results``, dataclasses, and ``more``, with the machine they come from."""
    record = {"machine": machine(), "results": [asdict(result) for result in results], **more}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
