"""Rules that win and decide nothing: what has no quantizer, what fusion absorbs, what never runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantcfg.config.load import load_config
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.qconfig import preset_qconfig
from tests.prepare.models import PageModel


@pytest.fixture
def findings(tmp_path):
    def of(rules):
        path = tmp_path / "c.yaml"
        path.write_text(f"version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    {rules}\n")
        model = prepare(PageModel().eval(), load_config(path), example_inputs=torch.rand(2, 1, 5, 5))
        return [f"{f.code} {f.place.line}:{f.place.column} {f.label}" for f in plan_of(model).findings]

    return of


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("drop: w4a8", ["QC213 5:5 wins `drop`: keeps the grid of its input"]),
        ("'{bn,conv}': w4a8", []),
        ("spare: w4a8", ["QC215 5:5 matches `spare`, inside of which no op ran"]),
        ("spare: {use: w4a8, optional: true}", []),
        ("spare: {use: w4a8, expect: 0}", []),
        ("nowhere: {use: w4a8, expect: 0}", []),
        ("drop: null", ["QC213 5:5 wins `drop`: keeps the grid of its input"]),
        ("head: null", []),
        ("head: w8a32", []),
    ],
)
def test_what_is_said_about_a_rule_that_decides_nothing(findings, rule, found):
    assert findings(rule) == found


def test_a_rule_on_what_fusion_absorbs_decides_nothing_when_another_one_is_stronger(findings):
    assert findings("bn: w4a8\n    relu_0: w8a16") == [
        "QC214 5:5 wins `bn`: fused into relu_0",
    ]


class Gram(nn.Module):
    def forward(self, x):
        return x @ x.t()


INT8, WEIGHTS = preset_qconfig("w8a8"), preset_qconfig("w8a32")
X, IDS = torch.rand(2, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("model", "inputs", "rules", "codes"),
    [
        (nn.GRU(4, 4), X, {"": INT8}, ["QC203"]),  # float, whatever the rules say
        (nn.Softmax(1), X, {"": WEIGHTS}, ["QC203"]),
        (nn.GRU(4, 4), X, {"": None}, []),  # nobody asked for more
        (nn.Sigmoid(), X, {"": INT8}, []),  # an output
        (nn.Embedding(2, 4), IDS, {"": WEIGHTS}, []),  # a weight
        (Gram(), X, {"": INT8, "module_name": {"matmul_0": WEIGHTS}}, []),  # the operands of a product
    ],
)
def test_a_model_of_which_nothing_is_quantized_is_warned_of(model, inputs, rules, codes):
    prepared = prepare(model, rules, example_inputs=inputs)
    assert [finding.code for finding in plan_of(prepared).findings] == codes
