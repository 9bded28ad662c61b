"""Rules given in code: both forms of the dict, the priority, inheritance, attributes, and their errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError, PrepareError
from quantcfg.preparation.plan import OpRow
from quantcfg.preparation.prepare import prepare, prepare_qat_fx
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import QConfig, get_default_qconfig
from tests.prepare.models import ResNet

INT8 = get_default_qconfig()
INT16 = get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
INT4 = get_default_qconfig(activation_qkwargs={"dtype": "qint4"})
OUT32 = get_default_qconfig(activation_fake_quant=None)


def rows(qconfig_dict: dict[str, Any], model: nn.Module | None = None) -> dict[str, OpRow]:
    prepared = prepare(model or ResNet().eval(), qconfig_dict, example_inputs=(torch.randn(2, 3, 8, 8),))
    return {row.name: row for row in plan_of(prepared).rows}


def activation(row: OpRow) -> str | None:
    return row.activation.dtype if row.activation else None


@pytest.mark.parametrize("form", [list, dict])
def test_both_forms_of_the_dict_and_the_rising_priority(form: type) -> None:
    found = rows(
        {
            "": INT8,
            "module_type": form([(nn.Linear, INT4), (nn.Conv2d, INT4)]),
            "module_name": form([("classifier", OUT32), ("blocks.1", INT16)]),
        }
    )

    assert activation(found["cat_0"]) == "qint8"
    assert activation(found["stem.2"]) == "qint4"  # the chain's most specific rule is that of its convolution
    assert activation(found["blocks.1.relu"]) == "qint16"  # a name, even inherited, beats a type
    assert (found["classifier"].activation, found["classifier"].weight.dtype) == (None, "qint8")


def in_float(qconfig_dict: dict[str, Any], hybrid_dict: dict[str, Any]) -> set[str]:
    x = (torch.randn(2, 3, 8, 8),)
    model = prepare_qat_fx(
        ResNet().eval(), qconfig_dict, example_inputs=x, hybrid=True, hybrid_dict=hybrid_dict
    )
    return {row.name for row in plan_of(model).rows if row.reason.startswith("left in float")}


@pytest.mark.parametrize("names", [{}, {"blocks": INT16}, {"classifier": INT16, "blocks.1.conv1": INT16}])
@pytest.mark.parametrize("linear", [nn.Linear, "torch.nn.Linear"])
def test_a_hybrid_dict_leaves_in_float_whatever_the_rules_say(
    names: dict[str, QConfig], linear: type | str
) -> None:
    hybrid_dict = {"module_type": [linear], "module_name": ["blocks.1.conv1", "blocks.0"]}
    found = in_float({"": INT8, "module_name": names}, hybrid_dict)

    assert {name for name in found if not name.startswith("blocks.0.")} == {"classifier", "blocks.1.conv1"}
    assert found >= {"blocks.0.conv1", "blocks.0.conv2", "blocks.0.add_0"}


@pytest.mark.parametrize("hybrid_dict", [{"module_type": [nn.GRU]}, {"module_name": ["blocks.7"]}])
def test_what_a_hybrid_dict_names_is_there(hybrid_dict: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="matches nothing"):
        in_float({"": INT8}, hybrid_dict)


def test_none_leaves_in_float_what_it_matches_and_what_is_inside() -> None:
    found = rows({"": INT8, "module_name": {"blocks": None}})

    assert {row.role for name, row in found.items() if name.startswith("blocks.0.conv")} == {"float"}
    assert found["blocks.0.conv1"].reason == "left in float by module_name 'blocks'"
    assert found["blocks.1.add_0"].role == "float"
    assert found["stem.2"].role == "quantized"
    assert found["add_0"].inputs == (
        "blocks.1.relu:1: qint8",
    )  # what comes out of the float blocks is brought to a grid


def test_an_attribute_of_that_name_that_is_no_qconfig_is_left_to_its_owner() -> None:
    model = ResNet().eval()
    model.classifier.qconfig = {"of": "another tool"}
    assert activation(rows({"": INT8}, model)["classifier"]) == "qint8"


def test_an_attribute_beats_every_rule() -> None:
    model = ResNet().eval()
    model.classifier.qconfig = INT16
    model.stem.qconfig = None

    found = rows({"": INT8, "module_name": {"classifier": OUT32, "stem": INT4}}, model)

    assert activation(found["classifier"]) == "qint16"
    assert found["stem.0"].role == "float"


def test_a_functional_op_has_a_name_that_rules_can_use() -> None:
    found = rows({"": INT8, "module_name": {"cat_0": INT16, "blocks.0.add_0": INT4}})

    assert activation(found["cat_0"]) == "qint16"
    assert activation(found["blocks.0.relu:1"]) == "qint4"  # the add was fused into it; the rule was not lost


class Block(nn.Module):
    """Calls of one child and ops of its own; the last three are one chain."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.fc(torch.tanh(self.fc(x))) + x)


class TwoCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.block(self.block(x)))


def outputs(model: nn.Module, names: Mapping[str, QConfig | None], **more: Any) -> dict[str, str]:
    x = torch.randn(2, 4)
    prepared = prepare(model, {"": INT8, "module_name": names}, example_inputs=x, **more)
    return {row.name: row.activation.dtype for row in plan_of(prepared).rows if row.activation}


def test_a_name_holds_for_every_call_and_a_numbered_one_for_its_call_alone() -> None:
    found = outputs(
        TwoCalls(), {"block.tanh_0": INT4, "block:1.tanh_0": INT16, "block.fc": INT4, "block.fc:2": INT16}
    )

    assert (found["block.tanh_0"], found["block:1.tanh_0"]) == ("qint4", "qint16")
    assert [found.get(f"block.fc{call}") for call in ("", ":1", ":2", ":3")] == [
        "qint4",
        None,
        "qint16",
        None,
    ]
    assert (found["block.relu_0"], found["block:1.relu_0"]) == ("qint4", "qint4")  # the ends of fc:1 and fc:3


class FourCalls(nn.Module):
    """Two calls of what calls a block twice."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = TwoCalls()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.outer(x))


def test_a_numbered_name_holds_for_all_that_runs_in_that_call() -> None:
    found = outputs(FourCalls(), {"outer:1": INT4})
    within = {name for name, dtype in found.items() if dtype == "qint4"}

    assert within == {
        "outer.block.fc:4", "outer.block:2.tanh_0", "outer.block:2.relu_0",
        "outer.block.fc:6", "outer.block:3.tanh_0", "outer.block:3.relu_0", "outer.norm:1",
    }  # fmt: skip
    assert len(found) == 2 * len(within)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        ({"outer:1": INT4, "outer": INT16}, "qint4"),  # one call is nearer than every call
        ({"outer:1": INT4, "outer.block": INT16}, "qint16"),  # what lies in it is nearer than either
        ({"outer.block": INT4, "outer.block:3": INT16}, "qint16"),
        ({"outer:1": INT4, "outer.block:2": INT16}, "qint4"),  # not that call
        ({"outer:1": INT4, "outer.block.relu_0": INT16}, "qint16"),
        ({"outer*": INT16, "outer:1": INT4}, "qint4"),
    ],
)
def test_of_numbered_names_the_nearest_wins(names: dict[str, QConfig], dtype: str) -> None:
    assert outputs(FourCalls(), names)["outer.block:3.relu_0"] == dtype


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        ({"**": INT4, "**.tanh_0": INT16}, "qint16"),  # the later one, as in the first call
        ({"**": INT4, "**.block.**": INT16}, "qint16"),
        ({"re:.*": INT4, "blo*": INT16, "norm": INT8}, "qint4"),  # the nearer one, as in the first call
        ({"block:1.*": INT16, "block.*": INT4}, "qint16"),  # one call is nearer than every call
        ({"bloc?:1.*": INT16, "**": INT4}, "qint16"),
    ],
)
def test_a_pattern_that_matches_every_call_is_no_nearer_to_a_later_one(
    names: dict[str, QConfig], dtype: str
) -> None:
    found = outputs(TwoCalls(), names)

    assert found["block:1.tanh_0"] == dtype
    assert found["block.tanh_0"] == ("qint4" if any(":1" in name for name in names) else dtype)


def test_a_module_that_is_called_outside_of_a_call_is_not_in_it() -> None:
    class Model(FourCalls):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer.norm(super().forward(x))

    found = outputs(Model(), {"outer:1": INT4})

    assert (found["outer.norm:1"], found["outer.norm:2"]) == ("qint4", "qint8")


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        ({"block.fc": INT16, "block": INT4}, "qint16"),  # the nearer, whatever the order
        ({"block": INT4, "block.fc": INT16}, "qint16"),
        ({"block.fc": INT16, "block.relu_0": INT4}, "qint4"),  # equals: the last op, whatever the order
        ({"block.relu_0": INT4, "block.fc": INT16}, "qint4"),
        ({"block.fc:1": INT16, "block.relu_0": INT4}, "qint16"),  # one call is nearer than every call
        ({"block.relu_0": INT4, "block.add_0": INT16, "block.fc": INT8}, "qint4"),
        ({"block.f*": INT16, "block": INT4}, "qint4"),  # an exact name beats a pattern, nearer or not
    ],
)
def test_the_output_of_a_chain_follows_the_strongest_of_its_rules(
    names: dict[str, QConfig], dtype: str
) -> None:
    assert outputs(TwoCalls(), names)["block.relu_0"] == dtype


def test_the_rules_that_lose_at_the_end_of_a_chain_are_those_of_all_its_ops() -> None:
    wins = {"block.fc": INT16, "block.relu_0": INT4, "block.add_*": INT8}
    prepared = prepare(TwoCalls(), {"": INT8, "module_name": wins}, example_inputs=torch.randn(2, 4))
    row = next(row for row in plan_of(prepared).rows if row.name == "block.relu_0")

    assert (row.rule, *row.beaten) == (
        "module_name 'block.relu_0'",
        "module_name 'block.fc'",
        "module_name 'block.add_*'",
        "global rule",
    )


def test_the_end_of_a_chain_is_refined_by_the_template_that_reaches_only_it() -> None:
    class PostNorm(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(self.fc(x) + x, (4,))

    assert outputs(PostNorm(), {}, templates=["layer_norm_int16"])["add_0"] == "qint16"


def test_without_any_rule_everything_stays_float() -> None:
    found = rows({"module_name": {"stem": INT8}})

    assert found["classifier"].role == "float"
    assert found["classifier"].reason == "no rule covers it"


def test_a_rule_that_matches_nothing_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        rows({"": INT8, "module_name": {"blocks.0.conv3": INT8}})

    (finding,) = caught.value.diagnostics
    assert finding.code == "QC201"
    assert "blocks.0.conv3" in finding.summary


def test_an_unknown_key_or_value_is_refused() -> None:
    with pytest.raises(PrepareError) as caught:
        rows({"": INT8, "object_type": []})
    assert caught.value.message == (
        "unknown key 'object_type' in qconfig_dict; known: '', 'module_type', 'module_name'"
    )
    with pytest.raises(PrepareError) as caught:
        rows({"": "w8a8"})
    assert caught.value.message == "the value of '' in qconfig_dict must be a QConfig or None (got str)"


def test_the_dict_of_the_user_is_not_changed() -> None:
    mine = {"": INT8}
    rows(mine)
    assert mine == {"": INT8}


def test_an_input_quantizer_of_its_own() -> None:
    own = QConfig(activation=INT8.activation, weight=INT8.weight, input=INT16.activation)
    prepared = prepare(ResNet().eval(), {"": own}, example_inputs=(torch.randn(2, 3, 8, 8),))

    assert fake_quants(prepared)["input.x"].dtype.name == "qint16"


def test_the_reference_example_runs_as_written() -> None:
    import quantcfg as qc

    model = qc.prepare_qat_fx(
        ResNet(),
        {
            "": qc.default_calib_8bit_fake_quant_qconfig,
            "module_name": {"classifier": qc.default_calib_8bit_weight_32bit_out_fake_quant_qconfig},
        },
    ).to("cpu")
    model.eval()
    qc.set_fake_quantize(model, qc.FakeQuantState.CALIBRATION)
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8))
    qc.finish_calibration(model)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)

    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert "classifier.output" not in qc.fake_quants(model)
    assert type(qc.fake_quants(model)["cat_0.output"].observer).__name__ == "MSEObserver"


def test_without_example_inputs_ranges_can_be_loaded_before_any_forward() -> None:
    model = ResNet().eval()
    calib = prepare_qat_fx(model, {"": INT8}).eval()
    with calibrating_first(calib):
        calib(torch.randn(2, 3, 8, 8))

    from quantcfg.preparation.state import load_observer_params

    training = prepare_qat_fx(model, {"": INT8})
    report = load_observer_params(calib, training)

    assert len(report.loaded) == len(fake_quants(calib)) > 0


def calibrating_first(model: nn.Module) -> Any:
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model(torch.randn(2, 3, 8, 8))
    return calibrating(model)


@pytest.mark.parametrize(
    ("kind", "count", "first"),
    [("lsq", 22, "stem.0.fake_quants.input_0.scale"), ("fake_quant", 5, "blocks.0.conv1.bias")],
)
def test_parameters_that_come_after_the_optimizer_are_an_error(kind: str, count: int, first: str) -> None:
    model = prepare_qat_fx(ResNet(), {"": get_default_qconfig(kind, kind)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(PrepareError) as caught:
        model(torch.randn(2, 3, 8, 8))

    assert caught.value.message.startswith(
        f"{count} parameters of quantizers or folded batch norms appeared after an optimizer was made, which "
        f"would never train them: {first}, "
    )
    del optimizer


def test_what_needs_quantizers_says_so_before_the_first_forward() -> None:
    calib, early = (prepare_qat_fx(ResNet().eval(), {"": INT8}) for _ in range(2))
    with calibrating_first(calib):
        calib(torch.randn(2, 3, 8, 8))

    for needs in (plan_of, lambda model: calibrating(model).__enter__()):
        with pytest.raises(PrepareError) as caught:
            needs(early)
        assert caught.value.message == "this ResNet has no quantizers before its first forward"
    with pytest.raises(PrepareError) as caught:
        early.load_state_dict(calib.state_dict())
    assert caught.value.hint == "run one batch through it, or pass example_inputs to prepare_qat_fx"

    early.load_state_dict(ResNet().state_dict())
    early.train()(torch.randn(2, 3, 8, 8))
    early.load_state_dict(calib.state_dict())


def test_states_can_be_set_before_the_first_forward() -> None:
    model = prepare_qat_fx(ResNet().eval(), {"": INT8})
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    expected = ResNet().eval()
    expected.load_state_dict({k: v for k, v in model.state_dict().items() if "fake_quants" not in k})
    image = torch.randn(2, 3, 8, 8)

    torch.testing.assert_close(model(image), expected(image), rtol=1e-5, atol=1e-5)
    assert all(module.observed for module in fake_quants(model).values())


class Mine(nn.Linear):
    """A layer of the user's own."""


