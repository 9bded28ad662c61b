"""The eval stage: the metrics of a finished run, computed again from what it left."""

from __future__ import annotations

from typing import Any

from quantcfg.preparation.state import FakeQuantState, set_fake_quantize
from quantcfg.runs.directory import RunDirectory
from quantcfg.stages import records
from quantcfg.stages.clock import Clock
from quantcfg.stages.evaluate import evaluate, require_finite
from quantcfg.stages.integers import evaluate_integers, integer_report
from quantcfg.stages.job import Job


def evaluate_run(
    job: Job, run: RunDirectory, *, integer: bool = True
) -> tuple[dict[str, Any], dict[str, float]]:
    """Metrics of ``run`` in float, quantized and in integers, as a result and its timing.

    The result has ``integers`` too: how the integers of the two latter compare, op by op.

    Raises:
        UsageError: there is no finished run.
        RunError: it is damaged or does not fit the model, or a metric is not finite.
    """
    clock = Clock()
    rebuilt = records.rebuild(job, run)
    name = {"calib": "calibrated"}.get(rebuilt.result["stage"], rebuilt.result["stage"])
    set_fake_quantize(rebuilt.model, FakeQuantState.VALIDATION)
    data = job.source("eval_data")
    with clock.phase("evaluation"):
        metrics = {
            "float": evaluate(rebuilt.float_model, data, job.progress, "evaluating the float model"),
            name: evaluate(rebuilt.model, data, job.progress, f"evaluating the {name} model"),
        }
    for model, found in metrics.items():
        require_finite(found, model, job.ranks)
    result = {"stage": rebuilt.result["stage"], "seed": rebuilt.result["seed"], "metrics": metrics}
    if integer and data.exists:
        with clock.phase("integer"):
            metrics["integer"] = evaluate_integers(job, rebuilt.model)
            result["integers"] = integer_report(job, rebuilt.model, data.name).to_dict()
    return result, clock.timing()
