"""What a repeated run has to reproduce: all of its files but those that `VOLATILE` names."""

from __future__ import annotations

from pathlib import Path

from quantcfg.runs.directory import VOLATILE


def contents(run: Path) -> dict[str, bytes]:
    """The bytes of every file that a repeated run writes alike, by its path below the run directory."""
    files = {path.relative_to(run): path for path in run.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes() for name, path in files.items() if not {*VOLATILE} & {*name.parts}
    }