class Deep(nn.Module):
    """Two layers of one family."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.mine = Mine(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mine(self.plain(x))


def config_rows(tmp_path: Any, text: str, model: nn.Module, stage: str = "calib") -> dict[str, OpRow]:
    path = tmp_path / "c.yaml"
    path.write_text(f"version: 1\nqconfig:\n{text}")
    prepared = prepare(model, load_config(path), example_inputs=(torch.randn(2, 4),), stage=stage)
    return {row.name: row for row in plan_of(prepared).rows}


def test_a_type_takes_its_subclasses_on_request(tmp_path: Any) -> None:
    narrow = config_rows(tmp_path, "  module_type: {Linear: w8a8}\n", Deep())
    wide = config_rows(tmp_path, "  module_type: {Linear: {use: w8a8, subclasses: true}}\n", Deep())
    nearest = "  module_type: {Mine: w8a16, Linear: {use: w8a8, subclasses: true}}\n"

    assert (narrow["plain"].role, narrow["mine"].role) == ("quantized", "float")
    assert (wide["plain"].role, wide["mine"].role) == ("quantized", "quantized")
    assert activation(config_rows(tmp_path, nearest, Deep())["mine"]) == "qint16"


def test_a_class_of_the_users_is_no_class_of_torch_by_its_name_alone() -> None:
    own = type("Linear", (nn.Linear,), {})
    model = nn.Sequential(own(4, 4), nn.Linear(4, 4))
    rules = {"": INT8, "module_type": {"torch.nn.Linear": INT4}}
    found = plan_of(prepare(model, rules, example_inputs=torch.ones(2, 4))).rows

    assert [activation(row) for row in found] == ["qint8", "qint4"]


class _Private(nn.Linear):
    """Named as the layers of torchvision's DenseNet are."""


