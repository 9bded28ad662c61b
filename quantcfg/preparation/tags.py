"""Which value of a recording each tensor is: told by a tag that it carries, its memory, or who owns it."""

from __future__ import annotations

import threading
import weakref

from torch import Tensor, nn

from quantcfg.preparation import cells, masks
from quantcfg.preparation.owned_tensors import owned_by
from quantcfg.preparation.record import Recording, Value
from quantcfg.preparation.tensors import memory_of, twins_of

_TAG = "_quantcfg_value"
_MOST_BINS = (
    4096  # that a layer which is not trained takes the mean of: the frozen weights of a model have more
)


class Tags:
    """The values of the tensors that one recording has met.

    A tag is the index of the value; of a tensor that an in-place op has written into, and handed on under
    another tag, it is -1 less that index.
    """

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self.recording = recording
        self._owned = owned_by(model)
        self._owned_values: dict[int, int] = {}
        self._tagged: list[weakref.ref[Tensor]] = []
        self._written: dict[int, list[int]] = {}  # memory -> the values written into it, in order
        self._one_at_a_time = threading.Lock()

    def new(self, tensor: Tensor, kind: str, name: str = "", *, tag: bool = True) -> Value:
        """A new value for a tensor."""
        with self._one_at_a_time:
            value = Value(len(self.recording.values), kind, name, tuple(tensor.shape))
            self.recording.values.append(value)
        if tag:
            self._tag(tensor, value.index)
        return value

    def index_of(self, tensor: Tensor) -> int | None:
        """The value that a tensor was when it was tagged; None where it has no tag."""
        tag = getattr(tensor, _TAG, None)
        return tag if tag is None or tag >= 0 else -1 - tag

    def known(self, tensor: Tensor) -> int | None:
        """The value that a tensor is now; None where it came from nowhere."""
        index = self._before_writes(tensor)
        return index if index is None or not self._written else self._after_writes(tensor, index)

    def write(self, tensor: Tensor, index: int) -> None:
        """Note that an op has written its result, which is value ``index``, where ``tensor`` lies."""
        self._written.setdefault(memory_of(tensor), []).append(index)

    def alias(self, result: Tensor, index: int) -> Tensor:
        """Return the written tensor as a new object, so that later use of the old one shows."""
        alias = result.view_as(result)
        setattr(alias, _TAG, index)
        self._tag(result, -1 - index)
        return alias

    def overwritten(self) -> set[str]:
        """The parameters and buffers that are not what they were."""
        return {owned.name for owned in self._owned.values() if owned.is_overwritten(self._written)}

    def clear(self) -> None:
        """Take the tags off: some of the tensors are the caller's."""
        for tensor in (tagged() for tagged in self._tagged):
            if tensor is not None and hasattr(tensor, _TAG):
                delattr(tensor, _TAG)
        self._tagged.clear()

    def _tag(self, tensor: Tensor, tag: int) -> None:
        setattr(tensor, _TAG, tag)
        self._tagged.append(weakref.ref(tensor))

    def _before_writes(self, tensor: Tensor) -> int | None:
        tag: int | None = getattr(tensor, _TAG, None)
        if tag is None:
            return self._own(tensor) if id(tensor) in self._owned else self._of_twin(tensor)
        return tag if tag >= 0 else self._rewritten(tensor, -1 - tag)

    def _own(self, tensor: Tensor) -> int:
        owned = self._owned[id(tensor)]
        if id(tensor) not in self._owned_values:
            value = self.new(tensor, owned.kind, owned.name, tag=False)
            value.fixed = True
            value.learned = owned.kind == "parameter"
            value.mask = owned.kind == "buffer" and masks.looks_like_mask(tensor)
            is_table = tensor.numel() <= _MOST_BINS and not tensor.requires_grad
            value.counted = (owned.kind == "buffer" or is_table) and cells.looks_counted(tensor)
            self._owned_values[id(tensor)] = value.index
        return self._owned_values[id(tensor)]

    def _of_twin(self, tensor: Tensor) -> int | None:
        twins = twins_of(tensor, (tagged() for tagged in self._tagged))
        return max((index for twin in twins if (index := self.index_of(twin)) is not None), default=None)

    def _rewritten(self, tensor: Tensor, index: int) -> int:
        """What in-place ops leave that are called one on the result of the other: ``y.mul_(2).add_(1)``."""
        for written in (index, *self._written.get(memory_of(tensor), ())):
            site = self.recording.producer(written)
            if site is not None and (written == index or index in [o.value for o in site.data[:1]]):
                site.written_back = True
                index = written
        return index

    def _after_writes(self, tensor: Tensor, index: int) -> int:
        """The value of a tensor now: another one, if something was written where it lies in between."""
        later = [written for written in self._written.get(memory_of(tensor), ()) if written > index]
        if not later:
            return index
        values = self.recording.values
        value = self.new(tensor, "written", values[index].name)
        value.unwritten = values[index].unwritten
        value.parts = (index, *later)
        for source in (values[part] for part in value.parts):
            value.live, value.mask = value.live or source.live, value.mask or source.mask
            value.learned = value.learned or source.learned
        for written in later:
            producer = self.recording.producer(written)
            if producer is not None:
                producer.written_back = True
        return value.index
