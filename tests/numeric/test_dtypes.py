"""The grids by name, and their bounds."""

from __future__ import annotations

import copy
import pickle

import pytest

from quantcfg.numeric import dtypes
from quantcfg.numeric.dtypes import DTYPES, QuantDType, as_dtype, qint8, quant_bounds


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_a_grid_uses_the_full_range_of_its_bits(num_bits):
    signed, unsigned = DTYPES[f"qint{num_bits}"], DTYPES[f"quint{num_bits}"]
    assert (signed.quant_min, signed.quant_max) == (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
    assert (unsigned.quant_min, unsigned.quant_max) == (0, 2**num_bits - 1)


def test_the_reference_toolkits_bounds_hold():
    bounds = {
        name: (DTYPES[name].quant_min, DTYPES[name].quant_max) for name in ("qint4", "quint4", "qint16")
    }
    assert bounds == {"qint4": (-8, 7), "quint4": (0, 15), "qint16": (-32768, 32767)}


@pytest.mark.parametrize("name", DTYPES)
def test_every_grid_is_a_module_constant_that_prints_its_name(name):
    assert getattr(dtypes, name) is not None
    assert repr(getattr(dtypes, name)) == name
    assert getattr(dtypes, name) == DTYPES[name] == as_dtype(name)
    assert as_dtype(DTYPES[name]) is DTYPES[name]


def test_grids_survive_copies_by_value():
    assert pickle.loads(pickle.dumps(qint8)) == qint8
    assert copy.deepcopy(qint8) == qint8
    assert len({qint8, QuantDType("qint8", 8, signed=True)}) == 1


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError) as caught:
        as_dtype("int8")
    assert str(caught.value) == "dtype must be one of qint2..qint16 and quint2..quint16 (got 'int8')"


def test_bounds_default_to_the_dtypes_own():
    assert quant_bounds("qint8") == (-128, 127)
    assert quant_bounds("qint8", -127, 127) == (-127, 127)


@pytest.mark.parametrize("pair", [(-129, 127), (-128, 128), (1, 5), (-5, -1), (0, 0)])
def test_bounds_outside_the_dtype_or_without_zero_are_refused(pair):
    with pytest.raises(ValueError, match=r"must contain 0 and lie inside the range of qint8, \[-128, 127\]"):
        quant_bounds("qint8", *pair)


def test_one_bound_alone_is_refused():
    with pytest.raises(ValueError, match=r"go together \(got -127 and None\)"):
        quant_bounds("qint8", quant_min=-127)
