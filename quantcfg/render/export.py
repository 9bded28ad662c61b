"""An export as a person reads it: the file, and the check's numbers side by side."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantcfg.export.report import Check, ExportReport
from quantcfg.render.console import print_table
from quantcfg.render.results import integer_facts, metrics_table
from quantcfg.render.text import percent, safe_text

_SHOWN = 5  # quantizers that differ


def print_export(console: Console, report: ExportReport) -> None:
    """Print what was checked, then the file."""
    if report.check is not None:
        _print_check(console, report.check)
    for name, text in _facts(report):
        console.print(Text(f"{name:<12} {safe_text(text)}"), soft_wrap=True)


def _print_check(console: Console, check: Check) -> None:
    if any(check.metrics.values()):
        print_table(console, metrics_table(check.metrics))
    if not check.differences:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("difference from fake-quant")
    for title in ("max", "RMS", "allowed RMS", "equal"):
        table.add_column(title, justify="right")
    for name, found in check.differences.items():
        table.add_row(name, f"{found.max_abs:.2e}", f"{found.rms:.2e}", f"{check.bounds[name]:.2e}",
                      percent(found.equal_share, 1))  # fmt: skip
    error = check.quantization_error
    table.add_row(
        "the float model", f"{error.max_abs:.2e}", f"{error.rms:.2e}", "", percent(error.equal_share, 1)
    )
    print_table(console, table)


def _facts(report: ExportReport) -> Iterator[tuple[str, str]]:
    check = report.check
    if check is not None and check.num_qparams:
        yield "qparams", f"{check.num_qparams} scales and zero points equal bit for bit"
    if check is not None and check.quantizers:
        yield "integers", _integers(check)
    if check is not None and check.integers is not None:
        yield from integer_facts(check.integers.to_dict(), "reference")
    if check is not None and check.latency_s and "float" in check.latency_s:
        float_s, quantized_s = check.latency_s["float"], check.latency_s["quantized"]
        speed = f"{float_s / quantized_s:.2f} times as fast"
        yield "latency", f"{quantized_s * 1e3:.3f} ms, float {float_s * 1e3:.3f} ms ({speed})"
    if check is not None and check.sizes and "float" in check.sizes:
        ratio = check.sizes["float"] / check.sizes["quantized"]
        yield "size", f"{_bytes(report.size_bytes)}, float {_bytes(check.sizes['float'])} ({ratio:.2f} times)"
    else:
        yield "size", _bytes(report.size_bytes)
    yield "quantizers", f"{report.num_weights} of weights, {report.num_activations} of activations"
    if check is None:
        yield "check", "not run"
    yield "file", report.path


def _integers(check: Check) -> str:
    values = sum(item.num_values for item in check.quantizers)
    different = [item for item in check.quantizers if item.num_different]
    count = sum(item.num_different for item in different)
    if not different:
        return f"all {values} equal behind {len(check.quantizers)} quantizers"
    named = ", ".join(f"{d.name} ({d.num_different}, by {d.max_steps})" for d in different[:_SHOWN])
    return f"{percent(1 - count / values, 4)} of {values} equal; they differ first at {named}"


def _bytes(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"
