"""Python's search for garbage in cycles, while thousands of objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Put off the search: it walks what was made so far, again and again, and finds nothing.

    For code of our own alone: what a forward leaves in cycles may be large, and has to go.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
