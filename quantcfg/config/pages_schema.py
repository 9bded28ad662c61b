"""Pages of the codes QC1xx: keys and values that the schema does not know or that do not fit together."""

from __future__ import annotations

from quantcfg.config.page import Page

SCHEMA_PAGES = (
    Page(
        "QC101",
        "unknown key",
        "No part of quantcfg reads this key, so it would do nothing. Keys that start with `x-` are "
        "free notes.",
        "version: 1\ncalib:\n  batchs: 8\n",
        "version: 1\ncalib:\n  batches: 8\n",
    ),
    Page(
        "QC102",
        "a key is missing",
        "A mapping lacks a key that has no default.",
        "version: 1\nqat:\n  optimizer: {name: SGD}\n",
        "version: 1\nqat:\n  optimizer: {name: SGD, lr: 1e-4}\n",
    ),
    Page(
        "QC103",
        "a value of the wrong type",
        'Values are not converted: the text `"8"` is not the number 8, and 1 is not true. `on`, '
        "`yes`, `no` and `off` are texts. An empty value is null.",
        'version: 1\ncalib:\n  batches: "8"\n',
        "version: 1\ncalib:\n  batches: 8\n",
    ),
    Page(
        "QC104",
        "a value that is not one of those allowed",
        "The field takes one of a few words; the message lists them.",
        "version: 1\nqat:\n  bn: folded\n",
        "version: 1\nqat:\n  bn: fold\n",
    ),
    Page(
        "QC105",
        "a value out of range",
        "The number is too small or too large, the list too short or too long, or the text not of the "
        "form needed.",
        "version: 1\ncalib:\n  batches: 0\n",
        "version: 1\ncalib:\n  batches: 1\n",
    ),
    Page(
        "QC106",
        "an unknown version of the format",
        "The file was written for another version of quantcfg, or `version` holds something else than 1.",
        "version: 2\n",
        "version: 1\n",
    ),
    Page(
        "QC107",
        "two keys that exclude each other",
        "Both keys say the same thing in different ways, or one has no meaning without the other.",
        "version: 1\nqat:\n  epochs: 3\n  steps: 1000\n",
        "version: 1\nqat:\n  epochs: 3\n",
    ),
    Page(
        "QC108",
        "`extends` or `table` names nothing that can be read",
        "A name that ends in .yaml, .yml or .toml is a file, found from the folder of the file that "
        "names it; any other name is a preset.",
        "version: 1\nextends: w8a\n",
        "version: 1\nextends: w8a8\n",
    ),
    Page(
        "QC109",
        "`extends` goes in a circle",
        "A file extends itself, directly or through others; the message shows the way round. This is c.yaml:",
        "version: 1\nextends: c.yaml\n",
        "version: 1\nextends: w8a8\n",
    ),
    Page(
        "QC110",
        "`--set` names what cannot be set",
        "`--set a.b=1` needs `a` to be a mapping. Set `a` itself, or write it out in the file. "
        "`version` and `extends` belong to a file.",
        "version: 1\nqconfig: {global: w8a8}\nqat: {epochs: 3}\n",
        "version: 1\nqconfig: {global: w8a8}\nqat: {epochs: 3}\n",
        fails_with="qat.epochs.first=2",
        fixed_with="qat.epochs=2",
    ),
    Page(
        "QC111",
        "`--set` is not of the form path.to.key=value",
        "The value is read as YAML. Names with dots stand for themselves under `module_name` and "
        '`module_type`; elsewhere quote them: `a."b.c"=1`.',
        "version: 1\nqconfig: {global: w8a8}\n",
        "version: 1\nqconfig: {global: w8a8}\n",
        fails_with="qat.epochs 5",
        fixed_with="qat.epochs=5",
    ),
    Page(
        "QC120",
        "an unknown qconfig",
        "The name is neither a preset (`quantcfg presets`) nor defined under `qconfigs`.",
        "version: 1\nqconfig:\n  global: w8a9\n",
        "version: 1\nqconfig:\n  global: w8a8\n",
    ),
    Page(
        "QC121",
        "an unknown observer",
        "`quantcfg observers` lists them with their parameters.",
        "version: 1\nqconfig:\n  global: {activation_observer: minmax}\n",
        "version: 1\nqconfig:\n  global: {activation_observer: min_max}\n",
    ),
    Page(
        "QC122",
        "an unknown fake quantize",
        "`quantcfg fake-quants` lists them with their parameters.",
        "version: 1\nqconfig:\n  global: {weight_fake_quant: lqs}\n",
        "version: 1\nqconfig:\n  global: {weight_fake_quant: lsq}\n",
    ),
    Page(
        "QC123",
        "a parameter of another observer or fake quantize",
        "Parameters are typed per kind: `percentile` belongs to the observer percentile and means "
        "nothing to mse.",
        "version: 1\n"
        "qconfig:\n"
        "  global: {activation_observer: mse, activation_qkwargs: {percentile: 99.9}}\n",
        "version: 1\n"
        "qconfig:\n"
        "  global: {activation_observer: percentile, activation_qkwargs: {percentile: 99.9}}\n",
    ),
    Page(
        "QC124",
        "an unknown parameter",
        "No observer and no fake quantize has a parameter of this name.",
        "version: 1\nqconfig:\n  global: {weight_qkwargs: {dtyp: qint4}}\n",
        "version: 1\nqconfig:\n  global: {weight_qkwargs: {dtype: qint4}}\n",
    ),
    Page(
        "QC125",
        "an unknown dtype or qscheme",
        "Dtypes are qint2 to qint16 and quint2 to quint16; schemes are per_tensor_symmetric, "
        "per_channel_symmetric, per_tensor_affine and per_channel_affine.",
        "version: 1\nqconfig:\n  global: {weight_qkwargs: {dtype: int8}}\n",
        "version: 1\nqconfig:\n  global: {weight_qkwargs: {dtype: qint8}}\n",
    ),
    Page(
        "QC126",
        "parts of a qconfig that do not fit together",
        "Each value is fine by itself, but one makes the other meaningless or impossible: a channel "
        "axis without channels, bounds beyond the dtype, kl with 16 bits, parameters of a slot that "
        "is not quantized.",
        "version: 1\nqconfig:\n  global: {weight_qkwargs: {qscheme: per_tensor_symmetric, ch_axis: 0}}\n",
        "version: 1\nqconfig:\n  global: {weight_qkwargs: {qscheme: per_tensor_symmetric}}\n",
    ),
    Page(
        "QC127",
        "named qconfigs go in a circle",
        "Each starts from the other, so none starts from anything.",
        "version: 1\nqconfigs:\n  a: {preset: b}\n  b: {preset: a}\n",
        "version: 1\nqconfigs:\n  a: {preset: b}\n  b: {preset: w8a8}\n",
    ),
    Page(
        "QC128",
        "a preset with a new name (warning)",
        "The name still works and means the same as the new one.",
        "version: 1\nqconfig:\n  global: default_qat_16bit_fake_quant_qconfig\n",
        "version: 1\nqconfig:\n  global: default_qat_8bit_weight_16bit_act_fake_quant_qconfig\n",
    ),
    Page(
        "QC129",
        "a name that is taken",
        "A qconfig of your own has the name of a preset; readers could not tell which one a rule means.",
        "version: 1\nqconfigs:\n  w8a8: {weight_observer: mse}\n",
        "version: 1\nqconfigs:\n  my_w8a8: {weight_observer: mse}\n",
    ),
    Page(
        "QC130",
        "not a pattern",
        "Patterns match whole names by segments: `*` one segment, `**` any number, `?` one character, "
        "`{a,b}`, `{2..9}`. `re:` starts a regular expression that must match the whole name.",
        "version: 1\nqconfig:\n  module_name:\n    blocks.[01].mlp: w8a8\n",
        "version: 1\nqconfig:\n  module_name:\n    blocks.{0,1}.mlp: w8a8\n",
    ),
    Page(
        "QC131",
        "not the name of a class",
        "Under `module_type` stand dotted names of classes. They are compared with the classes of the "
        "model as texts; nothing is imported. Patterns of module names belong under `module_name`.",
        "version: 1\nqconfig:\n  module_type:\n    Lin*: w8a8\n",
        "version: 1\nqconfig:\n  module_type:\n    Linear: w8a8\n",
    ),
    Page(
        "QC132",
        "not what the target takes",
        "`export.target` names where the model is to run, and a qconfig asks for a dtype or scheme that "
        "it takes for no op. `export.unsupported: adjust` takes the nearest grid that it has, `float` leaves "
        "such ops in float; `quantcfg plan` lists what was changed. docs/export.md has the tables.",
        "version: 1\nqconfig:\n  global: {preset: w8a8, activation_qkwargs: {dtype: qint4}}\n"
        "export: {target: tensorrt}\n",
        "version: 1\nqconfig:\n  global: {preset: w8a8, activation_qkwargs: {dtype: qint4}}\n"
        "export: {target: tensorrt, unsupported: adjust}\n",
    ),
    Page(
        "QC133",
        "an unsigned dtype with a symmetric qscheme (warning)",
        "The zero point of a symmetric qscheme is 0, the lowest integer of an unsigned dtype: every value "
        "below 0 becomes 0. The scale is that of the range from -max to max, whose lower half the grid does "
        "not have, so values above 0 use half of the integers. A `scale` that is written out, with "
        "`fixed_scale`, may use them all.",
        "version: 1\nqconfig:\n  global: {preset: w8a8, activation_qkwargs: {dtype: quint8}}\n",
        "version: 1\nqconfig:\n"
        "  global: {preset: w8a8, activation_qkwargs: {dtype: quint8, qscheme: per_tensor_affine}}\n",
    ),
    Page(
        "QC134",
        "a percentile that looks like a fraction (warning)",
        "The observer percentile counts in percent: 99.99 leaves out the largest 0.01 % of the "
        "values. A percentile of at most 1 leaves out nearly all of them, and is most likely a fraction.",
        "version: 1\nqconfig:\n"
        "  global: {activation_observer: percentile, activation_qkwargs: {percentile: 0.9999}}\n",
        "version: 1\nqconfig:\n"
        "  global: {activation_observer: percentile, activation_qkwargs: {percentile: 99.99}}\n",
    ),
)
