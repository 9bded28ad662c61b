"""Pages of the codes QC2xx: rules that do not do on a model what they seem to say."""

from __future__ import annotations

from quantcfg.config.page import Page

RULE_PAGES = (
    Page(
        "QC201",
        "a rule matches nothing",
        "No module and no op of the model fits. The message says at which segment a name stops "
        "matching and what is there instead. A rule that may match nothing says so: `{use: w8a8, "
        "optional: true}`.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    blocks.*.mpl: w4a8\n",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    blocks.*.mlp: w4a8\n",
    ),
    Page(
        "QC202",
        "a rule matches another number of names than expected",
        "`expect` pins how many modules and ops a rule names itself, not counting what is inside of them.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    blocks.*.mlp: {use: w4a8, expect: 16}\n",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    blocks.*.mlp: {use: w4a8, expect: 2}\n",
    ),
    Page(
        "QC203",
        "a config that quantizes nothing (warning)",
        "No rule gives a qconfig. That is fine for a file that others extend.",
        "version: 1\nqconfig:\n  global: null\n",
        "version: 1\nqconfig:\n  global: w8a8\n",
    ),
    Page(
        "QC204",
        "an alternative of a pattern matches nothing",
        "The pattern matches, but not with this one of the names between its braces, which is most likely "
        "misspelt. The numbers of a range need not all be there. A rule whose alternatives may match nothing "
        "says so: `{use: w8a8, optional: true}`.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    blocks.*.{mlp,atn}: w4a8\n",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    blocks.*.{mlp,attn}: w4a8\n",
    ),
    Page(
        "QC210",
        "two patterns disagree and only their order decides (warning)",
        "Both match the same module and give it different qconfigs; the later one wins.",
        "version: 1\nqconfig:\n  module_name:\n    blocks.*.mlp: w8a8\n    blocks.1.*: w4a8\n",
        "version: 1\nqconfig:\n  module_name:\n    blocks.0.mlp: w8a8\n    blocks.1.*: w4a8\n",
    ),
    Page(
        "QC211",
        "a rule never wins (warning)",
        "Wherever it matches another rule beats it: one on a nearer module, an exact name, or a later one.",
        "version: 1\nqconfig:\n  module_type:\n    Part: w4a8\n  module_name:\n    blocks: w8a8\n",
        "version: 1\nqconfig:\n  module_name:\n    blocks: w8a8\n",
    ),
    Page(
        "QC212",
        "a rule changes nothing (warning)",
        "It wins, but without it the same qconfig would come from another rule.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_type:\n    Linear: w8a8\n",
        "version: 1\nqconfig:\n  global: w8a8\n",
    ),
    Page(
        "QC213",
        "a rule matches only what has no quantizer of its own (warning)",
        "Its ops stay in float whatever a rule says, or they keep the grid of their input: dropout, reshape, "
        "max pool, the statistics of a norm. The message gives the reason of the first one.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    drop: w4a8\n",
        "version: 1\nqconfig:\n  global: w8a8\n",
        needs_model=True,
    ),
    Page(
        "QC214",
        "a rule matches only what fusion absorbs (warning)",
        "Its ops are inside of a chain such as convolution, batch norm and ReLU, which has one quantizer at "
        "its end, and another rule decides that one.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    bn: w4a8\n    relu_0: w8a16\n",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    relu_0: w8a16\n",
        needs_model=True,
    ),
    Page(
        "QC215",
        "a rule matches only what the example never runs (warning)",
        "The modules exist, but no op ran inside of them when the model was run once on its example inputs "
        "or first batch. What does not run cannot be quantized.",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    spare: w4a8\n",
        "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    spare: {use: w4a8, optional: true}\n",
        needs_model=True,
    ),
    Page(
        "QC216",
        "an op with what the target does not take",
        "`export.target` takes another dtype or scheme for these ops than their rule asks for: weights of "
        "transposed convolutions, for one, have fewer choices on some targets. A scale that is fixed, and "
        "`pact` where the target wants an affine grid, cannot be adjusted.",
        "version: 1\nqconfig:\n  global: w8a8\nexport:\n  target: tensorrt\n",
        "version: 1\nqconfig:\n  global: w8a8\nexport:\n  target: tensorrt\n  unsupported: adjust\n",
        needs_model=True,
    ),
)
