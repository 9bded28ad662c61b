"""The guards of a config: conditions on the plan, checked before a run, and on metrics, after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantcfg.config.conditions import parse_condition, parse_size
from quantcfg.config.load import Config
from quantcfg.config.matching import covers
from quantcfg.config.patterns import alternatives
from quantcfg.config.schema import OpGuard
from quantcfg.config.suggest import listing
from quantcfg.errors import GuardError
from quantcfg.preparation.assign import LEFT_BY_RULES, Role
from quantcfg.preparation.plan import OpRow, Plan, TensorPlan

_SHARES = {"quantized_macs": "macs_share", "quantized_params": "params_share", "quantized_ops": "ops_share"}
_FLOAT = "float"
_NAMED = 3  # ops in a message


@dataclass(frozen=True, slots=True)
class GuardResult:
    """One guard, what it was compared with (None: not measured), and whether it holds.

    The value of a guard on ops is the share of them that are as they should be.
    """

    guard: str
    condition: str
    value: float | None
    holds: bool
    detail: str = ""

    def __str__(self) -> str:
        value = "was not measured" if self.value is None else f"is {self.value:.4g}"
        return f"{self.guard} {self.detail or value}, wanted {self.condition}"


def check_plan(config: Config, plan: Plan) -> None:
    """Hold the guards on the plan before anything is computed.

    Raises:
        GuardError: One does not hold; the message names each.
    """
    raise_unless_held(plan_guards(config, plan))


def plan_guards(config: Config, plan: Plan) -> list[GuardResult]:
    """The guards that need no data: on coverage, size and ops."""
    guards, coverage = config.guards, plan.coverage
    results = [
        _result(name, condition, getattr(coverage, share))
        for name, share in _SHARES.items()
        if (condition := getattr(guards, name)) is not None
    ]
    if guards.weight_bits is not None:
        results.append(_result("weight_bits", guards.weight_bits, coverage.weight_bits))
    if guards.size is not None:
        results.append(_size(guards.size, coverage.size_bytes))
    return [*results, *(made for name in guards.ops for made in _ops(name, guards.ops[name], plan.rows))]


def check_metrics(config: Config, measured: Mapping[str, float]) -> None:
    """Hold the names of guarded metrics to what the float model was measured by, before it is calibrated.

    Raises:
        GuardError: One was not measured; the message names each.
    """
    missing = [name for name in config.guards.metric_drop if name not in measured]
    raise_unless_held(
        [_result(f"metric_drop.{name}", config.guards.metric_drop[name], None) for name in missing],
        hint=f"metrics of this model: {listing(list(measured)) or 'none, it has no eval_data()'}",
    )


def guard_results(
    config: Config, plan: Plan, before: Mapping[str, float], after: Mapping[str, float]
) -> list[dict[str, Any]]:
    """All guards as plain data: on the plan, and on the drop of metrics from ``before`` to ``after``."""
    drops = [
        _result(f"metric_drop.{name}", condition, _drop(name, before, after))
        for name, condition in config.guards.metric_drop.items()
    ]
    return [asdict(result) for result in (*plan_guards(config, plan), *drops)]


def read_results(documents: Iterable[Mapping[str, Any]]) -> list[GuardResult]:
    """The guards in the result of a run."""
    return [GuardResult(**document) for document in documents]


def raise_unless_held(
    results: list[GuardResult], *, hint: str = "the guards are in the config, under 'guards'"
) -> None:
    """Raise `GuardError` with every guard that does not hold."""
    failed = [str(result) for result in results if not result.holds]
    if failed:
        raise GuardError("; ".join(failed), hint=hint)


def _result(guard: str, condition: str, value: float | None) -> GuardResult:
    holds = value is not None and parse_condition(condition).holds(value)
    return GuardResult(guard, condition, value, holds)


def _drop(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    return before[name] - after[name] if name in before and name in after else None


def _size(condition: str, size_bytes: int) -> GuardResult:
    return GuardResult(
        "size", condition, size_bytes, parse_size(condition).holds(size_bytes), f"is {size_bytes:,} B"
    )


def _ops(pattern: str, guard: OpGuard, rows: Sequence[OpRow]) -> Iterator[GuardResult]:
    covered = covers(pattern)
    inside = [row for row in rows if covered(row.name)]
    if guard.activation is not None:
        outputs = {row.name: _dtype(row.activation) for row in inside if _has_output(row)}
        yield _alike(pattern, "activation", guard.activation, outputs)
    if guard.weight is not None:
        weights = {row.name: _dtype(row.weight) for row in inside if row.params}
        yield _alike(pattern, "weight", guard.weight, weights)


def _has_output(row: OpRow) -> bool:
    """Whether an op could have had an output quantizer of its own."""
    by_rule = row.reason.startswith(LEFT_BY_RULES)
    return row.role == Role.QUANTIZED.value or (row.role == Role.FLOAT.value and by_rule)


def _dtype(tensor: TensorPlan | None) -> str:
    return tensor.dtype if tensor else _FLOAT


def _alike(pattern: str, tensor: str, wanted: str, found: Mapping[str, str]) -> GuardResult:
    guard = f"ops.{pattern}.{tensor}"
    if not found:
        return GuardResult(guard, wanted, None, False, "matches nothing")
    if dead := [
        f"'{item.text}'" for item in alternatives(pattern) if not any(map(covers(item.segments), found))
    ]:
        return GuardResult(guard, wanted, None, False, f"matches nothing with {listing(dead, _NAMED)}")
    others = [f"'{name}' ({dtype})" for name, dtype in found.items() if dtype != wanted]
    share = 1 - len(others) / len(found)
    detail = f"does not hold for {len(others)} of {len(found)}: {listing(others, _NAMED)}" if others else ""
    return GuardResult(guard, wanted, share, not others, detail)
