"""Every benchmark of this folder, one after the other: ``python -m benchmarks``."""

from __future__ import annotations

import runpy
from pathlib import Path

SHARED = {"__init__", "__main__", "harness"}

for path in sorted(Path(__file__).parent.glob("*.py")):
    if path.stem not in SHARED:
        print(f"\n{path.stem}", flush=True)
        runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__")
