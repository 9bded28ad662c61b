"""Fixtures that load a config from text and show its errors as a user sees them."""

from __future__ import annotations

import pytest

from quantcfg.config.load import load_config
from quantcfg.config.rules import Target
from quantcfg.errors import ConfigError
from quantcfg.render.diagnostics import format_diagnostics

LINEAR = ("torch.nn.modules.linear.Linear", "torch.nn.Linear", "Linear")


@pytest.fixture
def load(tmp_path):
    def load_text(text, *, name="c.yaml", overrides=()):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, overrides=overrides)

    return load_text


@pytest.fixture
def errors(load):
    def errors_of(text, **options):
        try:
            load(text, **options)
        except ConfigError as error:
            return list(error.diagnostics)
        return []

    return errors_of


@pytest.fixture
def brief(errors):
    def brief_of(text, **options):
        return [f"{e.code} {e.place.line}:{e.place.column} {e.summary}" for e in errors(text, **options)]

    return brief_of


@pytest.fixture
def shown(errors, tmp_path):
    def shown_text(text, **options):
        return format_diagnostics(errors(text, **options)).replace(f"{tmp_path}/", "")

    return shown_text


@pytest.fixture
def targets():
    """Two blocks of mlp and attn, each with two linear layers, and a head."""
    return [
        Target(
            f"blocks.{block}.{part}.{layer}",
            (
                ("", ("m.Net", "Net")),
                ("blocks", ("torch.nn.ModuleList", "ModuleList")),
                (f"blocks.{block}", ("m.Block", "Block")),
                (f"blocks.{block}.{part}", ("m.Part", "Part")),
                (f"blocks.{block}.{part}.{layer}", LINEAR),
            ),
        )
        for block in range(2)
        for part in ("mlp", "attn")
        for layer in ("fc1", "fc2")
    ] + [Target("head", (("", ("m.Net", "Net")), ("head", LINEAR)))]
