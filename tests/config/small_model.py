"""A small model as rules see it, and configs that speak of it."""

from __future__ import annotations

from quantcfg.config.rules import Target

MODEL_CONFIG = """\
version: 1
qconfig:
  global: w8a8
  module_type:
    torch.nn.Linear: w8a16
    Attention: w8a8_lsq
  module_name:
    backbone.layer{1,2}.*.conv2: w4a8
    backbone.layer1.block: w8a16
    encoder.**.attention: w4a4
    classifier.output: w8a32
"""
OVERLAPS = """\
version: 1
qconfig:
  global: w8a8
  module_name:
    backbone.*.block: w8a16
    backbone.layer1.*: w4a8
    encoder.**: w4a4
    encoder.*.first.*: w8a8_lsq
    classifier.*: w8a8
    classifier.output: w8a32
"""
MODEL = (
    ("backbone.layer1.block.conv2", "torch.nn.Conv2d"),
    ("backbone.layer2.block.conv2", "torch.nn.Conv2d"),
    ("encoder.stack.first.attention", "Attention"),
    ("encoder.stack.first.project", "torch.nn.Linear"),
    ("classifier.output", "torch.nn.Linear"),
)


def targets() -> list[Target]:
    """The small model that the rules of `MODEL_CONFIG` speak of."""
    made = []
    for name, kind in MODEL:
        parts = name.split(".")
        chain = [("", ("Net",)), *((".".join(parts[:n]), ("Block",)) for n in range(1, len(parts)))]
        made.append(Target(name, (*chain, (name, (kind, kind.rpartition(".")[2])))))
    return made
