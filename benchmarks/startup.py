"""What `quantcfg validate` takes from start to end, over the bare imports of its libraries.

    python -m benchmarks.startup [--rounds N] [CONFIG...]

Each round times both in turn, in processes of their own, so that a busy moment of the machine falls on both.
CPU seconds are printed beside those of the clock: on a machine with other work they say more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BARE = [sys.executable, "-c", "import pydantic, yaml, typer, rich"]
VALIDATE = [sys.executable, "-m", "quantcfg", "validate"]
CONFIGS = ("configs/digits_w8a8.yaml", "configs/mixed.yaml", "configs/topics_w8a8.toml", "examples/typo.yaml")
RATIO, SECONDS = 1.5, 0.3


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    print(f"budget: {RATIO:g} times the bare imports, {SECONDS:g} s")
    for config in options.configs:
        rounds = [(timed(BARE), timed([*VALIDATE, config])) for _ in range(options.rounds)]
        for kind, name in enumerate(("clock", "CPU")):
            bare, ours = (statistics.median(pair[side][kind] for pair in rounds) for side in (0, 1))
            ratio = statistics.median(pair[1][kind] / pair[0][kind] for pair in rounds)
            print(f"{config:28} {name:5} bare {bare:.3f} s, validate {ours:.3f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
