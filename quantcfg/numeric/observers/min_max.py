"""The plain range of the data."""

from __future__ import annotations

from typing import final

from quantcfg.numeric.observers.base import Observer


@final
class MinMaxObserver(Observer):
    """The least and the greatest value of each batch, folded over the batches (see `Observer`)."""
