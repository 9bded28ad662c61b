"""An export as a person reads it: the file, and the check's numbers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from quantcfg.config.suggest import counted
from quantcfg.export.report import RUNTIME, Check, ExportReport, QuantizerDifference
from quantcfg.render.console import with_short_paths
from quantcfg.render.results import integer_facts, metrics_table
from quantcfg.render.tables import add_numbers, cell, new_table, print_beside, print_facts, print_table
from quantcfg.render.text import percent

_SHOWN = 5  # quantizers that differ


def print_export(console: Console, report: ExportReport) -> None:
    """Print what was checked, then the file."""
    if report.check is not None:
        _print_check(console, report.check)
    *facts, path = _facts(report)
    print_beside(console, facts, width=12)
    print_facts(console, [path], width=12)


def _print_check(console: Console, check: Check) -> None:
    if any(check.metrics.values()):
        print_table(console, metrics_table(check.metrics))
    if not check.differences:
        return
    table = new_table("difference from fake-quant", gap=3)
    add_numbers(table, ("max", "RMS", "allowed RMS", "equal"))
    for name, found in check.differences.items():
        table.add_row(name, f"{found.max_abs:.2e}", f"{found.rms:.2e}", f"{check.bounds[name]:.2e}",
                      percent(found.equal_share, 1))  # fmt: skip
    error = check.quantization_error
    table.add_row(
        "the float model", f"{error.max_abs:.2e}", f"{error.rms:.2e}", "", percent(error.equal_share, 1)
    )
    print_table(console, table)
    if check.op_by_op:
        print_table(console, _op_by_op(check.op_by_op))


def _op_by_op(found: Mapping[str, Sequence[QuantizerDifference]]) -> Table:
    """Equal integers by kind of op, each op given the model's own; a column for each way to run the file."""
    table = new_table(f"{RUNTIME}, op by op", gap=3)
    ways = (name.removeprefix(RUNTIME).removeprefix(", ") or "optimised" for name in found)
    add_numbers(table, ("values", *ways))
    ops = list(dict.fromkeys(item.op for item in next(iter(found.values()))))
    for title, kinds in [*((op, {op}) for op in ops), ("all", set(ops))]:
        columns = [[item for item in items if item.op in kinds] for items in found.values()]
        num_values = sum(item.num_values for item in columns[0])
        table.add_row(cell(title), str(num_values), *map(_equal_share, columns))
    return table


def _equal_share(items: Sequence[QuantizerDifference]) -> str:
    """``99.9900%``, and by how many steps the rest is off where that is more than one."""
    num_values, most = sum(item.num_values for item in items), max(item.max_steps for item in items)
    share = percent(1 - sum(item.num_different for item in items) / max(num_values, 1), 4)
    return share if most <= 1 else f"{share}, by {most}"


def _facts(report: ExportReport) -> Iterator[tuple[str, str]]:
    if report.check is not None:
        yield from _check_facts(report.check)
    yield "size", _size(report)
    yield "quantizers", f"{report.num_weights} of weights, {report.num_activations} of activations"
    if report.check is None:
        yield "check", "not run"
    yield "file", with_short_paths(report.path)


def _check_facts(check: Check) -> Iterator[tuple[str, str]]:
    if check.num_qparams:
        yield "qparams", f"{check.num_qparams} scales and zero points equal bit for bit"
    if check.quantizers:
        yield "integers", _integers(check)
    if check.integers is not None:
        yield from integer_facts(check.integers.to_dict(), "reference")
    if check.latency_s:
        float_s, quantized_s = check.latency_s["float"], check.latency_s["quantized"]
        speed = f"{float_s / quantized_s:.2f} times as fast"
        yield "latency", f"{quantized_s * 1e3:.3f} ms, float {float_s * 1e3:.3f} ms ({speed})"


def _size(report: ExportReport) -> str:
    sizes = report.check.sizes if report.check else None
    if not sizes:
        return _bytes(report.size_bytes)
    ratio = sizes["float"] / sizes["quantized"]
    return f"{_bytes(report.size_bytes)}, float {_bytes(sizes['float'])} ({ratio:.2f} times)"


def _integers(check: Check) -> str:
    values = sum(item.num_values for item in check.quantizers)
    different = [item for item in check.quantizers if item.num_different]
    count = sum(item.num_different for item in different)
    if not different:
        return f"all {values} equal behind {counted(len(check.quantizers), 'quantizer')}"
    named = ", ".join(f"{d.name} ({d.num_different}, by {d.max_steps})" for d in different[:_SHOWN])
    return f"{percent(1 - count / values, 4)} of {values} equal; they differ first at {named}"


def _bytes(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"
