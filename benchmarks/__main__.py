"""The measurements of the numeric core, one after the other: ``python -m benchmarks``."""

from __future__ import annotations

import runpy

MEASUREMENTS = ("fake_quantize", "observers")  # `overhead` and `models` have make targets of their own

for name in MEASUREMENTS:
    print(f"\n{name}", flush=True)
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
