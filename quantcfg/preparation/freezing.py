"""What stays as it is for the rest of a training: the ranges of quantizers, the statistics of batch norms."""

from __future__ import annotations

from torch import nn

from quantcfg.preparation.state import containers_of, prepared


def freeze_observers(model: nn.Module) -> None:
    """Stop all statistics in QAT for good: the ranges stay as they are.

    Raises:
        PrepareError: the model is not a prepared one.

    Example:
        >>> rules = {"": qc.get_default_qconfig()}
        >>> model = qc.prepare(nn.Linear(4, 2), rules, example_inputs=torch.ones(2, 4), stage="qat")
        >>> _ = model(torch.ones(2, 4))
        >>> qc.freeze_observers(model)
        >>> _ = model(torch.full((2, 4), 100.0))
        >>> float(qc.fake_quants(model)["input.input"].observer.max_val)
        1.0
    """
    prepared(model)
    for container in containers_of(model).values():
        container.frozen = True
        for module in container.values():
            module.observing = False  # type: ignore[assignment]


def freeze_batch_norm(model: nn.Module) -> None:
    """Put every batch norm in evaluation mode for good, whatever ``train()`` says later.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> qc.freeze_batch_norm(model)
        >>> model.train()[1].training
        False
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = False
            module.__dict__["train"] = _StaysInEval(module)


class _StaysInEval:
    """The ``train`` of a frozen module. What it holds, quantizers too, goes by what ``train`` says."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        for child in self.module.children():
            child.train(mode)
        return self.module
