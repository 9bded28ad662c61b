"""The eval stage: the metrics of a finished run, computed again from what it left."""

from __future__ import annotations

from typing import Any

from quantcfg.prepare.state import FakeQuantState, set_fake_quantize
from quantcfg.runs.directory import RunDirectory
from quantcfg.stages import records
from quantcfg.stages.clock import Clock
from quantcfg.stages.evaluate import evaluate
from quantcfg.stages.job import Job


def evaluate_run(job: Job, run: RunDirectory) -> tuple[dict[str, Any], dict[str, float]]:
    """Float and quantized metrics of ``run``, as a result and its timing.

    Raises:
        UsageError: There is no finished run.
        RunError: It is damaged or does not fit the model.
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
    result = {"stage": rebuilt.result["stage"], "seed": rebuilt.result["seed"], "metrics": metrics}
    return result, clock.timing()
