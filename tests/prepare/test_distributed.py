"""Data parallel and fully sharded training of a prepared model, in two processes on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import calibrating, fake_quants
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import Encoder

WORLD = 2
KINDS = ("fake_quant", "lsq")


def encoder(kind: str) -> nn.Module:
    """The same calibrated model in every process."""
    torch.manual_seed(0)
    ids, keep = batch(0)
    rules = {"": get_default_qconfig(kind, kind)}
    prepared = prepare(Encoder(), rules, example_inputs=(ids, keep), stage="qat")
    with calibrating(prepared):
        prepared(ids, keep)
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


def test_two_processes_agree_and_sharding_changes_nothing(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]

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
