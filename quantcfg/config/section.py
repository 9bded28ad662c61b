"""What every part of the file is built on: strict frozen models, and numbers with bounds.

A config is checked by what `compiled` keeps of these models; they are made when a stage asks for values, or
for the schema of editors. Annotations are no strings, which pydantic would have to evaluate.
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
