"""``python -m tests.faults.soak SECONDS``: kill and resume qat runs for that long, and count."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.project import write_project

HERE = Path(__file__).parent


def main(seconds):
    """Run ``kills.py`` on the small project of the tests; the exit code."""
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder))
        seed = str(time.time_ns() % 1000)
        command = [sys.executable, HERE / "kills.py", folder, "qat", "0", seed, seconds]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    found = json.loads(done.stdout)
    print("\n".join([f"{count:6d}  {name}" for name, count in found["counts"].items()] + found["violations"]))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
