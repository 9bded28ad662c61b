"""What every part of the file is built on: strict frozen models, and numbers with bounds.

Nothing in the modules of the schema may slow down the start: annotations are no strings that pydantic
would have to evaluate, defaults are not validated, and one validator is built, that of the whole file.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LIST = Field(strict=False)
"""A list of the file becomes a tuple of the frozen model; what is in it stays strict."""
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every part of the file: unknown keys are refused, nothing is coerced, ``x-`` keys are notes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
    )