def test_the_name_of_a_class_may_start_with_an_underscore(tmp_path: Any) -> None:
    found = config_rows(tmp_path, "  module_type: {_Private: w8a16}\n", nn.Sequential(_Private(4, 4)))

    assert activation(found["0"]) == "qint16"


@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_a_table_of_sensitive_ops_in_the_config(tmp_path: Any, stage: str) -> None:
    text = (
        "  global: w8a8\n  module_type: {Mine: w4a8}\n  templates:\n"
        "    - {name: sensitive_ops, table: [[mine, activation], [plain, activation]], topk: 1, use: w8a16}\n"
    )
    found = config_rows(tmp_path, text, Deep(), stage)

    assert (activation(found["mine"]), activation(found["plain"])) == ("qint16", "qint8")
    assert found["mine"].rule.startswith("template 'mine' (")
    assert found["mine"].beaten[0].startswith("module_type 'Mine' (")


class Activated(nn.Module):
    """A layer, and an activation that it may have in common with others."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.fc(x)) * 2


class OneActivation(nn.Module):
    """A detector whose parts share one activation, as some do to save a line."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.stem, self.head = Activated(act), nn.Sequential(Activated(act), Activated(act))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x))


SHARED = ("stem.act", "stem.act:1", "stem.act:2")


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("head", {"stem.act:1", "stem.act:2"}),
        ("head.1", {"stem.act:2"}),
        ("stem", {"stem.act"}),
        ("stem.act", set(SHARED)),  # its own name: wherever it runs
        ("head.0.act", {"stem.act:1"}),
        ("head.*.act", {"stem.act:1", "stem.act:2"}),
        ("**.act", set(SHARED)),
        ("stem.act:2", {"stem.act:2"}),
    ],
)
def test_a_rule_holds_for_what_two_modules_hold_where_it_runs_inside_of_the_named_one(
    name: str, covered: set[str]
) -> None:
    found = outputs(OneActivation(), {name: INT4})
    assert {each for each in SHARED if found[each] == "qint4"} == covered


def test_the_nearest_of_the_modules_that_a_shared_one_runs_in_decides() -> None:
    found = outputs(OneActivation(), {"head.1": INT16, "head": INT4, "stem": INT4})
    assert [found[name] for name in SHARED] == ["qint4", "qint4", "qint16"]


def test_what_runs_in_a_block_that_two_modules_hold_is_in_the_one_that_calls_it() -> None:
    class Parts(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)

    block = Activated(nn.SiLU())
    found = outputs(nn.Sequential(Parts(block), Parts(block)), {"1": INT4, "0.block.fc": INT16})
    assert {name: found[name] for name in ("0.block.fc", "0.block.act", "0.block.mul_0")} == {
        "0.block.fc": "qint16", "0.block.act": "qint8", "0.block.mul_0": "qint8",
    }  # fmt: skip
    assert [found[f"0.block{name}"] for name in (".fc:1", ".act:1", ":1.mul_0")] == [
        "qint16",
        "qint4",
        "qint4",
    ]
