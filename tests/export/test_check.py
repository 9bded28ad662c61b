"""The check's border to the user's code: their faults are theirs, ours are not."""

from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quantcfg.errors import RunError, UserCodeError
from quantcfg.export import check
from quantcfg.stages.progress import Silence


def subject(forward):
    source = SimpleNamespace(name="eval_data", batches=lambda limit: [(0, torch.ones(2))][:limit])
    job = SimpleNamespace(
        source=lambda name: source, progress=Silence(), model_file=SimpleNamespace(forward=forward)
    )
    model = nn.Identity()
    return SimpleNamespace(
        job=job, data=source.name, model=model, deployed=model, float_model=model,
        frozen=SimpleNamespace(model=model),
    )  # fmt: skip


def broken(*args):
    raise ZeroDivisionError("broken")


def test_a_fault_of_the_users_forward_is_theirs():
    with pytest.raises(UserCodeError, match=r"the model, in batch 0 of eval_data\(\), raised ZeroDivision"):
        check._compare(subject(broken), {})


def test_a_fault_in_comparing_is_ours(monkeypatch):
    monkeypatch.setattr(check, "difference", broken)
    with pytest.raises(ZeroDivisionError):
        check._compare(subject(lambda model, batch: model(batch)), {})


def test_a_fault_of_the_exported_program_is_not_the_models():
    program = SimpleNamespace(tensors_of=lambda call: [], signature=signature(broken))
    program = check._Callable(program, broken)
    with pytest.raises(RunError, match="the exported program failed: ZeroDivisionError: broken"):
        check._compare(subject(lambda model, batch: model(batch)), {"torch.export": program})
