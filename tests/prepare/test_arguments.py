"""Arguments of another kind than wanted: each is refused where it is given, in words of the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import quantcfg as qc
from quantcfg.errors import PrepareError, UsageError

MODEL, BATCH, INT8 = nn.Sequential(nn.Linear(4, 2)), torch.ones(2, 4), qc.get_default_qconfig()


def prepared(config: Any = None, **options: Any) -> nn.Module:
    return qc.prepare(MODEL, {"": INT8} if config is None else config, example_inputs=BATCH, **options)


def fx(qconfig_dict: Any, **options: Any) -> nn.Module:
    return qc.prepare_qat_fx(MODEL, qconfig_dict, **options)


NO_CONFIG = "a config must be what load_config gives, a RuleSet or a dict (got {})"
STATES = "FakeQuantState.FLOAT, FakeQuantState.CALIBRATION, FakeQuantState.QAT, FakeQuantState.VALIDATION"
REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: prepared("a.yaml"), NO_CONFIG.format("str"), "load it first: load_config('a.yaml')"),
    (lambda: prepared(INT8), NO_CONFIG.format("QConfig"), 'write {"": qconfig} for one qconfig everywhere'),
    (
        lambda: prepared(templates="a"),
        "templates must be a list of names (got the text 'a')",
        "pass templates=['a']",
    ),
    (
        lambda: qc.prepare(MODEL, {}, forward=BATCH),
        "forward must be a function of the model (got Tensor)",
        "pass forward=lambda model: model(batch), or the batch as example_inputs",
    ),
    (
        lambda: fx({"module_type": ["Linear"]}),
        "'module_type' in qconfig_dict must be a dict, or a list of pairs (got ['Linear'])",
        "write each of them as (a class or its name, qconfig)",
    ),
    (
        lambda: fx({"module_type": {MODEL[0]: INT8}}),
        "a key of 'module_type' in qconfig_dict must be a class or its name "
        "(got Linear(in_features=4, out_features=2, bias=True))",
        "",
    ),
    (
        lambda: qc.prepare(MODEL, {}),
        "prepare needs example_inputs, or a forward to run once",
        "pass one batch: prepare(model, config, example_inputs=(images,))",
    ),
    (lambda: prepared(stage="train"), "unknown stage 'train'; known: calib, qat", ""),
    (lambda: prepared(bn="folded"), "unknown bn 'folded'; known: fold, keep, freeze", ""),
    (
        lambda: fx({}, optimize_graph=True),
        "optimize_graph must be False (got True): what is concatenated keeps the grids that it has",
        "leave it out; export.target in a config says what a chip takes",
    ),
    (
        lambda: fx({}, hybrid_dict={"module_name": ["0"]}),
        "hybrid_dict has no effect without hybrid=True",
        "pass hybrid=True, or leave hybrid_dict out",
    ),
    (
        lambda: fx({}, hybrid=True, hybrid_dict={"name": ["0"]}),
        "unknown key 'name' in hybrid_dict; known: 'module_type', 'module_name'",
        "",
    ),
    (
        lambda: fx({}, hybrid=True, hybrid_dict={"module_type": nn.Linear}),
        "'module_type' in hybrid_dict must be a list, each a class or its name "
        "(got <class 'torch...inear.Linear'>)",
        "",
    ),
    (
        lambda: fx({}, hybrid=True, hybrid_dict={"module_name": [0]}),
        "'module_name' in hybrid_dict must be a list, each a name (got [0])",
        "",
    ),
    (
        lambda: fx({}, hybrid=True, hybrid_dict={"module_name": ["re:("]}),
        "the name 're:(' in hybrid_dict: not a regular expression: missing ), unterminated subpattern",
        "",
    ),
    (
        lambda: fx({"module_name": {0: INT8}}),
        "a key of 'module_name' in qconfig_dict must be a name (got 0)",
        "",
    ),
    (
        lambda: fx({"module_name": {"re:(": INT8}}),
        "the name 're:(' in qconfig_dict: not a regular expression: missing ), unterminated subpattern",
        "",
    ),
    (
        lambda: fx({}, qconfig_setter=INT8),
        "a qconfig_setter must be a setter or several of them (got QConfig)",
        "ModuleNameQconfigSetter({name: qconfig}) makes one from qconfigs by name",
    ),
    (
        lambda: qc.prepare(nn.Linear, {}, example_inputs=BATCH),
        "a model must be a torch.nn.Module (got the class Linear)",
        "",
    ),
    (lambda: qc.plan_of(None), "a model must be a torch.nn.Module (got NoneType)", ""),
    (lambda: qc.load_observer_params({}, MODEL), "a model must be a torch.nn.Module (got dict)", ""),
    (lambda: qc.set_fake_quantize(prepared(), "qat"), f"a state must be one of {STATES} (got 'qat')", ""),
    (
        lambda: qc.freeze_observers(MODEL),
        "this Sequential is not a prepared model",
        "make one with quantcfg.prepare(model, config, example_inputs=...)",
    ),
]


@pytest.mark.parametrize(("call", "message", "hint"), REFUSED)
def test_another_kind_of_argument_is_refused(call: Callable[[], Any], message: str, hint: str) -> None:
    with pytest.raises(PrepareError) as caught:
        call()
    assert (str(caught.value), caught.value.hint) == (message, hint)


IMPOSSIBLE: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: qc.get_default_qconfig(activation_qkwargs={"dtype": "int8"}),
        "activation_qkwargs: dtype must be one of qint2..qint16 and quint2..quint16 (got 'int8')",
    ),
    (
        lambda: qc.get_default_qconfig(activation_qkwargs={"averaging_constant": "1"}),
        "activation_qkwargs: a value in {'averaging_constant': '1'} "
        "has another type ('<=' not supported between instances of 'int' and 'str')",
    ),
    (
        lambda: qc.get_default_qconfig(activation_qkwargs=["dtype"]),
        "'activation_qkwargs' must be a dict of parameters by name (got ['dtype'])",
    ),
    (lambda: qc.get_default_qconfig(3), "not the name of any fake quant: 3. Known: fake_quant, lsq, pact"),
    (
        lambda: qc.ModuleNameQconfigSetter([]),
        "the qconfigs of a ModuleNameQconfigSetter must be a dict by name (got list)",
    ),
    (
        lambda: qc.ModuleNameQconfigSetter({"0": "w8a8"}),
        "the qconfig of '0' in a ModuleNameQconfigSetter must be a QConfig or None (got 'w8a8'); "
        "make one with get_default_qconfig(...)",
    ),
    (
        lambda: qc.TemplateQconfigSetter(None),
        "the qconfig of a TemplateQconfigSetter must be a QConfig (got None); "
        "make one with get_default_qconfig(...)",
    ),
    (
        lambda: qc.get_sensitive_op_qconfig_setter("act", None, INT8, [], topk=1),
        "'sensitive_type' must be 'activation' or 'weight' (got 'act')",
    ),
    (
        lambda: qc.get_sensitive_op_qconfig_setter("weight", None, INT8, ["0"], topk=1),
        "a row of the table must be [op, 'activation' or 'weight', ...] (got '0')",
    ),
]


@pytest.mark.parametrize(("call", "message"), IMPOSSIBLE)
def test_what_makes_no_qconfig_and_no_setter_is_a_value_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def test_load_config_takes_paths_and_a_list_of_overrides() -> None:
    with pytest.raises(UsageError, match=r"^a config is named by the path of its file \(got dict\)$"):
        qc.load_config({"version": 1})
    with pytest.raises(UsageError, match=r"^overrides must be a list of texts \(got the text 'a=b'\)$"):
        qc.load_config("a.yaml", overrides="a=b")


@pytest.mark.parametrize(
    ("inputs", "handed"),
    [
        ({"example_inputs": (BATCH, BATCH)}, "a tuple: model(*example_inputs) with 2 arguments"),
        ({"example_inputs": {"x": BATCH}}, "a dict: model(**example_inputs) with x"),
        ({"example_kw_inputs": {"x": BATCH, "y": 1}}, "with x, y by name"),
        (
            {"example_inputs": (BATCH,), "example_kw_inputs": {"x": BATCH}},
            "with x by name beside a tuple: model(*example_inputs) with 1 argument",
        ),
        (
            {"example_inputs": [BATCH]},
            "a list: model(example_inputs); a tuple holds several arguments, a dict holds them by name",
        ),
    ],
)
def test_what_the_model_raises_says_how_it_was_called(inputs: dict[str, Any], handed: str) -> None:
    with pytest.raises(TypeError) as caught:
        qc.prepare(MODEL, {"": INT8}, **inputs)
    assert caught.value.__notes__ == [f"raised while the model ran once on the example inputs, {handed}"]
