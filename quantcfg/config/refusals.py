"""How a validator of the schema refuses a value: one error type that carries what a diagnostic needs."""

from __future__ import annotations

from typing import NoReturn

from pydantic_core import PydanticCustomError

REFUSED = "refused"


def refuse(at: str, summary: str, hint: str) -> NoReturn:
    """Refuse the model because of its field ``at``."""
    raise PydanticCustomError(REFUSED, "{summary}", {"at": at, "summary": summary, "hint": hint})
