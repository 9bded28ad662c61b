"""``log.txt``: what the logger ``quantcfg`` says while a run is open, with times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantcfg.runs.writer import append_line

LOGGER = logging.getLogger("quantcfg")


class _LineHandler(logging.Handler):
    """Appends whole lines; keeps no file open, so that a finished run has none."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        append_line(self.path, self.format(record))


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Copy everything that is logged at INFO and above to ``path``; None: to nowhere."""
    if path is None:
        yield
        return
    handler, level = _LineHandler(path), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(handler)
