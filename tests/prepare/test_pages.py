"""The examples of the error pages that are about a real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from quantcfg.config.codes import CODES
from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.render.diagnostics import format_diagnostics
from tests.prepare.models import PageModel

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ON_A_MODEL = [page for page in CODES.values() if page.needs_model]


def findings_of(folder, text):
    (folder / "c.yaml").write_text(text)
    config = load_config(folder / "c.yaml")
    try:
        model = prepare(PageModel().eval(), config, example_inputs=torch.rand(2, 1, 5, 5))
    except ConfigError as error:
        return list(error.diagnostics)
    return list(plan_of(model).findings)


@pytest.mark.parametrize("page", ON_A_MODEL, ids=lambda page: page.code)
def test_the_failing_example_gives_the_code_and_the_fixed_one_nothing(page, tmp_path):
    assert [item.code for item in findings_of(tmp_path, page.failing)] == [page.code]
    assert findings_of(tmp_path, page.fixed) == []


@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
def test_the_whole_output_of_every_failing_example(colour, tmp_path):
    """UPDATE_GOLDEN=1 writes them anew. No width is asked for: lines of findings are not wrapped."""
    shown = ""
    for page in ON_A_MODEL:
        findings = findings_of(tmp_path, page.failing)
        shown += format_diagnostics(findings, colour=colour).replace(f"{tmp_path}/", "") + "\n\n"
    golden = GOLDEN / ("codes-model-colour.txt" if colour else "codes-model.txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text()
