"""The config and the numbers do not import each other; here they are held to the same names and defaults."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from quantcfg.config.parameters import FAKE_QUANT_PARAMETERS, OBSERVER_PARAMETERS, DType
from quantcfg.config.schema import FakeQuantName, ObserverName, TemplateName
from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.preparation.templates import TEMPLATES


def keywords(cls):
    """Keyword-only parameters of a class and of those it is made from, with their defaults."""
    found = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.kind == parameter.KEYWORD_ONLY:
                    found[name] = parameter.default
    return found


def test_the_names_are_the_same():
    assert list(OBSERVER_PARAMETERS) == list(OBSERVERS) == list(get_args(ObserverName))
    assert list(FAKE_QUANT_PARAMETERS) == list(FAKE_QUANTIZES) == list(get_args(FakeQuantName))
    assert set(get_args(DType)) == set(DTYPES)
    assert set(get_args(TemplateName)) <= set(TEMPLATES)


@pytest.mark.parametrize("kind", OBSERVER_PARAMETERS)
def test_an_observer_has_the_parameters_and_defaults_of_its_model(kind):
    real = keywords(OBSERVERS[kind])
    # the axis of a tensor as a whole is -1 in code and not written in a file
    documented = {
        name: field.default
        for name, field in OBSERVER_PARAMETERS[kind].model_fields.items()
        if name != "ch_axis"
    }
    assert {name: real.get(name, "missing") for name in documented} == documented
    assert real["ch_axis"] == -1


@pytest.mark.parametrize("kind", FAKE_QUANT_PARAMETERS)
def test_a_fake_quantize_has_the_parameters_and_defaults_of_its_model(kind):
    real = keywords(FAKE_QUANTIZES[kind])
    documented = {name: field.default for name, field in FAKE_QUANT_PARAMETERS[kind].model_fields.items()}
    assert {name: real.get(name, "missing") for name in documented} == documented
