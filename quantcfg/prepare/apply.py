"""Apply: build the fake quantize modules that the assignments ask for and hang them into the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.config.spec import FakeQuantSpec, QConfigSpec
from quantcfg.errors import PrepareError
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.prepare.assign import Assignment, Assignments
from quantcfg.prepare.fold import fold_batch_norm, foldable
from quantcfg.prepare.record import Recording, Site
from quantcfg.prepare.run import Action, LiveBatchNorm, Runner, Table
from quantcfg.qconfig import FakeQuantFactory, qconfig_from_spec

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BN_MODES = ("fold", "keep", "freeze")
ATTRIBUTE = "fake_quants"


class FakeQuants(nn.ModuleDict):
    """The fake quantize modules of one host module, by slot: ``weight``, ``output``, ``add_0``, ``input_0``.

    ``qat`` says that statistics follow the mode of the model: observed in training, not in evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qat = False
        self.frozen = False

    def forward(self, x: Any) -> Any:
        """Return ``x``: a forward that walks over its children meets an identity."""
        return x

    def train(self, mode: bool = True) -> FakeQuants:
        """Switch the mode, and in QAT the observers with it."""
        super().train(mode)
        if self.qat:
            for module in self.values():
                module.observing = mode and not self.frozen  # type: ignore[assignment]
        return self


@dataclass(slots=True)
class Applied:
    """What was built: the handler, the modules by name, and the slot names of each site's quantizers."""

    runner: Runner
    modules: dict[str, FakeQuantizeBase] = field(default_factory=dict)
    folded: dict[int, str] = field(default_factory=dict)  # batch norm site -> what became of it


def apply(model: nn.Module, recording: Recording, assignments: Assignments, *, bn: str) -> Applied:
    """Build every quantizer, fold batch norms, and return the handler that runs them."""
    builder = _Builder(model, recording, assignments, bn)
    return builder.build()


class _Builder:
    def __init__(self, model: nn.Module, recording: Recording, assignments: Assignments, bn: str) -> None:
        self.model = model
        self.recording = recording
        self.assignments = assignments
        self.bn = bn
        self.modules = dict(model.named_modules())
        self.applied = Applied(Runner({}, set(self.modules) - set(recording.calls)))
        self.shared: dict[int, FakeQuantizeBase] = {}
        self.weights: dict[tuple[str, Any], FakeQuantizeBase] = {}
        self.behind: dict[int, int] = {}  # GEMM -> the batch norm that stays and whose output is quantized
        self.waiting: dict[int, FakeQuantizeBase] = {}

    def build(self) -> Applied:
        live = self._batch_norms()
        for row in self.assignments.rows:
            action = self._action(row, live.get(row.site.index))
            table = self._table(row.site)
            if action is not None:
                table.set(row.site.counted, row.site.ordinal, action)
            else:
                table.pad(row.site.counted, row.site.ordinal)
        self._close()
        return self.applied

    # -- batch norm --------------------------------------------------------------------------------------------

    def _batch_norms(self) -> dict[int, LiveBatchNorm]:
        """Fold what can be folded; return the batch norms that stay, by the GEMM they follow."""
        live: dict[int, LiveBatchNorm] = {}
        for chain in self.assignments.chains:
            if chain.batch_norm is None:
                continue
            gemm, norm = self.recording.sites[chain.sites[0]], self.recording.sites[chain.batch_norm]
            once = self.recording.calls[gemm.path] == 1 and self.recording.calls[norm.path] == 1
            host, module = self.modules[gemm.path], self.modules[norm.path]
            if self.bn == "fold" and once and foldable(host, module):
                fold_batch_norm(host, module, axis=_output_axis(gemm))
                self._replace(norm.path)
                self.applied.folded[norm.index] = f"folded into {gemm.name}"
                continue
            if chain.end == norm.index:
                self.behind[gemm.index] = norm.index
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                axis = _output_axis(gemm)
                if self.recording.values[gemm.weights[0].value].shape[axis] == module.num_features:
                    live[gemm.index] = LiveBatchNorm(module, axis)
                self.applied.folded[norm.index] = f"kept behind {gemm.name}"
        return live

    def _replace(self, path: str) -> None:
        parent, _, name = path.rpartition(".")
        self.modules[parent]._modules[name] = nn.Identity()

    # -- one site ----------------------------------------------------------------------------------------------

    def _action(self, row: Assignment, batch_norm: LiveBatchNorm | None) -> Action | None:
        site = row.site
        action = Action(batch_norm=batch_norm, num_outputs=site.spec.outputs, write_back=site.written_back)
        for edge in row.edges:
            action.edges.append((edge.slot, edge.value, self._edge(edge.value)))
        if row.weight is not None:
            for operand in site.weights:
                action.weights.append(
                    (operand.slot, self._weight(site, row.weight, operand.slot, operand.value))
                )
        if row.output is not None:
            shape = self.recording.values[site.outputs[0]].shape
            action.output = self._make(
                site, _slot_name(site, "output"), row.output, shape, f"{site.name}.output"
            )
        return action if action.edges or action.weights or action.output is not None else None

    def _edge(self, value: int) -> FakeQuantizeBase:
        if value not in self.shared:
            source = self.recording.values[value]
            site = self.recording.sites[self.assignments.input_owner[value]]
            number = sum(1 for other in self.shared if self.assignments.input_owner[other] == site.index)
            name = f"input.{source.name}" if source.kind == "input" else f"{site.name}.input_{number}"
            slot = _slot_name(site, f"input_{number}")
            self.shared[value] = self._make(site, slot, self.assignments.inputs[value], source.shape, name)
        return self.shared[value]

    def _weight(self, site: Site, spec: FakeQuantSpec, slot: Any, value: int) -> FakeQuantizeBase:
        # A module that runs twice has one weight, and so one quantizer for it.
        key = (site.path, (site.op, site.ordinal if site.name != site.path else 0, slot))
        if key not in self.weights:
            source = self.recording.values[value]
            label = "weight" if len(site.weights) == 1 else f"weight_{_weight_label(slot)}"
            first = site.name.replace(f":{site.call}", "") if site.call else site.name
            name = _slot_name(site, label, shared=True)
            self.weights[key] = self._make(
                site,
                name,
                spec,
                source.shape,
                f"{first}.{label}",
                axis=_weight_axis(site, slot, source.shape),
            )
        return self.weights[key]

    def _make(
        self, site: Site, slot: str, spec: FakeQuantSpec, shape: tuple[int, ...], name: str,
        axis: int | None = None,
    ) -> FakeQuantizeBase:  # fmt: skip
        factory = qconfig_from_spec(QConfigSpec(spec, None)).activation
        assert factory is not None
        module = _build(factory, shape, axis, name)
        host_path, prefix = self._host(site.path)
        host = self.modules[host_path]
        container = _container(host)
        key = f"{prefix}{slot}"
        while key in container:
            key += "_"
        container[key] = module.to(_device(host, self.model)).train(self.model.training)
        self.applied.modules[name] = module
        return module

    def _host(self, path: str) -> tuple[str, str]:
        """The module that holds the quantizers of a site, and a prefix where it is not the site's owner.

        A container that a forward iterates over must not grow a child, so its quantizers live one level up, or,
        at the root, in its first child that is no container.
        """
        prefix = ""
        while isinstance(self.modules[path], _CONTAINERS):
            if not path:
                return self._first_plain(), "root_"
            path, _, name = path.rpartition(".")
            prefix = f"{name}_{prefix}"
        return path, prefix

    def _first_plain(self) -> str:
        for path, module in self.modules.items():
            if not isinstance(module, _CONTAINERS):
                return path
        raise PrepareError("the model holds no module besides containers: there is nothing to quantize")

    def _table(self, site: Site) -> Table:
        tables = self.applied.runner.tables.setdefault(site.path, [])
        while len(tables) <= site.call:
            tables.append(Table())
        table = tables[site.call]
        assert table is not None
        return table

    def _close(self) -> None:
        recorded = self.recording
        for path, tables in self.applied.runner.tables.items():
            for call, table in enumerate(tables):
                if table is not None and (path, call) in recorded.counts:
                    tables[call] = table.close(recorded.spellings[path, call], recorded.counts[path, call])


