"""Where a run came from: the commits that its files stand in, and the data that it was given."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantcfg.errors import QuantcfgError
from quantcfg.stages.data import DataSource

_TIMEOUT_S = 10
# Nothing that a repository configures is run, and nothing in it is written.
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-optional-locks")


def git_state(path: Path) -> dict[str, Any] | None:
    """The commit that the work tree around ``path`` is at, and whether tracked files differ from it.

    None outside of a work tree, before the first commit, and where there is no git.
    """
    commit = _git(path.parent, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    status = _git(path.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "dirty": status is None or bool(status.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [*_GIT, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=kept
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def data_fingerprints(sources: Iterable[DataSource]) -> dict[str, str | None]:
    """SHA-256 of the first batch of each data function; None where it cannot be read once more.

    Raises:
        UserCodeError: this rank cannot read one that others can.
    """
    return {source.name: _fingerprint(source) for source in sources if source.exists}


def _fingerprint(source: DataSource) -> str | None:
    try:
        return source.fingerprint()
    except QuantcfgError:  # an iterator that was used up: the run itself has ended well
        if source.ranks.odd_one(b"") is not None:  # others have read it, and wait to compare it
            raise
        return None
