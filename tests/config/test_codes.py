"""Each code has a page whose failing example gives it and whose fixed example does not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from quantcfg.config.codes import CODES, all_pages
from quantcfg.config.findings import check_rules
from quantcfg.errors import ConfigError
from quantcfg.render.diagnostics import format_diagnostics

ROOT = Path(__file__).resolve().parents[2]
WITH_EXAMPLE = [page for page in CODES.values() if page.failing and not page.needs_model]


def findings_of(load, targets, text, override=""):
    try:
        config = load(text, overrides=[override] if override else [])
    except ConfigError as error:
        return list(error.diagnostics)
    rules = config.rules("calib")
    return [*config.warnings, *check_rules(rules, targets, rules.resolve(targets))]


def codes_of(load, targets, text, override=""):
    return [item.code for item in findings_of(load, targets, text, override)]


@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
def test_the_whole_output_of_every_failing_example(colour, load, targets, tmp_path):
    """UPDATE_GOLDEN=1 writes them anew. No width is asked for: lines of findings are not wrapped."""
    shown = ""
    for page in WITH_EXAMPLE:
        findings = findings_of(load, targets, page.failing, page.fails_with)
        shown += format_diagnostics(findings, colour=colour).replace(f"{tmp_path}/", "") + "\n\n"
    golden = ROOT / "tests" / "golden" / ("codes-colour.txt" if colour else "codes.txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text()


@pytest.mark.parametrize("page", WITH_EXAMPLE, ids=lambda page: page.code)
def test_the_failing_example_gives_the_code_and_nothing_else(page, load, targets):
    assert codes_of(load, targets, page.failing, page.fails_with) == [page.code]


@pytest.mark.parametrize("page", WITH_EXAMPLE, ids=lambda page: page.code)
def test_the_fixed_example_is_free_of_the_code(page, load, targets):
    found = codes_of(load, targets, page.fixed, page.fixed_with)
    assert page.code not in found
    assert not set(found) - {"QC203"}, "a part of a config may quantize nothing, but has no other finding"


def test_only_these_pages_have_no_example():
    """A hundred errors do not fit on a page."""
    without = {page.code for page in CODES.values() if not page.failing}
    assert without == {"QC008"}


def test_a_hundred_errors_are_enough(load):
    with pytest.raises(ConfigError) as caught:
        load("version: 1\n" + "".join(f"k{number}: 1\n" for number in range(150)))
    codes = [item.code for item in caught.value.diagnostics]
    assert (codes.count("QC101"), codes.count("QC008"), len(codes)) == (100, 1, 101)


def test_every_code_in_the_source_has_a_page_and_every_page_is_used():
    text = "".join(path.read_text() for path in (ROOT / "quantcfg").rglob("*.py"))
    used = set(re.findall(r'"(QC\d{3})"', re.sub(r'Page\(\s*"QC\d{3}"', "", text)))
    assert used == set(CODES)


def test_codes_are_in_order():
    assert list(CODES) == sorted(CODES)


def test_the_document_is_what_the_pages_say():
    """UPDATE_GOLDEN=1 writes it anew."""
    document = ROOT / "docs" / "errors.md"
    if os.environ.get("UPDATE_GOLDEN"):
        document.write_text(all_pages())
    assert document.read_text() == all_pages()
