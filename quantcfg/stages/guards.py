"""The guards of a config: conditions on the plan, checked before a run, and on metrics, reported after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantcfg.config.conditions import parse_condition
from quantcfg.config.load import Config
from quantcfg.errors import GuardError
from quantcfg.prepare.plan import Coverage

_SHARES = {"quantized_macs": "macs_share", "quantized_params": "params_share", "quantized_ops": "ops_share"}


@dataclass(frozen=True, slots=True)
class GuardResult:
    """One guard, what it was compared with (None: not measured), and whether it holds."""

    guard: str
    condition: str
    value: float | None
    holds: bool

    def __str__(self) -> str:
        value = "was not measured" if self.value is None else f"is {self.value:.4g}"
        return f"{self.guard} {value}, wanted {self.condition}"


def check_plan(config: Config, coverage: Coverage) -> None:
    """Hold the guards on coverage before anything is computed.

    Raises:
        GuardError: One does not hold; the message names each.
    """
    raise_unless_held(plan_guards(config, coverage))


def plan_guards(config: Config, coverage: Coverage) -> list[GuardResult]:
    """The guards on coverage."""
    return [
        _result(name, condition, getattr(coverage, share))
        for name, share in _SHARES.items()
        if (condition := getattr(config.guards, name)) is not None
    ]


def guard_results(
    config: Config, coverage: Coverage, before: Mapping[str, float], after: Mapping[str, float]
) -> list[dict[str, Any]]:
    """All guards as plain data: on coverage, and on the drop of metrics from ``before`` to ``after``."""
    drops = [
        _result(f"metric_drop.{name}", condition, _drop(name, before, after))
        for name, condition in config.guards.metric_drop.items()
    ]
    return [asdict(result) for result in (*plan_guards(config, coverage), *drops)]


def read_results(documents: Iterable[Mapping[str, Any]]) -> list[GuardResult]:
    """The guards in the result of a run."""
    return [GuardResult(**document) for document in documents]


def raise_unless_held(results: list[GuardResult]) -> None:
    """Raise `GuardError` with every guard that does not hold."""
    failed = [str(result) for result in results if not result.holds]
    if failed:
        raise GuardError("; ".join(failed), hint="the guards are in the config, under 'guards'")


def _result(guard: str, condition: str, value: float | None) -> GuardResult:
    holds = value is not None and parse_condition(condition).holds(value)
    return GuardResult(guard, condition, value, holds)


def _drop(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    return before[name] - after[name] if name in before and name in after else None
