"""Several observers in one calibration: each watches every quantizer it could serve, the best one stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quantcfg.config.calibration import CompareBy
from quantcfg.config.load import Config
from quantcfg.config.schema import CalibSection
from quantcfg.errors import UsageError
from quantcfg.numeric.bins import Layout
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.noise import noise_of
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.histogram_family import HistogramObserver
from quantcfg.numeric.observers.mse import MSEObserver
from quantcfg.preparation.hosts import is_quantizer_key
from quantcfg.preparation.state import fake_quants
from quantcfg.stages.observer_contests import (
    Choices,
    Contest,
    Contests,
    find_contests,
    make_observer,
    quantizers_of,
)

Key = tuple[str, str]  # the op and the slot of a contest
Evaluate = Callable[[], Mapping[str, float]]
Solved = Mapping[str, Mapping[str, Observer]]
"""The candidates of each quantizer, each as a calibration with it alone would have left it."""
_RIVALS = "rivals"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison found.

    ``noise`` holds for each contest and candidate the noise of the worst of its quantizers (see `noise_of`);
    ``metrics`` those of the model with one observer everywhere, empty where the noise decides.
    """

    choices: Mapping[Key, str]
    noise: Mapping[Key, Mapping[str, float]]
    metrics: Mapping[str, Mapping[str, float]]
    observers: Mapping[str, Observer]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The observers of a model that is being calibrated, several to a quantizer."""

    section: CalibSection
    model: nn.Module
    contests: Contests

    def check(self, metrics: Mapping[str, float]) -> None:
        """Refuse, before anything is calibrated, a metric that is not among ``metrics``.

        Raises:
            UsageError: the evaluation gives other metrics, or there is none.
        """
        by = self.section.compare_by
        if by is not None and by.metric not in metrics:
            given = ", ".join(f"'{name}'" for name in metrics) or "none: the model file has no eval_data()"
            raise UsageError(f"calib.compare_by.metric is '{by.metric}'; the metrics are {given}")

    def decide(self, evaluate: Evaluate) -> Verdict:
        """Find the best observers; ``evaluate`` gives the metrics of the calibrated model as it is."""
        decided = quantizers_of(self.contests.contests)
        solved = {name: _solved(fake_quants(self.model)[name], contest) for name, contest in decided.items()}
        noise = {contest.key: self._noise(contest, solved) for contest in self.contests.contests}
        uniform: dict[str, dict[Key, str]] = {
            kind: self._everywhere(kind) for kind in self.section.compare or ()
        }
        metrics: dict[str, dict[str, float]] = {}
        if self.section.compare_by is None:
            choices = self._least_noise(noise, uniform)
        else:
            search = _Search(self.model, solved, decided, self.section.compare_by, evaluate)
            metrics = {kind: dict(search.measured(choices)) for kind, choices in uniform.items()}
            choices = uniform[search.best(metrics)]
            if self.section.compare_per == "op":
                choices = search.refined(choices, self.contests.contests)
        observers = {name: solved[name][choices[contest.key]] for name, contest in decided.items()}
        return Verdict(choices, noise, metrics, observers)

    def config(self, config: Config, choices: Choices) -> Config:
        """``config`` as if it had named the choices."""
        return self.contests.config_with(config, choices)

    def table(self, verdict: Verdict) -> dict[str, Any]:
        """The figures and the outcome, as plain data."""
        by = self.section.compare_by
        rows = [
            {
                "op": contest.op,
                "slot": contest.slot,
                "configured": contest.configured,
                "chosen": verdict.choices[contest.key],
                "noise": dict(verdict.noise[contest.key]),
            }
            for contest in self.contests.contests
        ]
        return {
            "observers": list(self.section.compare or ()),
            "by": "noise" if by is None else by.metric,
            "per": self.section.compare_per,
            "metrics": {kind: dict(values) for kind, values in verdict.metrics.items()},
            "ops": rows,
        }

    def _noise(self, contest: Contest, solved: Solved) -> dict[str, float]:
        modules = fake_quants(self.model)
        return {
            kind: max(noise_of(solved[name][kind], _counter(modules[name])) for name in contest.quantizers)
            for kind in contest.candidates
        }

    def _everywhere(self, kind: str) -> dict[Key, str]:
        """One observer for all; where it cannot serve, the first one that can."""
        return {
            contest.key: kind if kind in contest.candidates else next(iter(contest.candidates))
            for contest in self.contests.contests
        }

    def _least_noise(
        self, noise: Mapping[Key, Mapping[str, float]], uniform: Mapping[str, dict[Key, str]]
    ) -> dict[Key, str]:
        if self.section.compare_per == "op":
            return {key: _least(found) for key, found in noise.items()}
        totals = {
            kind: sum(noise[key][choice] for key, choice in choices.items())
            for kind, choices in uniform.items()
        }
        return uniform[_least(totals)]


@dataclass(frozen=True, slots=True)
class _Search:
    """Tries choices on the model, by a metric."""

    model: nn.Module
    solved: Solved
    decided: Mapping[str, Contest]
    by: CompareBy
    evaluate: Evaluate

    def measured(self, choices: Choices) -> Mapping[str, float]:
        """The metrics of the model with these observers."""
        modules = fake_quants(self.model)
        before = {name: modules[name].observer for name in self.decided}
        try:
            for name, contest in self.decided.items():
                modules[name].observer = self.solved[name][choices[contest.key]]
                modules[name].finish_observation()
            return self.evaluate()
        finally:
            for name, observer in before.items():
                modules[name].observer = observer

    def best(self, metrics: Mapping[str, Mapping[str, float]]) -> str:
        """The candidate of the best metric, the first of equals."""
        return _least({kind: self._rank(values) for kind, values in metrics.items()})

    def refined(self, choices: dict[Key, str], contests: tuple[Contest, ...]) -> dict[Key, str]:
        """Take each op in turn and keep another of its candidates where that makes the metric better."""
        best = self._rank(self.measured(choices))
        for contest in contests:
            for kind in contest.candidates:
                tried = choices | {contest.key: kind}
                if kind != choices[contest.key] and (rank := self._rank(self.measured(tried))) < best:
                    choices, best = tried, rank
        return choices

    def _rank(self, metrics: Mapping[str, float]) -> float:
        value = metrics[self.by.metric]
        if math.isnan(value):
            return math.inf  # the worst
        return -value if self.by.mode == "max" else value


def open_comparison(config: Config, float_model: nn.Module, model: nn.Module) -> Comparison | None:
    """Let the observers of ``calib.compare`` watch ``model``; None when the config compares nothing.

    Where several count the same way one of them does it for all: a histogram is a histogram.
    """
    if config.calib.compare is None:
        return None
    contests = find_contests(config, float_model, model)
    modules = fake_quants(model)
    for name, contest in quantizers_of(contests.contests).items():
        _watch(modules[name], contest)
    return Comparison(config.calib, model, contests)


def take_observers(model: nn.Module, watched: nn.Module, chosen: Mapping[str, Observer]) -> None:
    """Put what was seen while several observers watched into the ``model`` that names the ``chosen`` ones.

    Quantizers that nothing competed for have one observer, which moves over as it is; so does whatever the
    model of the user changed in itself meanwhile.
    """
    own = {key: value for key, value in watched.state_dict().items() if not is_quantizer_key(key)}
    model.load_state_dict(own, strict=False)
    before = fake_quants(watched)
    for name, fake_quant in fake_quants(model).items():
        observer = chosen.get(name, before[name].observer)
        assert repr(fake_quant.observer) == repr(observer), name
        fake_quant.observer.load_state_dict(observer.state_dict())
        fake_quant.finish_observation()


def _watch(fake_quant: FakeQuantizeBase, contest: Contest) -> None:
    """Put a histogram in the place of the observer, and beside it whoever does not count alike."""
    before = fake_quant.observer
    geometry = {name: getattr(before, name) for name in ("dtype", "qscheme", "ch_axis", "num_channels")}
    counter = MSEObserver(**geometry).to(before.min_val.device)
    counter.name, counter.nonfinite = before.name, before.nonfinite
    watching: list[Observer] = [counter]
    for spec in contest.candidates.values():
        observer = make_observer(spec, before)
        if not any(_count_alike(other, observer) for other in watching):
            watching.append(observer)
    rivals = nn.ModuleList(watching[1:])
    fake_quant.observer = counter
    fake_quant.add_module(_RIVALS, rivals)
    counter.register_forward_hook(_Show(rivals))


@dataclass(frozen=True, slots=True)
class _Show:
    """Shows the rivals what the counter has just seen."""

    rivals: nn.ModuleList

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], result: None) -> None:
        del module, result
        for rival in self.rivals:
            rival(*args)


def _solved(fake_quant: FakeQuantizeBase, contest: Contest) -> dict[str, Observer]:
    rivals = getattr(fake_quant, _RIVALS)
    assert isinstance(rivals, nn.ModuleList)
    watching = [fake_quant.observer, *(rival for rival in rivals if isinstance(rival, Observer))]
    return dict(_of_their_own(contest, watching))


def _of_their_own(contest: Contest, watching: list[Observer]) -> Iterator[tuple[str, Observer]]:
    for kind, spec in contest.candidates.items():
        observer = make_observer(spec, watching[0])
        counted = next(other for other in watching if _count_alike(other, observer))
        if isinstance(observer, HistogramObserver) and isinstance(counted, HistogramObserver):
            observer.count_like(counted)
        else:
            observer.load_state_dict(counted.state_dict())
        observer.solve()
        yield kind, observer


def _count_alike(one: Observer, other: Observer) -> bool:
    """Whether the statistics of one are those of the other, bit for bit."""
    layouts = _layout(one), _layout(other)
    return layouts[0] == layouts[1] if None not in layouts else repr(one) == repr(other)


def _layout(observer: Observer) -> Layout | None:
    """The bins that an observer of a whole stream counts in; None where its range rests on more than them."""
    histogram = observer.histogram if isinstance(observer, HistogramObserver) else None
    return None if histogram is None or histogram.shares_bins else histogram.layout


def _counter(fake_quant: FakeQuantizeBase) -> HistogramObserver:
    counter = fake_quant.observer
    assert isinstance(counter, HistogramObserver)
    return counter


def _least(values: Mapping[str, float]) -> str:
    """The name of the least value, the first of equals."""
    return min(values, key=lambda name: values[name])
