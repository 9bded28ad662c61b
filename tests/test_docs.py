"""The Python of the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}

    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)


def test_there_is_something_to_run() -> None:
    assert "prepare.md" in [page.name for page in PAGES]


def test_the_keys_of_the_plan_are_all_documented() -> None:
    import torch

    import quantcfg as qc

    prepared = qc.prepare(
        torch.nn.Linear(2, 2), {"": qc.get_default_qconfig()}, example_inputs=torch.ones(1, 2)
    )
    plan = qc.plan_of(prepared).to_dict()
    text = (ROOT / "docs" / "prepare.md").read_text()

    for key in (*plan, *plan["ops"][0]):
        assert f"`{key}`" in text, key
