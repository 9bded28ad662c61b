"""What flows between the ops: the dtype of each value, and chains that could have been one op and are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantcfg.preparation.assign import Assignment, Assignments, Role
from quantcfg.preparation.fuse import fuses_with
from quantcfg.preparation.record import Recording, Site

FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Dtypes:
    """The dtypes of what an op reads, argument by argument, and of what it makes; ``float`` is no grid."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Unfused:
    """Two ops that a chip would run as one, and why they are not."""

    first: str
    second: str
    reason: str


def dtypes_of(assignments: Assignments) -> list[Dtypes]:
    """The dtypes at each site, in its order."""
    made: dict[int, str] = {}
    result = []
    ends = {chain.end: chain.carrier for chain in assignments.chains}
    for row in assignments.rows:
        brought = {edge.slot: assignments.inputs[edge.value].dtype for edge in row.edges}
        inputs = tuple(brought.get(o.slot) or made.get(o.value, FLOAT) for o in row.site.data)
        carrier = assignments.rows[ends.get(row.site.index, row.site.index)]
        output = _output_dtype(row, carrier, inputs)
        made.update(dict.fromkeys(row.site.outputs, output))
        result.append(Dtypes(inputs, output))
    return result


def _output_dtype(row: Assignment, carrier: Assignment, inputs: tuple[str, ...]) -> str:
    if row.role is Role.PASSED:
        return inputs[0] if inputs else FLOAT
    return carrier.output.dtype if carrier.output is not None else FLOAT


def unfused_in(recording: Recording, assignments: Assignments) -> tuple[Unfused, ...]:
    """Every pair of neighbours that could be in one chain and is not, with the reason."""
    together = {index: chain for chain in assignments.chains for index in chain.sites}
    return tuple(
        Unfused(first.name, second.name, reason)
        for first, second in _neighbours(recording)
        if together.get(first.index) is None or together.get(first.index) is not together.get(second.index)
        if (reason := _obstacle(recording, assignments, first, second))
    )


def _neighbours(recording: Recording) -> Iterator[tuple[Site, Site]]:
    for first in recording.sites:
        for value in first.outputs[:1]:
            for index in dict.fromkeys(recording.values[value].consumers):
                if fuses_with(first, recording.sites[index]):
                    yield first, recording.sites[index]


def _obstacle(recording: Recording, assignments: Assignments, first: Site, second: Site) -> str:
    for site in (first, second):
        row = assignments.rows[site.index]
        if row.role is Role.FLOAT:
            return f"{site.name} stays in float: {row.reason}"
    value = recording.values[first.outputs[0]]
    if first.outputs[0] in recording.returned:
        return f"the model returns what {first.name} makes"
    readers = list(dict.fromkeys(recording.sites[index].name for index in value.consumers))
    if len(value.consumers) > 1:
        return f"what {first.name} makes is read {len(value.consumers)} times: {', '.join(readers[:4])}"
    if value.asked:
        return f"what {first.name} makes is read by '{value.asked[0]}' too"
    return recording.unfoldable.get(second.index, "")
