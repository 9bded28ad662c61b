"""What goes to ``log.txt``, on stderr too (``--verbose``)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = logging.getLogger("quantcfg")


@contextmanager
def logging_on_stderr(*, enabled: bool) -> Iterator[None]:
    """Copy the log of the package to stderr during the block."""
    if not enabled:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    _LOGGER.addHandler(handler)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
