"""What a recording is: a plain list of op sites and of the values between them.

Control flow, loops, shared modules, in-place ops, keyword arguments, tuples and dicts need nothing special:
what ran is what is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from quantcfg.preparation.ops import OpKind, OpSpec
from quantcfg.preparation.places import Places

Slot = tuple[int | str, ...]
"""Where an argument stands: ``(0,)``, ``("weight",)``, or ``(0, 1)`` for the second tensor of a list."""


@dataclass(slots=True)
class Value:
    """One tensor of the recorded forward.

    ``kind`` is ``input`` (of the model), ``parameter``, ``buffer``, ``constant`` (came from nowhere),
    ``site``, or ``written`` (an older tensor, after something was written into memory that it shares).
    ``live`` says that it depends on activations; a value that does not is a constant of the model or a mask.
    ``mask`` says that it holds, or may hold, the -inf of an attention mask. ``learned`` says that a parameter
    has a part in it; ``counted`` that it is a constant of equal steps, as the places of cells are.
    ``asked`` names the ops that read it and make no floats: a comparison, an FFT, ``item``.
    ``parts`` of a written one: what it was, and what was written into it.
    """

    index: int
    kind: str
    name: str
    shape: tuple[int, ...]
    producer: int | None = None
    live: bool = False
    fixed: bool = False  # computed from parameters and buffers alone
    mask: bool = False
    unwritten: bool = False  # at least in part: made by torch.empty, so that nothing can be read from it
    learned: bool = False
    counted: bool = False
    parts: tuple[int, ...] = ()
    consumers: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Operand:
    """A floating-point tensor argument: where it stands and which value it is."""

    slot: Slot
    value: int


@dataclass(slots=True)
class Site:
    """One op that ran: the ``ordinal``-th ``op`` in call number ``call`` of the module at ``path``."""

    index: int
    path: str
    call: int
    op: str
    spelling: str  # the __name__ it was called by
    counted: str  # the op that its ordinal counts
    ordinal: int
    kind: OpKind
    spec: OpSpec
    data: tuple[Operand, ...]
    weights: tuple[Operand, ...]
    others: tuple[Operand, ...]  # a bias, the affine and the statistics of a norm
    outputs: tuple[int, ...]
    inplace: bool
    dim: int | None = None  # the one that it was told, counted from the last one: -1, -2, ...
    exponent: float | None = None  # of a power, where it is a number
    equation: str = ""  # of an einsum
    macs: int = 0
    written_back: bool = False
    adds_choice: bool = False  # of two numbers, made of integers and booleans
    name: str = ""


@dataclass(slots=True)
class Recording:
    """Everything one forward did.

    ``calls`` counts how often each module ran and ``types`` names the class of each. ``within`` has, for each
    call, those of the modules that it was made in. ``spellings`` has, for
    each call, the op of each ``__name__`` that ran in it, ``counts`` how often each op did and ``places``
    where from: each op is known again later by these. ``unfoldable`` has the batch norms that cannot be
    folded into the layer before them, by site, with the reason; ``own_batch_norms`` the sites where a module
    normalizes with what it holds, ``own_layers`` those where a layer uses the weight and the bias that it
    holds. ``overwritten`` names the parameters and buffers that the forward writes into. ``differentiates``
    says that the forward takes gradients of its own, forces from an energy say, and does not run where they
    are off.
    """

    sites: list[Site] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    within: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    returned: set[int] = field(default_factory=set)
    spellings: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    counts: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    places: dict[tuple[str, int], Places] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    unfoldable: dict[int, str] = field(default_factory=dict)
    own_batch_norms: set[int] = field(default_factory=set)
    own_layers: set[int] = field(default_factory=set)
    overwritten: set[str] = field(default_factory=set)
    differentiates: bool = False

    def sole_consumer(self, value: int) -> Site | None:
        """The one site that reads a value which nothing else, the caller included, can see."""
        consumers = self.values[value].consumers
        if len(consumers) != 1 or self.values[value].asked or value in self.returned:
            return None
        return self.sites[consumers[0]]

    def producer(self, value: int) -> Site | None:
        """The site that made a value, if one did."""
        index = self.values[value].producer
        return None if index is None else self.sites[index]

    def readers(self, site: Site) -> list[Site]:
        """The sites that read what a site makes, in the order they ran."""
        found = {index for value in site.outputs for index in self.values[value].consumers}
        return [self.sites[index] for index in sorted(found)]

    def live(self, site: Site) -> set[int]:
        """The activations among the data of a site."""
        return {operand.value for operand in site.data if self.values[operand.value].live}

    def followed(self, value: int, through: Callable[[Site], bool]) -> int:
        """The value that ``value`` goes back to, by the first operand of the sites it comes ``through``."""
        producer = self.producer(value)
        while producer is not None and through(producer) and producer.data:
            value = producer.data[0].value
            producer = self.producer(value)
        return value

    def unmoved(self, value: int) -> int:
        """The value that one is a view of, or may be."""
        return self.followed(value, lambda site: site.kind is OpKind.MOVE)

    def made_of(self, values: Iterable[int], through: Callable[[Site, Site | None], bool]) -> set[int]:
        """``values`` and what they are made of, as far back as the sites go ``through`` which that leads.

        ``through`` is asked about a site and the one that reads it; about the first ones, with None.
        """
        found = set[int]()
        waiting: list[tuple[int, Site | None]] = [(value, None) for value in values]
        while waiting:
            value, reader = waiting.pop()
            maker = self.producer(value)
            if value in found or not (maker is None or through(maker, reader)):
                continue
            found.add(value)
            waiting += [(operand.value, maker) for operand in (maker.data if maker else ())]
        return found

    def read_only_by(self, ops: Collection[str], among: Callable[[Value], bool]) -> set[int]:
        """The values that lead to nothing but such ``ops``, by way of none that are not ``among`` some."""
        found = set[int]()
        for value in reversed(self.values):  # what is made of a value comes after it
            readers = (self.sites[index] for index in value.consumers)
            if among(value) and all(r.op in ops or found.issuperset(r.outputs) for r in readers):
                found.add(value.index)
        return found
