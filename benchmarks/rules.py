"""Resolving rules: 10,000 modules by 1,000 rules, from the modules of a model to one decision per op.

    python -m benchmarks.rules [--modules N] [--rules N] [--rounds N]

The budget is one second for the whole way: the targets of a model, then the decisions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from quantcfg.config.rules import RuleSet
from quantcfg.preparation.intercept import Interceptor, install
from quantcfg.preparation.record import Recording
from quantcfg.preparation.recorder import Recorder, run_recorder
from quantcfg.preparation.rules import rules_from_dict
from quantcfg.preparation.targets import targets_of
from quantcfg.qconfig import get_default_qconfig

BUDGET_S = 1.0


class Block(nn.Module):
    """Ten leaves beneath a container of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(2, 2) if k % 2 == 0 else nn.ReLU() for k in range(8)))
        self.norm, self.head = nn.LayerNorm(2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x))) + x


def model_of(num_modules: int) -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(num_modules // 12)))


def rules_of(num_rules: int) -> RuleSet:
    """A global rule, some types, and names: exact ones, patterns, whole blocks."""
    qconfig = get_default_qconfig()
    forms = ("{0}.body.0", "{0}.body.*", "{0}", "*.{0}.head", "{0}.add_0", "{0}.norm")
    names = {forms[k % len(forms)].format(k): qconfig if k % 5 else None for k in range(num_rules - 3)}
    types = {nn.Linear: qconfig, nn.LayerNorm: None}
    return rules_from_dict({"": qconfig, "module_type": types, "module_name": names})


def record(model: nn.Module) -> Recording:
    interceptor = Interceptor()
    install(model.named_modules(), interceptor)
    interceptor.handler, interceptor.active = Recorder(model), True
    return run_recorder(interceptor.handler, lambda: model(torch.zeros(1, 2)))


def median(run: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", type=int, default=10_000)
    parser.add_argument("--rules", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = model_of(options.modules)
    recording = record(model)
    targets = targets_of(model, recording)
    rules = rules_of(options.rules)
    modules = sum(1 for _ in model.modules())
    naming = median(lambda: targets_of(model, recording), options.rounds)
    resolving = median(lambda: RuleSet(rules.rules, rules.sources).resolve(targets), options.rounds)
    verdict = "within" if naming + resolving <= BUDGET_S else "MISSES"
    print(f"{modules:,} modules, {len(targets):,} ops, {len(rules.rules):,} rules")
    print(f"targets {naming:.3f} s, decisions {resolving:.3f} s: {verdict} the budget of {BUDGET_S:g} s")


if __name__ == "__main__":
    main()
