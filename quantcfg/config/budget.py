"""The budget of a config in rules, kept before any of them is read: each is checked once for every stage."""

from __future__ import annotations

from collections.abc import Iterator

from quantcfg.config.collect import Findings
from quantcfg.config.layers import RULE_SECTIONS, RULE_TABLES
from quantcfg.config.nodes import Entry, Leaf, Table, as_table
from quantcfg.config.patterns import is_exact

MAX_RULES = 15_000
DEAR = 5
_TABLES = (
    ("qconfigs",),
    ("guards", "ops"),
    *((*section, table) for section in RULE_SECTIONS for table in RULE_TABLES),
)


def refuse_too_many(tree: Table, findings: Findings) -> None:
    """Count rules and named qconfigs; a pattern and a qconfig that is written out count as `DEAR` of them.

    Raises:
        ConfigError: there are more than `MAX_RULES`.
    """
    count = 0
    for name, entry in _named(tree):
        count += 1 if is_exact(name) else DEAR
        count += 0 if isinstance(entry.node, Leaf) else DEAR
        if count > MAX_RULES:
            findings.error(
                "QC004",
                f"more than {MAX_RULES} rules and qconfigs",
                entry.key_place,
                notes=(f"a pattern counts as {DEAR}, and so does a qconfig that is written out",),
                help="let a pattern or a class stand for many modules; name under `qconfigs` what they share",
            )
            findings.raise_if_errors()


def _named(tree: Table) -> Iterator[tuple[str, Entry]]:
    for path in _TABLES:
        table = tree
        for key in path:
            table = as_table(table.get(key))
        yield from table.entries.items()
