"""What the `calib` section of the config file is made of, beside plain fields."""

from typing import Annotated, Literal

from pydantic import Field

from quantcfg.config.section import LIST, Section

Candidate = Literal["min_max", "clip", "percentile", "clip_std", "mse", "kl", "mix"]
"""The observers that can be compared: all that find a range in data."""
Candidates = Annotated[tuple[Candidate, ...], LIST, Field(min_length=2)]


class CompareBy(Section):
    """The metric that decides between observers."""

    metric: str
    """A metric of `evaluate`; `accuracy` or `loss` without one."""
    mode: Literal["max", "min"] = "max"
    """Whether larger or smaller is better."""
