"""Batches as users have them."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from quantcfg.stages import batches


class Probe(nn.Module):
    """Remembers what it was called with."""

    def forward(self, *args, **kwargs):
        self.called_with = (args, kwargs)


class TakesLabels(nn.Module):
    def forward(self, x, labels=None):
        return labels


@dataclass
class Example:
    x: Tensor
    labels: Tensor


X, Y, Z = torch.ones(4, 2), torch.tensor([0, 1, 1, 0]), torch.zeros(4, 3)
Pair = namedtuple("Pair", "inputs targets")


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X,), (X,), {}),
        ((X, Y), (X,), {}),
        ([X, Y], (X,), {}),
        (Pair(X, Y), (X,), {}),
        ((X, Z, Y), (X, Z), {}),
        (((X, Z), Y), (X, Z), {}),
        (({"a": X}, Y), (), {"a": X}),
        ({"a": X, "labels": Y}, (), {"a": X}),
        (Example(X, Y), (), {"x": X}),
    ],
)
def test_the_inputs_of_every_kind_of_batch_reach_the_model(batch, args, kwargs):
    model = Probe()
    batches.forward(model, batch)
    assert model.called_with[0] == args
    assert model.called_with[1] == kwargs


def test_labels_are_passed_to_a_model_that_takes_them_by_name():
    assert batches.forward(TakesLabels(), {"x": X, "labels": Y}) is Y


@pytest.mark.parametrize(
    "batch", [(X, Y), [X, Z, Y], {"x": X, "labels": Y}, {"x": X, "target": Y}, Example(X, Y)]
)
def test_targets_are_found(batch):
    assert batches.targets_of(batch) is Y


@pytest.mark.parametrize("batch", [X, (X,), {"x": X}])
def test_a_batch_may_have_no_targets(batch):
    assert batches.targets_of(batch) is None


@pytest.mark.parametrize(
    "batch", [X, (X, Y), [X, Y], {"x": X, "n": 3}, Example(X, Y), Pair(X, Y), ({"a": [X]}, "s")]
)
def test_moving_to_a_device_keeps_the_containers(batch):
    moved = batches.to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert {tensor.device.type for tensor in batches.tensors_in(moved)} == {"meta"}


def test_a_batch_is_cut_where_it_has_a_row_per_sample():
    cut = batches.cut({"x": X, "labels": Y, "table": torch.zeros(7), "scale": torch.tensor(1.0)}, 3)
    assert {k: tuple(v.shape) for k, v in cut.items()} == {
        "x": (3, 2),
        "labels": (3,),
        "table": (7,),
        "scale": (),
    }


@pytest.mark.parametrize(
    ("batch", "fault"),
    [
        (["a", "b"], "is of type list and holds no tensor"),
        ([X, torch.zeros(1, device="meta")], "holds a tensor on the meta device, which has no values"),
        ((X, "name"), ""),
    ],
)
def test_a_batch_without_a_tensor_or_without_values_has_a_fault(batch, fault):
    assert batches.fault_in(batch, batches.tensors_in(batch)) == fault


@pytest.mark.parametrize(
    ("logits", "targets", "shape"),
    [
        ((4, 3), (4,), (4, 3)),
        ((4, 5, 3), (4, 5), (20, 3)),
        ((4, 3, 6), (4, 6), (24, 3)),
        ((2, 3, 8, 8), (2, 8, 8), (128, 3)),
    ],
)
def test_class_scores_are_recognised(logits, targets, shape):
    scores, classes = batches.class_scores(torch.zeros(logits), torch.zeros(targets, dtype=torch.long))
    assert scores.shape == shape
    assert classes.shape == shape[:1]


def test_the_class_axis_of_a_segmentation_is_moved_last():
    logits = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    scores, _ = batches.class_scores(logits, torch.zeros(2, 4, 5, dtype=torch.long))
    assert scores[7].tolist() == logits[0, :, 1, 2].tolist()


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 3), None),
        ("text", Y),
        (torch.zeros(4), Y),
        (torch.zeros(5, 3), Y),
    ],
)
def test_nothing_is_guessed_when_the_reading_is_not_obvious(outputs, targets):
    assert batches.class_scores(outputs, targets) is None


def test_the_loss_of_the_model_comes_before_cross_entropy():
    own = torch.tensor(5.0)
    assert batches.default_loss({"loss": own, "logits": torch.zeros(4, 2)}, (X, Y)) is own
