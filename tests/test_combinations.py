"""The whole grid: a config accepts a combination exactly when its quantizer can be built and works."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError
from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.qconfig import FakeQuantFactory

SCHEMES = ("per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric", "per_channel_affine")
SLOTS = ("activation", "weight")
COMBINATIONS = list(itertools.product(OBSERVERS, FAKE_QUANTIZES, SCHEMES))


def refused(tmp_path: Path, names: dict[str, dict[str, object]]) -> set[str]:
    """Write one config with a named qconfig for each combination; return the names with an error."""
    path = tmp_path / "grid.yaml"
    lines = ["version: 1", "qconfig: {global: w8a8}", "qconfigs:"]
    for name, fields in names.items():
        lines.append(f"  {name}: {fields}".replace("'", ""))
    path.write_text("\n".join(lines) + "\n")
    first = 4
    try:
        load_config(path)
    except ConfigError as error:
        numbered = list(names)
        return {numbered[d.place.line - first] for d in error.diagnostics if d.place is not None}
    return set()


def kwargs_of(dtype: str, scheme: str) -> dict[str, object]:
    axis: dict[str, object] = {"ch_axis": 0} if scheme.startswith("per_channel") else {}
    return {"dtype": dtype, "qscheme": scheme} | axis


@pytest.mark.parametrize(("observer", "fake_quant", "scheme"), COMBINATIONS)
def test_the_config_accepts_what_can_be_built_and_nothing_else(
    observer: str, fake_quant: str, scheme: str, tmp_path: Path
) -> None:
    asked, built = {}, set()
    for dtype, slot in itertools.product(DTYPES, SLOTS):
        name, kwargs = f"{slot}_{dtype}", kwargs_of(dtype, scheme)
        asked[name] = {
            f"{slot}_fake_quant": fake_quant,
            f"{slot}_observer": observer,
            f"{slot}_qkwargs": kwargs,
        }
        factory = FakeQuantFactory(fake_quant, observer, tuple(sorted(kwargs.items())))
        try:
            module = factory(num_channels=3)
        except ValueError:
            continue
        built.add(name)
        module.observing = True
        module(torch.linspace(-2, 3, 12).reshape(3, 4))
        module.observing, module.quantizing = False, True
        module.finish_observation()
        result = module(torch.linspace(-2, 3, 12).reshape(3, 4))
        assert result.isfinite().all()
        assert (module.qparams().scale > 0).all()

    for slot in SLOTS:  # one at a time: a file shows its first hundred errors
        mine = {name: fields for name, fields in asked.items() if name.startswith(slot)}
        assert refused(tmp_path, mine) == set(mine) - built
