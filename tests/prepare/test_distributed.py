"""Data parallel and fully sharded training of a prepared model, in two processes on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from quantcfg.errors import PrepareError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import Encoder

WORLD = 2
KINDS = ("fake_quant", "lsq")


def encoder(kind: str, *, is_calibrated: bool = True) -> nn.Module:
    """The same model in every process."""
    torch.manual_seed(0)
    ids, keep = batch(0)
    rules = {"": get_default_qconfig(kind, kind)}
    prepared = prepare(Encoder(), rules, example_inputs=(ids, keep), stage="qat")
    if is_calibrated:
        with calibrating(prepared):
            prepared(ids, keep)
    set_fake_quantize(prepared, FakeQuantState.QAT)
    return prepared.train()


def batch(rank: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 9, (4, 6), generator=torch.Generator().manual_seed(rank))
    keep = (torch.arange(6) < torch.tensor([[6], [5], [4], [3]])).long()
    return ids, keep


def steps(model: nn.Module, batches: list[tuple[Tensor, Tensor]], count: int = 2) -> list[float]:
    """A loop that knows nothing of quantization: the losses of some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = torch.stack([model(*one).square().mean() for one in batches]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def full_parameters(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters()
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in parameters
    }


def work(rank: int, folder: str) -> None:
    """What one process does; its results go into a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        results = {}
        for kind in KINDS:
            results[f"ddp/{kind}"] = data_parallel(kind, rank)
            results[f"fsdp/{kind}"] = fully_sharded(kind, rank)
        results["refusal"] = refusal(rank)
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def data_parallel(kind: str, rank: int) -> dict[str, object]:
    from torch.nn.parallel import DistributedDataParallel

    model = encoder(kind)
    losses = steps(DistributedDataParallel(model), [batch(rank)])
    return {"losses": losses, "parameters": full_parameters(model)}


def fully_sharded(kind: str, rank: int) -> dict[str, object]:
    from torch.distributed.fsdp import fully_shard

    model = encoder(kind)
    for part in (model.attention, model.up, model.down, model):
        fully_shard(part)
    losses = steps(model, [batch(rank)])
    assert all(module.observed for module in fake_quants(model).values())
    return {"losses": losses, "parameters": full_parameters(model)}


def refusal(rank: int) -> str:
    """What a learned scale that is to start under FSDP2 comes to."""
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(encoder("lsq", is_calibrated=False))
    with pytest.raises(PrepareError) as caught:
        model(*batch(rank))
    return str(caught.value)


def test_two_processes_agree_and_sharding_changes_nothing(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]

    for results in ranks:
        assert results["refusal"] == (
            "18 learned quantizers cannot start from the first batch under FSDP2, which drops what a forward "
            "writes to parameters"
        )
    for kind in KINDS:
        initial = full_parameters(encoder(kind))
        for rank, results in enumerate(ranks):
            replicated, sharded = results[f"ddp/{kind}"], results[f"fsdp/{kind}"]
            assert sharded["losses"][0] == pytest.approx(replicated["losses"][0], rel=1e-5), (kind, rank)
            assert not torch.equal(replicated["parameters"]["up.weight"], initial["up.weight"])
        for way in ("ddp", "fsdp"):
            first, second = (results[f"{way}/{kind}"]["parameters"] for results in ranks)
            assert first.keys() == initial.keys()
            for name, parameter in first.items():
                torch.testing.assert_close(second[name], parameter, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "is_calibrated"), [("lsq", True), ("fake_quant", False)])
def test_what_starts_alike_on_all_ranks_is_not_told_of(monkeypatch, recwarn, kind, is_calibrated) -> None:
    as_one_of_two(monkeypatch)
    encoder(kind, is_calibrated=is_calibrated)(*batch(0))
    assert not recwarn.list


def test_learned_scales_that_start_apart_are_told_of_once(monkeypatch, recwarn) -> None:
    as_one_of_two(monkeypatch)
    model = encoder("lsq", is_calibrated=False)
    model(*batch(0))
    model(*batch(1))
    (warning,) = recwarn.list
    assert str(warning.message) == (
        "12 learned quantizers start from the first batch, which is another one on each of 2 ranks, and so "
        "are their parameters from then on; calibrate first, or load a calibrated state"
    )


def as_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: WORLD)
