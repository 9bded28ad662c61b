"""What a finished run came to: metrics side by side, time, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantcfg.config.suggest import counted, listing
from quantcfg.render.observer_comparison import print_comparison
from quantcfg.render.tables import add_numbers, keys_of, new_table, print_beside, print_facts, print_table
from quantcfg.render.text import percent, safe_text

_SHOWN = 4  # ops that are named


@dataclass(frozen=True, slots=True)
class RunReport:
    """A finished run as a command shows it. ``path`` is the run directory as the user typed it."""

    path: str
    result: Mapping[str, Any]
    timing: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for ``--format json``."""
        return {"format_version": 1, "run": self.path, "result": self.result, "timing": self.timing}


def print_report(console: Console, report: RunReport) -> None:
    """Print the table of metrics and the lines below it."""
    if comparison := report.result.get("comparison"):
        print_comparison(console, comparison)
    metrics: Mapping[str, Mapping[str, float]] = report.result["metrics"]
    if any(metrics.values()):
        print_table(console, metrics_table(metrics))
    else:
        console.print("no metrics: the model file has no eval_data()", soft_wrap=True)
    for guard in report.result.get("guards", ()):
        console.print(_guard_line(guard), soft_wrap=True)
    *facts, path = _facts(report)
    print_beside(console, facts, width=9)
    print_facts(console, [path], width=9)


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per state of the model, and how far each metric is from the first row."""
    table, names = new_table("", gap=3), keys_of(metrics)
    for name in names:
        add_numbers(table, (name, "change"))
    base = next(iter(metrics.values()))
    for state, values in metrics.items():
        cells = [cell for name in names for cell in _cells(values.get(name), base.get(name), values is base)]
        table.add_row("QAT" if state == "qat" else state, *cells)
    return table


def integer_facts(integers: Mapping[str, Any], name: str = "integers") -> list[tuple[str, str]]:
    """How near the integer model is to the fake-quant model, and what to know of it, as lines.

    ``name`` stands before the first one.
    """
    ops, values = integers["ops"], integers["num_values"]
    off, more = (sum(op[name] for op in ops) for name in ("off_by_one", "more"))
    equal = percent(integers["equal_share"], 4)
    text = f"{equal} of {values} equal to fake-quant op by op, {off} off by one step"
    text += f", {more} by more" if more else ""
    text += f"; {percent(integers['flowing_share'], 4)} when integers flow"
    return [(name, text), *_exceptions(ops)]


def _exceptions(ops: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    facts = []
    if different := [op for op in ops if op["equal"] < op["num_values"]]:
        counts = [
            f"{op['name']} ({op['num_values'] - op['equal']} of {op['num_values']})" for op in different
        ]
        facts.append(("differ", "first " + listing(counts, _SHOWN)))
    if in_float := [op["name"] for op in ops if op["arithmetic"] == "float"]:
        facts.append(("in float", listing(in_float, _SHOWN) + ": no integer kernel for these arguments"))
    if overflows := [op["name"] for op in ops if op["overflows"]]:
        facts.append(("overflow", listing(overflows, _SHOWN) + ": int32 accumulators could overflow"))
    return facts


def _cells(value: float | None, base: float | None, is_base: bool) -> tuple[str, str]:
    if value is None:
        return "-", ""
    return f"{value:.4f}", "" if is_base or base is None else f"{value - base:+.4f}"


def _guard_line(guard: Mapping[str, Any]) -> Text:
    verdict = "holds" if guard["holds"] else "FAILS"
    value = "not measured" if guard["value"] is None else f"{guard['value']:.4g}"
    text = f"guard     {guard['guard']} {value}, wanted {guard['condition']}: {verdict}"
    return Text(safe_text(text), style="" if guard["holds"] else "bold red")


def _facts(report: RunReport) -> list[tuple[str, str]]:
    result, seconds = report.result, report.timing.get("total_s")
    parts = [counted(result[key], *nouns) for key, nouns in _COUNTS.items() if key in result]
    facts = [("amount", ", ".join(parts))] if parts else []
    if "best_step" in result:
        facts.append(("best", f"step {result['best_step']}"))
    if result.get("num_skipped_steps"):
        steps = counted(result["num_skipped_steps"], "step")
        facts.append(("skipped", f"{steps} whose gradient overflowed float16"))
    if skipped := result.get("skipped"):
        most = counted(max(skipped.values()), "batch", "batches")
        facts.append(("skipped", f"up to {most} with NaN or inf, by {', '.join(skipped)}"))
    if integers := result.get("integers"):
        facts += integer_facts(integers)
    if seconds is not None:
        facts.append(("time", f"{seconds:.1f} s"))
    return [*facts, ("run", report.path)]


_COUNTS = {
    "num_batches": ("batch", "batches"),
    "num_samples": ("sample", "samples"),
    "num_epochs": ("epoch", "epochs"),
    "num_steps": ("step", "steps"),
}
