"""What is suggested: the likeliest slip, the section of a key, the part of a pattern that is wrong."""

from __future__ import annotations

import pytest

from quantcfg.config.repair import repaired_segment
from quantcfg.config.suggest import nearest


@pytest.mark.parametrize(
    ("typed", "candidates", "meant"),
    [
        ("w8a3", ["w8a8", "w8a32"], "w8a32"),
        ("qconfigg", ["qconfigs", "qconfig"], "qconfig"),
        ("AdaWm", ["Adam", "AdamW"], "AdamW"),
        ("qint61", ["qint6", "qint16"], "qint16"),
        ("W8A8", ["w8a16", "w8a8"], "w8a8"),
        ("zzz", ["w8a8"], None),
    ],
)
def test_a_slip_of_the_fingers_comes_before_other_letters(typed, candidates, meant):
    assert nearest(typed, candidates) == meant
    assert nearest(typed, candidates[::-1]) == meant


@pytest.mark.parametrize(
    ("segment", "names", "meant"),
    [
        ("layr{1,2}", ["layer1", "layer3"], "layer{1,2}"),
        ("{1..3}_bolck", ["1_block"], "{1..3}_block"),
        ("cnov?", ["conv1", "bn1"], "conv?"),
        ("*_porj", ["q_proj", "k_proj"], "*_proj"),
        ("layer{7,8}", ["layer1"], None),
        ("x*", ["layer1"], None),
        ("lay{r*", ["lay[1]"], None),
        ("ly*", ["l{y", "l*y"], "l*"),
    ],
)
def test_a_part_of_a_pattern_is_corrected(segment, names, meant):
    assert repaired_segment(segment, names) == meant


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "calib:\nbatches: 8\n",
            ["QC101 3:1 unknown key `batches`: move it into `calib`, indented beneath it"],
        ),
        (
            "qat:\nepochs: 8\nbn: keep\n",
            ["QC101 3:1 unknown keys `epochs`, `bn`: move it into `qat`, indented beneath it"],
        ),
        (
            "calib:\n  batches: 2\n  qat:\n    epochs: 1\n",
            ["QC101 4:3 unknown key `qat` in `calib`: move it to the top level, without indentation"],
        ),
        (
            "qat:\n  lr: 0.1\n",
            ["QC101 3:3 unknown key `lr` in `qat`: move it into `qat.optimizer`, indented beneath it"],
        ),
        (
            "qat:\n  schedule: {name: multistep, milestones: [3]}\n",
            [
                "QC101 3:14 unknown keys `name`, `milestones` in `qat.schedule`: "
                "move it into `qat.scheduler`, indented beneath it"
            ],
        ),
        ("calib:\n  batchs: 2\n", ["QC101 3:3 unknown key `batchs` in `calib`: write `batches`"]),
        ("calib:\n", ["QC103 2:1 `calib`: expected a mapping, got null: remove the key, or give it a value"]),
        (
            "qat:\n  schedule: {name: cosine}\n  schedule: {freeze_bn_after: 1}\n",
            ["QC003 4:3 the key `schedule` appears twice: keep one of them"],
        ),
    ],
)
def test_a_key_in_the_wrong_section_is_told_where_it_belongs(text, found, errors):
    found_here = errors(f"version: 1\n{text}")
    shown = [f"{e.code} {e.place.line}:{e.place.column} {e.summary}: {e.help}" for e in found_here]
    assert shown == found


@pytest.mark.parametrize(
    ("qconfig", "advice"),
    [
        ("{activation_observer: mse, activation_qkwargs: {percentil: 99}}", "remove it"),
        ("{activation_observer: mse, activation_qkwargs: {strid: 2}}", "write `stride`"),
        ("{weight_qkwargs: {use_grad_scalin: true}}", "remove it"),
        ("{weight_fake_quant: lsq, weight_qkwargs: {use_grad_scalin: true}}", "write `use_grad_scaling`"),
        ("{preset: inherit, activation_qkwargs: {percentil: 99}}", "write `percentile`"),
        ("{preset: inherit, weight_qkwargs: {use_grad_scalin: true}}", "write `use_grad_scaling`"),
        ("inhert", "write `{preset: inherit, ...}` with the fields that change"),
        ("{preset: inhert}", "write `inherit`"),
    ],
)
def test_what_is_suggested_would_be_accepted_there(qconfig, advice, errors):
    found = errors(f"version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    a: {qconfig}\n")
    assert [error.help for error in found] == [advice]