def _build(
    factory: FakeQuantFactory, shape: tuple[int, ...], axis: int | None, name: str
) -> FakeQuantizeBase:
    if not factory.per_channel:
        return factory(name=name)
    channel = factory.ch_axis if axis is None else axis
    if not -len(shape) <= channel < len(shape):
        return factory.per_tensor()(name=name)
    channel %= len(shape)
    return factory(num_channels=shape[channel], ch_axis=channel, name=name)


def _container(host: nn.Module) -> FakeQuants:
    attribute = ATTRIBUTE
    while attribute in host._modules and not isinstance(host._modules[attribute], FakeQuants):
        attribute += "_"  # the user's own name
    if attribute not in host._modules:
        host.add_module(attribute, FakeQuants())
    container = host._modules[attribute]
    assert isinstance(container, FakeQuants)
    return container


def _slot_name(site: Site, label: str, *, shared: bool = False) -> str:
    own = site.name == site.path or site.name == f"{site.path}:{site.call}"
    if own:
        base = label
    else:
        base = f"{site.op}_{site.ordinal}" + ("" if label == "output" else f"_{label}")
    return f"{base}_call{site.call}" if site.call and not shared else base


def _weight_label(slot: Any) -> str:
    return str(slot[0]).removesuffix("_weight")


def _weight_axis(site: Site, slot: Any, shape: tuple[int, ...]) -> int | None:
    """The axis of the output channels of a weight: that of the op, or the last one of a matrix product."""
    if slot[0] in site.spec.weights:
        return site.spec.weights[slot[0]]
    return len(shape) - 1 if site.op in ("matmul", "mm", "addmm", "bmm", "baddbmm") else 0


def _output_axis(site: Site) -> int:
    return 1 if site.op.startswith("conv_transpose") else 0


def _device(host: nn.Module, model: nn.Module) -> torch.device:
    for tensor in _tensors(host, model):
        return tensor.device
    return torch.device("cpu")


def _tensors(*modules: nn.Module) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
