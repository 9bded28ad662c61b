"""Every block of the README files is run, or compared with what it speaks of.

The commands are run by ``examples/test_pages.py``.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantcfg.config.load import load_config
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.observers import OBSERVERS
from tests.examples.conftest import with_what_pages_name

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("examples/*/README.md")), ROOT / "docs" / "README.md"]


@dataclass(frozen=True, slots=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(language: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == language], ids=str)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"yaml", "console", "python", "sh"}


@of("python")
def test_a_python_block_runs(block: Block, tmp_path: Path) -> None:
    with_what_pages_name(tmp_path)
    command = [sys.executable, "-W", "error", "-c", block.text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@of("sh")
def test_a_set_up_command_is_a_target_of_the_makefile(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", block.text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_the_config_on_the_first_screen_is_the_one_that_the_command_names(tmp_path: Path) -> None:
    block, *others = [block for block in blocks_of(README) if block.language == "yaml"]
    shown = tmp_path / "digits_w4a4.yaml"
    shown.write_text(block.text)
    assert load_config(shown).flattened() == load_config(ROOT / "configs" / shown.name).flattened()
    assert not others


def test_the_table_lists_every_observer_and_fake_quantize() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", README.read_text(), re.MULTILINE)
    assert rows == [*OBSERVERS, *FAKE_QUANTIZES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
