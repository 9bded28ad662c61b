"""Pages of the codes QC0xx: what is wrong with the text of a file, whatever it means."""

from __future__ import annotations

from quantcfg.config.page import Page

SYNTAX_PAGES = (
    Page(
        "QC001",
        "not valid YAML or TOML",
        "The file cannot be read as what its name says it is. The usual causes are a wrong "
        "indentation, a tab, a missing colon, or a value that needs quotes.",
        "version: 1\nqconfig\n  global: w8a8\n",
        "version: 1\nqconfig:\n  global: w8a8\n",
    ),
    Page(
        "QC002",
        "not plain UTF-8 text",
        "A config is UTF-8 text without control characters. A character that some readers take as a "
        "line break and others do not is refused, too, as line numbers would be wrong.",
        "version: 1\nqconfig: {global: w8a8}  # \x07\n",
        "version: 1\nqconfig: {global: w8a8}\n",
    ),
    Page(
        "QC003",
        "a key appears twice",
        "A mapping has the same key more than once. Most readers keep the last one without a word; "
        "here a rule would get lost.",
        "version: 1\nqconfig:\n  global: w8a8\n  global: w4a8\n",
        "version: 1\nqconfig:\n  global: w4a8\n",
    ),
    Page(
        "QC004",
        "over the budget",
        "A config may have 1 MiB, 32 levels of nesting, 50,000 values (those behind aliases counted "
        "as often as they are used), 100 aliases and 64 files. It may have 15,000 rules and named "
        "qconfigs; a pattern and a qconfig that is written out count as five. A config that needs more "
        "is not one that people wrote.",
        "version: 1\n"
        "x-deep: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n",
        "version: 1\n",
    ),
    Page(
        "QC005",
        "a feature of YAML that configs do without",
        "Tags, merge keys (`<<`), several documents, keys that are not texts, and aliases that "
        "contain themselves are refused. What is shared belongs under `qconfigs` or into a file that "
        "`extends` names.",
        "version: 1\nx-common: &common {batches: 8}\ncalib:\n  <<: *common\n",
        "version: 1\ncalib:\n  batches: 8\n",
    ),
    Page(
        "QC006",
        "a number that cannot be trusted",
        "Leading zeros mean octal to some readers and decimal to others; numbers beyond 64 bits, NaN "
        "and infinities have no use here. Dates of TOML are refused for the same reason.",
        "version: 1\ncalib:\n  batches: 012\n",
        "version: 1\ncalib:\n  batches: 12\n",
    ),
    Page(
        "QC007",
        "not a mapping",
        "The file is empty, or holds a list or a single value. A config is a mapping that starts with "
        "`version: 1`.",
        "- version: 1\n",
        "version: 1\n",
    ),
    Page(
        "QC008",
        "too many findings",
        "After 100 findings the search stops. Correct these, then look again.",
    ),
)
