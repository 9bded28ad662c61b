"""Every code that a diagnostic can have, each with its page: what it means, a failing and a fixed example."""

from __future__ import annotations

from quantcfg.config.page import EXAMPLE_MODEL, Page
from quantcfg.config.pages_rules import RULE_PAGES
from quantcfg.config.pages_schema import SCHEMA_PAGES
from quantcfg.config.pages_syntax import SYNTAX_PAGES
from quantcfg.config.source import CONTROL

CODES: dict[str, Page] = {page.code: page for page in (*SYNTAX_PAGES, *SCHEMA_PAGES, *RULE_PAGES)}
"""Page by code, in the order of the codes."""


def page_text(page: Page) -> str:
    """A page as Markdown."""
    parts = [f"## {page.code}: {page.title}", page.text]
    if page.needs_model:
        parts.append(EXAMPLE_MODEL)
    if page.failing:
        parts += [f"Fails{_with(page.fails_with)}:", _block(page.failing)]
        parts += [f"Fixed{_with(page.fixed_with)}:", _block(page.fixed)]
    return "\n\n".join(parts)


def all_pages() -> str:
    """The document ``docs/errors.md``."""
    head = (
        "# Errors and warnings of configs\n\n"
        "`quantcfg explain CODE` shows one of these pages. QC0xx: the text of the file. QC1xx: its meaning. "
        "QC2xx: its rules on a model.\n"
    )
    return "\n".join([head, *(page_text(page) + "\n" for page in CODES.values())])


def _with(override: str) -> str:
    return f" with `--set '{override}'`" if override else ""


def _block(example: str) -> str:
    visible = CONTROL.sub(lambda match: f"<U+{ord(match[0]):04X}>", example.rstrip())
    return f"```yaml\n{visible}\n```"
