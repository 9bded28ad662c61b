"""The public door: complete, sorted, lazy, and the same for a type checker as at run time."""

import ast
import inspect
from pathlib import Path

import pytest

import quantcfg
from quantcfg.config.presets import PRESETS
from quantcfg.errors import QuantcfgDeprecationWarning
from quantcfg.numeric.dtypes import DTYPES

REFERENCE_NAMES = {
    "DeQuantStub",
    "FakeQuantState",
    "QConfig",
    "QuantStub",
    "calibrating",
    "fake_quants",
    "get_default_qconfig",
    "load_config",
    "load_observer_params",
    "plan_of",
    "prepare",
    "prepare_qat_fx",
    "set_fake_quantize",
}
LONG_PRESETS = {name for name in PRESETS if name.endswith("_qconfig")}
DEPRECATED = {name for name in LONG_PRESETS if PRESETS[name].deprecated_for}


@pytest.mark.parametrize("name", quantcfg.__all__)
def test_every_listed_name_resolves(name: str) -> None:
    value = getattr(quantcfg, name)
    assert value is not None
    assert not inspect.ismodule(value)


def test_the_list_is_sorted_and_has_no_doubles() -> None:
    assert quantcfg.__all__ == sorted(set(quantcfg.__all__))


def test_the_names_of_the_reference_are_listed() -> None:
    assert set(quantcfg.__all__) >= REFERENCE_NAMES | set(DTYPES) | (LONG_PRESETS - DEPRECATED)


def test_a_type_checker_sees_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(quantcfg.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == quantcfg._MODULE_OF


@pytest.mark.parametrize("name", sorted(DEPRECATED))
def test_a_deprecated_preset_resolves_with_a_warning_that_names_its_successor(name: str) -> None:
    successor = PRESETS[name].deprecated_for
    assert successor is not None
    with pytest.warns(QuantcfgDeprecationWarning, match=f"'{name}' is now called '{successor}'"):
        assert getattr(quantcfg, name) == getattr(quantcfg, successor)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'quantcfg' has no attribute 'prepar'"):
        quantcfg.prepar  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'default_qat_9bit_qconfig'"):
        quantcfg.default_qat_9bit_qconfig  # noqa: B018


def test_the_version_is_the_one_in_the_changelog() -> None:
    changelog = Path(__file__).parent.parent.joinpath("CHANGELOG.md").read_text()
    assert f"## [{quantcfg.__version__}]" in changelog
