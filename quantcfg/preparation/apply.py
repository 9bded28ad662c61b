"""Apply: build the fake quantize modules that the assignments ask for and hang them into the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantcfg.config.spec import FakeQuantSpec, QConfigSpec
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.assign import Assignment, Assignments
from quantcfg.preparation.channels import channel_axis
from quantcfg.preparation.fold import fold_batch_norm, groups_of, is_folded, leave_out
from quantcfg.preparation.fold_loaded import all_names, fold_when_loaded
from quantcfg.preparation.hosts import container_of, host_of
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.record import Operand, Recording, Site, Slot
from quantcfg.preparation.run import Action, LiveBatchNorm, Runner, Table
from quantcfg.qconfig import FakeQuantFactory, qconfig_from_spec

BN_MODES = ("fold", "keep", "freeze")


@dataclass(frozen=True, slots=True)
class Slotted:
    """One quantizer to build: its label at its site, its spec, the shape it sees, and its name in the model.

    ``axis`` is the channel axis where the op decides it; ``every_call`` shares it among a module's calls.
    """

    label: str
    spec: FakeQuantSpec
    shape: tuple[int, ...]
    name: str
    axis: int | None = None
    every_call: bool = False


@dataclass(slots=True)
class Applied:
    """What was built: the handler, the quantizers by name, and what became of batch norms."""

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
        interceptor = interceptor_of(model)
        assert interceptor is not None
        self.interceptor = interceptor
        self.modules = dict(model.named_modules())
        modules: dict[str, FakeQuantizeBase] = {}
        self.applied = Applied(Runner({}, set(self.modules) - set(recording.calls), modules), modules)
        self.factories: dict[FakeQuantSpec, FakeQuantFactory] = {}
        self.shared: dict[int, FakeQuantizeBase] = {}
        self.weights: dict[tuple[str, str, int, Slot], FakeQuantizeBase] = {}
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

    def _batch_norms(self) -> dict[int, LiveBatchNorm]:
        """Fold those that end or continue a chain, or return them, by the GEMM they follow."""
        live: dict[int, LiveBatchNorm] = {}
        names = all_names(self.model) if self.bn == "fold" else {}
        for chain in self.assignments.chains:
            if chain.batch_norm is None:
                continue
            gemm, norm = self.recording.sites[chain.sites[0]], self.recording.sites[chain.batch_norm]
            host, module, axis = self.modules[gemm.path], self.modules[norm.path], _output_axis(gemm)
            if self.bn == "fold":
                if not is_folded(module):  # else it was in an earlier stage
                    fold_batch_norm(host, module, axis=axis)
                    leave_out(module)
                    fold_when_loaded(self.model, names[host], names[module], axis=axis)
                self.applied.folded[norm.index] = f"folded into {gemm.name}"
                continue
            if chain.end == norm.index:
                self.behind[gemm.index] = norm.index
            live[gemm.index] = LiveBatchNorm(module, axis, groups_of(host, axis))
            self.applied.folded[norm.index] = f"kept behind {gemm.name}: bn is {self.bn}"
        return live

    def _action(self, row: Assignment, batch_norm: LiveBatchNorm | None) -> Action | None:
        site = row.site
        action = Action(batch_norm=batch_norm, num_outputs=site.spec.outputs, write_back=site.written_back)
        action.inplace = site.inplace
        action.edges = [(edge.slot, edge.value, self._edge(edge.value)) for edge in row.edges]
        if row.weight is not None:
            action.weights = [(o.slot, self._weight(site, row.weight, o)) for o in site.weights]
        if row.output is not None:
            self._place_output(site, action, self._output(site, row.output))
        elif site.index in self.waiting:
            action.output = self.waiting[site.index]
        return action if action.edges or action.weights or action.output is not None else None

    def _output(self, site: Site, spec: FakeQuantSpec) -> FakeQuantizeBase:
        shape = self.recording.values[site.outputs[0]].shape
        return self._make(site, Slotted("output", spec, shape, f"{site.name}.output"))

    def _place_output(self, site: Site, action: Action, output: FakeQuantizeBase) -> None:
        norm = self.behind.get(site.index)
        if norm is None:
            action.output = output
        else:
            self.waiting[norm] = output

    def _edge(self, value: int) -> FakeQuantizeBase:
        if value not in self.shared:
            owner = self.assignments.input_owner
            source = self.recording.values[value]
            site = self.recording.sites[owner[value]]
            number = sum(owner[other] == site.index for other in self.shared)
            name = f"input.{source.name}" if source.kind == "input" else f"{site.name}.input_{number}"
            slotted = Slotted(f"input_{number}", self.assignments.inputs[value], source.shape, name)
            self.shared[value] = self._make(site, slotted)
        return self.shared[value]

    def _weight(self, site: Site, spec: FakeQuantSpec, operand: Operand) -> FakeQuantizeBase:
        # A module that runs twice has one weight, and so one quantizer for it.
        key = (site.path, site.counted, site.ordinal, operand.slot)
        if key not in self.weights:
            shape = self.recording.values[operand.value].shape
            label = "weight" if len(site.weights) == 1 else f"weight_{_argument(operand.slot)}"
            name = f"{site.name.replace(f':{site.call}', '')}.{label}"
            axis = channel_axis(self.recording, site, operand.slot)
            self.weights[key] = self._make(site, Slotted(label, spec, shape, name, axis, every_call=True))
        return self.weights[key]

    def _make(self, site: Site, slotted: Slotted) -> FakeQuantizeBase:
        module = _build(self._factory(slotted.spec), slotted)
        path, prefix = host_of(site.path, self.modules)
        container = container_of(self.modules[path], self.interceptor)
        key = f"{prefix}{_slot_name(site, slotted)}"
        while key in container:
            key += "_"
        container[key] = module
        if (device := _device(self.modules[path], self.model)) != module.zero_point.device:
            module.to(device)
        if not self.model.training:
            module.eval()
        self.applied.modules[slotted.name] = module
        return module

    def _factory(self, spec: FakeQuantSpec) -> FakeQuantFactory:
        if spec not in self.factories:
            factory = qconfig_from_spec(QConfigSpec(spec, None)).activation
            assert factory is not None
            self.factories[spec] = factory
        return self.factories[spec]

    def _table(self, site: Site) -> Table:
        tables = self.applied.runner.tables.setdefault(site.path, [])
        while len(tables) <= site.call:
            tables.append(Table())
        return tables[site.call]

    def _close(self) -> None:
        recorded, tables = self.recording, self.applied.runner.tables
        for path in recorded.calls:
            for call, table in enumerate(tables.setdefault(path, [Table()])):
                key = (path, call)
                if key in recorded.counts:
                    found = recorded.spellings[key], recorded.counts[key], recorded.places[key]
                    table.close(self.modules[path], *found)
                else:
                    table.hands_on = not self.modules[path]._modules


def _build(factory: FakeQuantFactory, slotted: Slotted) -> FakeQuantizeBase:
    shape = slotted.shape
    if not factory.per_channel:
        return factory(name=slotted.name)
    channel = factory.ch_axis if slotted.axis is None else slotted.axis
    if not -len(shape) <= channel < len(shape):
        return factory.per_tensor()(name=slotted.name)
    channel %= len(shape)
    return factory(num_channels=shape[channel], ch_axis=channel, name=slotted.name)


def _slot_name(site: Site, slotted: Slotted) -> str:
    label = slotted.label
    own = site.name in (site.path, f"{site.path}:{site.call}")
    functional = f"{site.op}_{site.ordinal}" + ("" if label == "output" else f"_{label}")
    base = label if own else functional
    return f"{base}_call{site.call}" if site.call and not slotted.every_call else base


def _argument(slot: Slot) -> str:
    return "_".join(str(key) for key in slot).removesuffix("_weight")


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
