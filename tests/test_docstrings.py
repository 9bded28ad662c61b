"""The examples in docstrings run, with ``qc``, ``torch`` and ``nn`` as everyone imports them."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest
import torch
from torch import nn

import quantcfg as qc

NAMES = {"qc": qc, "torch": torch, "nn": nn}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(qc.__path__, "quantcfg.")
    if not found.name.endswith("__main__")
]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder().find(module, extraglobs=NAMES)
    return [test for test in found if test.examples]


@pytest.mark.parametrize(
    "test", [test for module in MODULES for test in examples(module)], ids=lambda t: t.name
)
def test_an_example_prints_what_it_says(test: doctest.DocTest) -> None:
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    printed: list[str] = []
    runner.run(test, out=printed.append)
    assert not runner.failures, "".join(printed)


def test_what_prepares_and_runs_a_model_has_an_example() -> None:
    public = {name: getattr(qc, name) for name in qc.__all__ if name not in NAMES_WITHOUT}
    functions = {name: item for name, item in public.items() if inspect.isfunction(item)}
    assert [name for name, item in functions.items() if ">>>" not in (item.__doc__ or "")] == []


NAMES_WITHOUT = ("compare_integers", "convert", "load_config")
"""They need files or a run, and docs/ runs them."""
