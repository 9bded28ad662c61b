"""Whole outputs of broken files by ==. Set UPDATE_GOLDEN=1 to write them anew, then read the difference."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError
from quantcfg.render.diagnostics import format_diagnostics

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
BROKEN = sorted(path for path in GOLDEN.iterdir() if path.suffix in (".yaml", ".toml"))


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.name)
def test_the_whole_output_of_a_broken_file(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    shown = format_diagnostics(caught.value.diagnostics).replace(f"{GOLDEN}/", "") + "\n"
    expected = path.with_name(path.name + ".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(shown)
    assert shown == expected.read_text()


def test_the_example_of_the_reference_page_loads(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "config.md").read_text(), re.DOTALL)[1]
    (tmp_path / "team.yaml").write_text("version: 1\nqconfig: {global: w8a8}\n")
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml").warnings == ()
