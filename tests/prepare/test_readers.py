"""What a value is made of, and what reads it, decides what becomes of the op that makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from quantcfg.preparation.cells import LABELS, REASON as POINT, looks_counted
from quantcfg.preparation.losses import FOR_NUMBER, NUMBER
from quantcfg.preparation.plan import OpRow
from quantcfg.preparation.positions import BOX, REASON as POSITION
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

INT8 = {"": get_default_qconfig()}
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """Two linear layers and a vector around a forward that a test brings."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.vector = nn.Parameter(torch.randn(8))
        self.register_buffer("kernel", torch.ones(8, 8))
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def model_of(run: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    return Written(run).eval()


def rows_of(run: Callable[..., Any], *inputs: Any) -> dict[str, OpRow]:
    return {row.name: row for row in plan_of(prepare(model_of(run), INT8, example_inputs=inputs)).rows}


def similarity(model: nn.Module, *inputs: Any) -> float:
    prepared = prepare(model, INT8, example_inputs=inputs)
    with calibrating(prepared), torch.no_grad():
        prepared(*inputs)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    with torch.no_grad():
        return float(F.cosine_similarity(prepared(*inputs).flatten(), model(*inputs).flatten(), dim=0))


class Normalized(nn.Module):
    """A convolution whose result is read before its batch norm, too."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.running_mean)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        read = self.read(y)
        return self.norm(y) * read


READINGS = {
    "gt": lambda y: (y > 0.3).float(),
    "fft_rfft": lambda y: torch.fft.rfft(y).abs().mean(),
    "argmax": lambda y: y.argmax(1, keepdim=True),
    "to": lambda y: y.to(torch.int64),
    "numpy": lambda y: float(y.numpy()[0, 0, 0, 0]),
    "item": lambda y: y[0, 0, 0, 0].item(),
}


@pytest.mark.parametrize("op", READINGS)
def test_a_batch_norm_is_not_folded_into_what_others_read(op: str) -> None:
    torch.manual_seed(0)
    model, image = Normalized(READINGS[op]).eval(), torch.randn(2, 3, 6, 6)
    prepared = prepare(model, INT8, example_inputs=image)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    with torch.no_grad():
        torch.testing.assert_close(prepared(image), model(image))
    if op != "item":  # reads an element, which is an op of its own
        (pair,) = plan_of(prepared).unfused
        assert pair.reason == f"what conv makes is read by '{op}' too"


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(F.relu(m.a(x.float() / 255))),
        lambda m, x: m.b(F.relu(x.float() / 255 @ m.a.weight)),
        lambda m, x: m.b(F.relu(m.a(torch.sin(x[:, :1] * torch.arange(8))))),
    ],
)
def test_layers_that_integers_are_handed_to_are_quantized(run: Callable[..., Any]) -> None:
    found = rows_of(run, torch.randint(0, 255, (4, 8), dtype=torch.uint8))
    layers = [row for row in found.values() if row.weight is not None]
    assert len(layers) == 2
    assert all("int8" in dtype for row in layers for dtype in row.dtypes_in)


def test_what_a_buffer_makes_of_integers_is_a_mask_and_stays_float() -> None:
    def run(m: Written, x: Tensor, keep: Tensor) -> Tensor:
        return m.b(m.a(x) * (keep.float() @ m.kernel).clamp(max=1))

    assert rows_of(run, X, torch.ones(4, 8, dtype=torch.bool))["matmul_0"].role == "float"


def test_the_parts_of_a_complex_input_are_inputs() -> None:
    found = rows_of(lambda m, z: m.a(z.real) - m.b(z.imag), torch.complex(X, X))
    assert found["a"].inputs == ("real_0: qint8",)
    assert found["b"].inputs == ("imag_0: qint8",)


def _times(m: Written, x: Tensor, t: Tensor) -> Tensor:
    angles = t[:, None] * 0.5 ** torch.arange(4)
    return m.b(m.a(x) + torch.cat([angles.sin(), angles.cos()], -1))


def _points(m: Written, x: Tensor, t: Tensor) -> Tensor:
    angles = x[:, :1] * 2.0 ** torch.arange(9)
    return m.b(torch.cat([x[:, :7], angles.sin()[:, -1:]], -1))


def _lengths(m: Written, x: Tensor, t: Tensor) -> Tensor:
    index = (t / 125).floor().long()
    valid = torch.arange(8) < t[:, None] / 125
    return m.b(m.a(x)) * valid + m.vector[index][:, None]


@pytest.mark.parametrize("run", [_times, _points, _lengths])
def test_positions_and_times_stay_float(run: Callable[..., Any]) -> None:
    times = torch.tensor([1.0, 333.0, 666.0, 999.0])
    found = rows_of(run, X, times)
    assert {row.op for row in found.values() if row.reason == POSITION} & {"mul", "div"}
    assert not any("t:" in text for row in found.values() for text in row.inputs)
    assert similarity(model_of(run), X, times) > 0.999


@torch.library.custom_op("quantcfg_tests::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor) -> Tensor:
    return scores.argsort() + 0 * boxes[:, 0].long()


@torch.library.custom_op("quantcfg_tests::roi_align", mutates_args=())
def roi_align(maps: Tensor, rois: Tensor) -> Tensor:
    return maps[rois[:, 0].long()].mean((2, 3))


def _proposals(m: Written, x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    anchors = 100.0 * torch.arange(8).reshape(4, 2).repeat(1, 2)
    boxes = anchors + m.a(x)[:, :4].exp()
    kept = boxes[nms(boxes, m.b(x)[:, 0])]
    images = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    level = ((kept[:, 2] * kept[:, 3]).sqrt() / 224).log2() + 4
    return roi_align(maps, torch.cat([images, kept.clamp(max=640.0)], 1)), kept / 2 + level.floor().long()[
        :, None
    ]


BOXES = {"exp_0", "add_0", "mul_1", "cat_0", "div_1", "add_2"}


def test_boxes_and_the_numbers_of_their_images_stay_float() -> None:
    maps = torch.stack([torch.ones(8, 2, 2), -torch.ones(8, 2, 2)])
    found = rows_of(_proposals, X, maps)

    assert {name for name, row in found.items() if row.reason == BOX} == BOXES
    assert {name for name, row in found.items() if row.role == "quantized"} == {"a", "b", "roi_align_0"}
    assert similarity(model_of(lambda *args: _proposals(*args)[0]), X, maps) > 0.999


def _cells(m: Written, x: Tensor) -> Tensor:
    """A detector that hands out places in pixels and scores in one tensor."""
    places = torch.arange(4).float()[:, None] * 2
    shifts, scores = m.a(x).sigmoid().split(4, 1)
    return torch.cat([(shifts * 2 + places) * 80, scores], 1)


def test_what_is_decoded_for_the_caller_stays_float() -> None:
    found = rows_of(_cells, X)
    assert {name for name, row in found.items() if row.reason == POINT} == {
        "mul_1", "add_0", "mul_2", "cat_0",
    }  # fmt: skip
    assert found["sigmoid_0"].role == "quantized"
    assert similarity(model_of(lambda m, x: _cells(m, x)[:, 4:]), X) > 0.99


def _kept_cells(m: Written, x: Tensor) -> Tensor:
    """The same detector, which counts its places when it first sees an image of that size."""
    if not hasattr(m, "places"):
        m.places = torch.arange(4).float()[:, None] * 2
    shifts, scores = m.a(x).sigmoid().split(4, 1)
    return torch.cat([(shifts * 2 + m.places) * 80, scores], 1)


def test_a_model_that_has_run_is_prepared_as_a_new_one() -> None:
    model = model_of(_kept_cells)
    new = prepare(model, INT8, example_inputs=(X,))
    model(X)
    used = prepare(model, INT8, example_inputs=(X,))
    assert new.state_dict().keys() == used.state_dict().keys()
    assert [row.name for row in plan_of(used).rows if row.reason == POINT] == [
        "mul_0", "add_0", "mul_1", "cat_0",
    ]  # fmt: skip


def test_places_in_a_buffer_are_places() -> None:
    def decode(m: Written, x: Tensor) -> Tensor:
        return m.a(x) * 2 + m.kernel

    model = model_of(decode)
    model.kernel = (
        torch.stack(torch.meshgrid(torch.arange(1), torch.arange(8), indexing="xy")).float()[1].T * 8 + 4
    )
    assert {row.name: row for row in plan_of(prepare(model, INT8, example_inputs=(X,))).rows}[
        "add_0"
    ].reason == POINT


@pytest.mark.parametrize(
    ("numbers", "counted"),
    [
        ([0.5, 1.5, 2.5, 3.5], True),
        ([4.0, 12, 20, 28, 36, 44, 8, 24, 40, 16], True),  # cells of 8, 16 and 32 pixels
        ([0.4, 0.45, 0.5], False),  # one for each color
        ([0.4488, 0.4371, 0.4040, 0.3], False),
        ([0.0, 1, 50, 1000], False),
        ([0.0, 1, 2.5, 3, 4], False),
        ([1.0, 1, 1, 1], False),
        ([0.0, 1, 2, 3, float("inf")], False),
        ([float("-inf"), 1, 2, 3, 4], False),
        ([], False),
    ],
)
def test_a_constant_is_counted_where_most_of_equal_steps_are_taken(
    numbers: list[float], counted: bool
) -> None:
    assert looks_counted(torch.tensor(numbers)) is counted
    assert not looks_counted(torch.tensor(numbers).sum())


def _labelled(m: Written, x: Tensor) -> Tensor:
    """A detector that hands out boxes, the best score and the number of its class in one tensor."""
    boxes = m.a(x).sigmoid()[:, :4]
    best, label = m.b(x).sigmoid().max(1)
    return torch.cat([boxes, best[:, None], label[:, None].float() * 10], 1)[:, :6]


def test_labels_are_handed_out_beside_boxes_in_float() -> None:
    found = rows_of(_labelled, X)
    assert found["cat_0"].role == "float"
    assert found["cat_0"].reason == LABELS
    assert {name for name, row in found.items() if row.role == "quantized"} == {
        "a", "sigmoid_0", "b", "sigmoid_1",
    }  # fmt: skip
    assert similarity(model_of(lambda m, x: _labelled(m, x)[:, :4]), X) > 0.999


def test_places_beside_an_activation_that_the_model_goes_on_with_are_quantized() -> None:
    found = rows_of(lambda m, x: m.b(torch.cat([m.a(x)[:, :4], torch.arange(16).float().view(4, 4)], 1)), X)
    assert found["cat_0"].role == "quantized"


class Bins(nn.Module):
    """Places in cells that are expected of eight bins, and what a test makes of them."""

    def __init__(self, bins: nn.Module | Tensor, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.read = nn.Linear(8, 8), read
        if isinstance(bins, Tensor):
            self.register_buffer("bins", bins)
        else:
            self.bins = bins.requires_grad_(False)
            nn.init.zeros_(bins.weight).add_(torch.arange(8.0).view_as(bins.weight))

    def forward(self, x: Tensor) -> Tensor:
        chances = self.a(x).softmax(1)
        if isinstance(self.bins, nn.Module):
            shape = (4, 8, 1) if isinstance(self.bins, nn.Conv1d) else (4, 8)
            return self.read(self.bins(chances.view(shape)).view(4, 1))
        expected = chances @ self.bins if self.bins.dim() == 1 else (chances * self.bins).sum(1)
        return self.read(expected[:, None])


@pytest.mark.parametrize(
    "bins",
    [
        nn.Conv1d(8, 1, 1, bias=False), nn.Linear(8, 1, bias=False),
        torch.arange(8.0), torch.linspace(0, 7, 8)[None],
    ],
)  # fmt: skip
def test_places_that_are_expected_stay_float_from_their_probabilities_on(bins: nn.Module | Tensor) -> None:
    torch.manual_seed(0)
    model = Bins(bins, lambda y: 640 - (torch.arange(4.0)[:, None] - y) * 16)
    prepared = prepare(model, INT8, example_inputs=(X,))
    found = {row.name: row for row in plan_of(prepared).rows}

    assert {name for name, row in found.items() if row.role == "quantized"} == {"a"}
    assert found["softmax_0"].reason == found["rsub_0"].reason == POINT
    with calibrating(prepared), torch.no_grad():
        prepared(X)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert (prepared(X) - model(X)).abs().max() < 2  # pixels, of which a cell has 16


@pytest.mark.parametrize("bins", [nn.Linear(8, 1, bias=False), torch.arange(8.0)])
def test_an_expected_place_that_a_layer_reads_is_quantized_there(bins: nn.Module | Tensor) -> None:
    last = nn.Linear(1, 3)
    found = {row.name: row for row in plan_of(prepare(Bins(bins, last), INT8, example_inputs=(X,))).rows}
    name = "bins" if isinstance(bins, nn.Module) else "matmul_0"

    assert found["softmax_0"].reason == found[name].reason == POINT
    assert found["read"].dtypes_in == ("qint8",)


def test_an_expected_place_that_is_handed_out_stays_float_to_the_end() -> None:
    prepared = prepare(Bins(torch.arange(8.0), lambda y: (y + 0.5) * 16), INT8, example_inputs=(X,))
    found = {row.name: row for row in plan_of(prepared).rows}
    assert found["add_0"].reason == found["mul_0"].reason == POINT


def _soft_argmax(m: Written, x: Tensor) -> Tensor:
    """The expected row and column of a point in a map of 64 x 64 cells."""
    rows = torch.linspace(-1, 1, 64)
    map_of_chances = (m.a(x) @ m.kernel).softmax(1).view(-1, 64, 64)
    return torch.stack([(map_of_chances.sum(axis) * rows).sum(1) for axis in (1, 2)], 1)


def test_the_chances_of_an_expected_place_are_on_no_grid() -> None:
    model = model_of(_soft_argmax)
    torch.manual_seed(1)
    model.kernel = 3 * torch.randn(8, 64 * 64)
    prepared = prepare(model, INT8, example_inputs=(X,))
    with calibrating(prepared), torch.no_grad():
        prepared(X)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert (prepared(X) - model(X)).abs().max() < 1 / 64


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x).softmax(1) @ m.b.weight,  # attention
        lambda m, x: m.a(x).softmax(1) * torch.arange(8.0),  # weights
        lambda m, x: (m.a(x).sigmoid() * torch.arange(8.0)).sum(1),
        lambda m, x: (x * torch.arange(8.0)).sum(1),
        lambda m, x: (m.a(x).softmax(1) * 2).sum(1),
        lambda m, x: (m.a(x).view(2, 2, 8) * torch.arange(8.0)).sum(2),
        lambda m, x: (y := m.a(x).softmax(1) * torch.arange(8.0)).sum(1) + y.amax(1),
    ],
)
def test_products_that_expect_no_place_are_activations(run: Callable[..., Any]) -> None:
    found = rows_of(run, X)
    assert not any(row.reason == POINT for row in found.values())


def _flow(m: Written, x: Tensor) -> Tensor:
    """An image that is warped by what a layer says, and how far that is."""
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).float()
    points = places + m.b(m.a(x)).view(1, 4, 4, 2)
    flow = points - places
    grid = points / 1.5
    grid[..., 0] = grid[..., 0] - 1
    return F.grid_sample(flow.permute(0, 3, 1, 2).relu(), grid, align_corners=True)


def test_the_points_that_an_image_is_sampled_at_stay_float() -> None:
    found = rows_of(_flow, X)
    assert {name for name, row in found.items() if row.reason == POINT} == {"add_0", "div_0", "sub_1"}
    assert found["sub_0"].role == "quantized"
    assert found["sub_0"].inputs == ()
    assert found["grid_sample_0"].dtypes_in == ("qint8", "float")


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(m.a(x) + torch.arange(8).float()),  # an embedding of positions
        lambda m, x: (m.a(x) + torch.arange(8).float()).softmax(1),  # a bias of attention
        lambda m, x: m.a(x) + torch.full((8,), 3.0),  # a mean that is added again
    ],
)
def test_a_sum_with_places_that_the_model_goes_on_with_is_an_activation(run: Callable[..., Any]) -> None:
    assert rows_of(run, X)["add_0"].role == "quantized"


def _with_loss(m: Written, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = m.b(m.a(x).sigmoid())
    misses = (F.normalize(logits, dim=1) - target).abs() * m.vector
    return logits, misses.sum(1).mean() * 0.5


def test_what_only_a_loss_is_made_of_stays_float() -> None:
    found = rows_of(_with_loss, X, X.sign())
    assert {name: row.reason for name, row in found.items() if row.role == "float"} == {
        **dict.fromkeys(("normalize_0", "sub_0", "abs_0", "mul_0", "sum_0"), FOR_NUMBER),
        **dict.fromkeys(("mean_0", "mul_1"), NUMBER),
    }
    assert {name for name, row in found.items() if row.role == "quantized"} == {"a", "sigmoid_0", "b"}


def test_a_layer_that_only_a_loss_reads_is_quantized() -> None:
    found = rows_of(lambda m, x: (m.a(x), (m.b(x) - x).abs().mean()), X)
    assert (found["b"].role, found["sub_0"].reason) == ("quantized", FOR_NUMBER)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(m.a(x) / 2).sigmoid()[:1, :1].squeeze(),  # the result for one sample
        lambda m, x: m.a(x) * (m.a(x) / 2).sigmoid().mean(),  # a scale
        lambda m, x: ((y := m.a(x).sigmoid()), y.mean()),  # a result, and a number beside it
    ],
)
def test_what_more_than_a_loss_is_made_of_is_an_activation(run: Callable[..., Any]) -> None:
    assert rows_of(run, X)["sigmoid_0"].role == "quantized"


def test_nothing_is_said_to_be_observed_of_what_is_empty_in_the_example() -> None:
    found = rows_of(lambda m, x: (m.b(m.a(x)), x[x[:, 0] > 9.0] * 2), X)
    assert found["mul_0"].reason == "empty in the example: nothing was there to be observed"


def test_an_angle_that_a_layer_makes_is_an_activation() -> None:
    found = rows_of(lambda m, x: m.b(torch.sin(3 * m.a(x))), X)
    assert found["mul_0"].role == "quantized"


def test_a_square_that_a_layer_reads_is_on_a_grid() -> None:
    found = rows_of(lambda m, x: m.b(F.relu(m.a(x)).square()), X)
    assert found["square_0"].role == "float"
    assert found["b"].inputs == ("square_0: qint8",)


@pytest.mark.parametrize(
    "invert", [lambda y: 9 / y, torch.reciprocal, torch.rsqrt, lambda y: torch.ones(8) / y]
)
def test_what_is_divided_by_stays_float_however_it_is_written(invert: Callable[[Tensor], Tensor]) -> None:
    def run(m: Written, x: Tensor) -> Tensor:
        return m.b(x * invert(x.clamp(min=0) + 1e-6))

    found = rows_of(run, X)
    assert found["add_0"].reason == "is divided by: rounded to 0 it would make the quotient infinite"


def test_an_inverse_that_a_product_is_scaled_by_stays_float() -> None:
    def run(m: Written, x: Tensor) -> Tensor:
        y = m.a(x).exp()
        return m.b(torch.einsum("nc,n->nc", y, 1 / y.sum(1)))

    rows = torch.logspace(-2, 0, 4)[:, None] * X
    assert rows_of(run, rows)["einsum_0"].dtypes_in == ("qint8", "float")


def test_a_number_stays_a_number_where_it_is_expanded() -> None:
    """On a grid of its own it would be the end of the range, and have no gradient."""

    def run(m: Written, x: Tensor) -> Tensor:
        return torch.cat([m.a(x), m.bin.expand(len(x), 1)], -1)

    model = model_of(run)
    model.bin = nn.Parameter(torch.tensor(1.0))
    prepared = prepare(model, INT8, example_inputs=(X,))
    assert set(fake_quants(prepared)) == {"input.args.0", "a.weight", "a.output", "cat_0.output"}


def test_patches_that_overlap_are_added_up() -> None:
    image = torch.randn(1, 2, 6, 6)
    for stride, role in ((1, "quantized"), (2, "passed through")):
        cut = partial(F.unfold, kernel_size=2, stride=stride)
        paste = partial(F.fold, output_size=(6, 6), kernel_size=2, stride=stride)
        found = rows_of(lambda _, x, cut=cut, paste=paste: paste(cut(x.relu())), image)
        assert found["fold_0"].role == role


def test_a_sum_that_begins_with_0_is_one_add() -> None:
    found = rows_of(lambda m, x: sum([m.a(x), m.b(x)]), X)
    assert {name: row.role for name, row in found.items()} == {
        "a": "fused",
        "b": "quantized",
        "add_0": "fused",
        "add_1": "quantized",
    }


def test_what_0_is_added_to_keeps_its_grid() -> None:
    found = rows_of(lambda m, x: F.gelu(m.a(x) + 0), X)
    assert (found["add_0"].role, found["gelu_0"].inputs) == ("passed through", ())
    assert rows_of(lambda m, x: m.a(x) + 1, X)["add_0"].role == "quantized"


def test_a_number_that_is_filled_in_may_be_off_the_grid() -> None:
    found = rows_of(lambda m, x: m.b(torch.where(x > 0, m.a(x), 5.0)), X)
    assert found["where_0"].role == "quantized"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_features_has_no_quantizers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10]))
    prepared = prepare(model, INT8, forward=lambda m: m[1].log_prob(m[0](X)))
    assert "1.tail.0.1.weight" in fake_quants(prepared)
    assert not any(name.startswith("1.tail.1") for name in fake_quants(prepared))


def test_looking_at_a_layer_does_not_compute_its_weight_once_more() -> None:
    model = nn.Sequential(spectral_norm(nn.Linear(8, 8)), nn.ReLU())
    twice = nn.Sequential(model, model)
    calls = dict(plan_of(prepare(twice.eval(), INT8, example_inputs=X)).called_often)
    assert set(calls.values()) == {2}


class Energy(nn.Module):
    """Turns gradients on for its own, whether or not the caller has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = torch.tanh(self.layer(x)).square().sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=self.training)
        return force


def test_forces_are_trained_through_where_the_model_turns_gradients_on() -> None:
    prepared = prepare(Energy(), INT8, example_inputs=X, stage="qat").train()
    prepared(X).square().mean().backward()
    gradient = next(prepared.parameters()).grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()
