"""These tests run in the environment of `make models`; elsewhere they are skipped."""

from tests.models.operators import declare_operators

declare_operators()
