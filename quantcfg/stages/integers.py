"""The integer model of a run: its metrics, and its integers beside those of the fake-quant model."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantcfg.integer.compare import IntegerReport, compare_integers
from quantcfg.integer.convert import convert
from quantcfg.stages.clock import Clock
from quantcfg.stages.evaluate import evaluate
from quantcfg.stages.job import Job
from quantcfg.stages.user_code import in_batch

COMPARED_SAMPLES = 64  # of the first batch, whose integers are compared one by one


def evaluate_integers(job: Job, model: nn.Module) -> dict[str, float]:
    """Metrics of the integer form of ``model``, a prepared one; empty without data to evaluate on."""
    data = job.source("eval_data")
    if not data.exists:
        return {}
    return evaluate(convert(model), data, job.progress, "evaluating the integer model")


def integer_metrics(job: Job, model: nn.Module, clock: Clock) -> dict[str, dict[str, float]]:
    """The row of the integer form of ``model`` for a table of metrics; none without data to evaluate on."""
    with clock.phase("integer"):
        metrics = evaluate_integers(job, model)
    return {"integer": metrics} if metrics else {}


def integer_report(job: Job, model: nn.Module, data: str) -> IntegerReport:
    """The integers of ``model`` in both forms, on the first samples of the data function ``data``."""
    source = job.source(data)
    ((index, batch),) = source.batches(limit=1)
    part = source.cut(index, batch, COMPARED_SAMPLES)

    def run(model: nn.Module) -> Any:
        with in_batch(source.name, index):
            return job.model_file.forward(model, part)

    return compare_integers(model, [run])
