"""Streams of batches: the same order for the same (seed, epoch), and every failure with its batch."""

import random
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from quantcfg.errors import UserCodeError
from quantcfg.stages.data import DataSource, length_of
from quantcfg.stages.model_file import ModelFile
from quantcfg.stages.seeding import (
    derive_seed,
    isolated_randomness,
    random_state,
    restore_random_state,
    seed_all,
)


def source(function, seed=0):
    module = ModuleType("model")
    module.train_data = function
    return DataSource(ModelFile(module, "model.py"), "train_data", seed, torch.device("cpu"))


def loader(**options):
    return lambda: DataLoader(TensorDataset(torch.arange(12)), batch_size=2, shuffle=True, **options)


def order(data, epoch, **options):
    return [batch[0].tolist() for _, batch in data.batches(epoch, **options)]


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_the_order_is_a_function_of_seed_and_epoch(generator):
    first, second = source(loader(generator=generator)), source(loader(generator=generator))
    torch.rand(3)

    assert order(first, 0) == order(first, 0) == order(second, 0)
    assert order(first, 1) == order(second, 1) != order(first, 0)
    assert order(source(loader(generator=generator), seed=1), 0) != order(first, 0)


def test_a_pass_can_be_entered_in_its_middle():
    data = source(loader())
    assert order(data, 3, skip=4) == order(data, 3)[4:]
    assert order(data, 3, skip=2, limit=5) == order(data, 3)[2:5]
    assert order(data, 3, skip=6) == []


def test_the_generators_are_restored_between_the_skipped_batches_and_the_next_one():
    def noisy():
        for _ in range(4):
            yield torch.rand(1)

    data = source(noisy)
    whole = [batch.item() for _, batch in data.batches()]
    saved = None
    for index, _ in data.batches():
        if index == 1:
            saved = random_state()
    rest = [b.item() for _, b in data.batches(skip=2, after_skip=lambda: restore_random_state(saved))]

    assert rest == whole[2:]


def test_an_iterator_is_asked_for_again_and_a_list_is_not():
    calls = []

    def generator():
        calls.append(1)
        yield torch.ones(1)

    data = source(generator)
    assert [len(list(data.batches(epoch))) for epoch in range(3)] == [1, 1, 1]
    assert len(calls) == 3

    calls.clear()
    data = source(lambda: (calls.append(1), [torch.ones(1)])[1])
    assert [len(list(data.batches(epoch))) for epoch in range(3)] == [1, 1, 1]
    assert len(calls) == 1


def test_the_length_is_what_the_data_claims():
    assert source(loader()).num_batches() == 6
    assert length_of(source(loader()), 4) == 4
    assert length_of(source(loader()), None) == 6
    assert source(lambda: iter([])).num_batches() is None
    assert length_of(source(lambda: iter([])), None) is None


def test_an_infinite_loader_is_limited():
    def forever():
        while True:
            yield torch.ones(1)

    assert len(list(source(forever).batches(limit=5))) == 5


def message(data, **options):
    with pytest.raises(UserCodeError) as caught:
        list(data.batches(**options))
    return caught.value.where.rpartition("/")[2].partition(":")[0], caught.value.message


def test_an_empty_loader_is_an_error():
    def empty():
        return []

    assert message(source(empty)) == ("test_data.py", "train_data() gave no batch")


def test_an_error_in_the_data_names_the_batch():
    def broken():
        yield torch.ones(1)
        raise ValueError("bad row")

    assert message(source(broken)) == ("test_data.py", "train_data(), in batch 1, raised ValueError: bad row")


def test_an_error_when_the_data_is_made_is_told_apart():
    def broken():
        raise OSError("no such disk")

    assert message(source(broken)) == ("test_data.py", "train_data() raised OSError: no such disk")


def test_something_else_than_a_batch_is_refused():
    assert message(source(lambda: [torch.ones(1), "text"]))[1] == (
        "batch 1 of train_data() is of type str and holds no tensor"
    )


class Pair(tuple):
    """What cannot be built of a list of its items."""

    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


def test_a_batch_of_a_container_that_cannot_be_built_again_is_taken_as_it_is_or_refused():
    data = source(lambda: [Pair(torch.ones(4, 2), torch.ones(4))])
    ((index, batch),) = data.batches()
    assert data.cut(index, batch, 4) is batch
    with pytest.raises(UserCodeError) as caught:
        data.cut(index, batch, 1)
    assert caught.value.message.startswith("cutting batch 0 of train_data() to 1 sample raised TypeError: ")
    data.device = torch.device("meta")
    assert message(data)[1].startswith("moving batch 0 of train_data() to meta raised TypeError: ")


def test_every_generator_is_saved_and_restored():
    seed_all(5)
    random.random(), np.random.rand(), np.random.randn(), torch.rand(1)
    state = random_state()
    drawn = [(random.random(), np.random.randn(), torch.rand(1).item()) for _ in range(3)]
    restore_random_state(state)
    assert [(random.random(), np.random.randn(), torch.rand(1).item()) for _ in range(3)] == drawn


def test_isolated_randomness_leaves_no_trace():
    seed_all(1)
    before = (random.random(), np.random.rand(), torch.rand(1).item())
    seed_all(1)
    with isolated_randomness():
        random.random(), np.random.rand(), torch.rand(7)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == before


def test_seeds_differ_by_purpose_and_are_the_same_everywhere():
    assert derive_seed(0, "train_data", 1) == 2184094267
    assert (
        len({derive_seed(seed, name, epoch) for seed in range(3) for name in "ab" for epoch in range(9)})
        == 54
    )
