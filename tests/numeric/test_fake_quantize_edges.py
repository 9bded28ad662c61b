"""Inputs that break quantizers, over every kind in every state: a defined result or an error with a name."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantcfg.errors import NumericError
from tests.numeric.builders import KINDS, build, calibrated, train

LARGEST, SUBNORMAL = torch.finfo(torch.float32).max, 1e-42


def mixed(value):
    """Ordinary values around one that is not."""
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4).clone()
    x[1, 1, 2] = value
    return x


INPUTS = {
    "nan": lambda: mixed(torch.nan),
    "inf": lambda: mixed(torch.inf),
    "minus inf": lambda: mixed(-torch.inf),
    "all inf": lambda: torch.full((2, 3, 4), torch.inf),
    "empty": lambda: torch.ones(0, 3, 4),
    "empty inside": lambda: torch.ones(2, 3, 0),
    "zeros": lambda: torch.zeros(2, 3, 4),
    "one per channel": lambda: torch.tensor([[-2.0, 0.0, 3.0]]),
    "constant": lambda: torch.full((2, 3, 4), 0.3),
    "subnormal": lambda: torch.full((2, 3, 4), SUBNORMAL),
    "1e30": lambda: mixed(1e30),
    "largest": lambda: torch.stack([mixed(LARGEST), mixed(-LARGEST)]).reshape(4, 3, 4),
    "transposed": lambda: torch.randn(4, 3, 2).transpose(0, 2),
    "expanded": lambda: torch.randn(1, 3, 1).expand(2, 3, 4),
    "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "float16": lambda: mixed(60_000.0).half(),
    "bfloat16": lambda: mixed(1e30).bfloat16(),
    "float64": lambda: mixed(0.1).double(),
    "float64 beyond float32": lambda: mixed(0.1).double() * 1e300,
    "int64": lambda: torch.ones(2, 3, 4, dtype=torch.int64),
    "bool": lambda: torch.ones(2, 3, 4, dtype=torch.bool),
    "complex": lambda: torch.ones(2, 3, 4, dtype=torch.complex64),
    "float8": lambda: torch.ones(2, 3, 4).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).repeat(2, 1).to_sparse(),
}
STATES = ("calibration", "training", "training after calibration", "validation")


def in_state(kind, qscheme, state):
    ordinary = torch.randn(5, 3, 4)
    module = (
        build(kind, qscheme) if state in ("calibration", "training") else calibrated(ordinary, kind, qscheme)
    )
    if state == "calibration":
        module.observing = True
    elif state != "validation":
        train(module)
    module.name = "layer1.0.add_0.output"
    return module


def check_result(x, y, name):
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.equal(y.isnan(), x.isnan())
    # A symmetric grid ends half a step outside its range: past the largest float32, if the range ends there.
    assert y.isfinite().all() or name == "largest" or not x.isfinite().all()


def check_qparams(module):
    if module.quantizing:
        scale, zero_point = module.qparams()
    else:
        scale, zero_point = module.observer.qparams()
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert ((zero_point >= module.quant_min) & (zero_point <= module.quant_max)).all()


def run(module, x, name):
    differentiable = x.is_floating_point() and x.dtype != torch.float8_e4m3fn and x.layout == torch.strided
    leaf = x.detach().requires_grad_() if differentiable else x
    try:
        y = module(leaf)
    except NumericError as error:
        assert error.quantizer == "layer1.0.add_0.output"
        assert str(error).startswith("layer1.0.add_0.output: ")
        return
    check_result(x.detach(), y.detach(), name)
    if y is not leaf:
        y.sum().backward()
        assert leaf.grad.isfinite().all()
        for parameter in module.parameters():  # NaN comes through, to the loss and back
            assert parameter.grad is None or parameter.grad.isfinite().all() or x.isnan().any()


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_a_defined_result_or_an_error_that_names_the_quantizer(kind, qscheme, name):
    for state in STATES:
        module, x = in_state(kind, qscheme, state), INPUTS[name]()
        before = x.clone()
        run(module, x, name)
        if module.observed:
            check_qparams(module)
        if x.layout == torch.strided:
            assert torch.equal(x.flatten().view(torch.uint8), before.flatten().view(torch.uint8))


@pytest.mark.parametrize("name", ["nan", "inf", "all inf", "empty"])
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_a_batch_that_cannot_be_used_leaves_no_trace_in_training(kind, qscheme, name):
    poisoned, clean = train(build(kind, qscheme)), train(build(kind, qscheme))
    first, second = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    for module in (poisoned, clean):
        module(first)
    poisoned(INPUTS[name]())
    for module in (poisoned, clean):
        module(second)
    for key, value in clean.state_dict().items():
        if key not in ("observer.num_batches", "observer.skipped"):
            assert torch.equal(poisoned.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["nan", "all inf", "empty"])
@pytest.mark.parametrize("kind", ["lsq", "pact"])
def test_what_is_learned_starts_from_the_first_batch_that_can_be_used(kind, name):
    module = train(build(kind))
    if kind == "pact" or name == "empty":
        module(INPUTS[name]())
    else:
        with pytest.raises(NumericError, match="never observed"):
            module(INPUTS[name]())
    module(torch.tensor([-2.0, 1.0]))
    assert module.qparams().scale.item() == pytest.approx(2 / 127.5, rel=1e-6)


class HostReads(TorchDispatchMode):
    """Counts what waits for the device: a tensor's value asked for by Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_a_training_step_never_waits_for_the_device(kind, qscheme, x_grad):
    module, x = train(build(kind, qscheme)), torch.randn(4, 3, 2, requires_grad=x_grad)
    module(x)  # the first one asks whether there are qparams, once
    with HostReads() as reads:
        y = module(x)
        if y.requires_grad:
            y.sum().backward()
    assert reads.count == 0
    with HostReads() as reads:
        bool(torch.ones(1))
    assert reads.count == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "qscheme", "dtype"),
    [
        ("fake_quant", "per_tensor_affine", torch.bfloat16),
        ("lsq", "per_channel_symmetric", torch.float16),
        ("pact", "per_tensor_symmetric", torch.bfloat16),
    ],
)
def test_the_first_steps_in_half_precision_compile_whole(kind, qscheme, dtype):
    torch._dynamo.reset()
    eager, other = train(build(kind, qscheme)), train(build(kind, qscheme))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for batch in (4, 6):
        x = torch.randn(batch, 3, 4).to(dtype)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, z = eager(one), compiled(two)
        y.sum().backward()
        z.sum().backward()
        assert torch.equal(y, z)
        assert torch.equal(one.grad, two.grad)
    assert torch.equal(eager.qparams().scale, other.qparams().scale)
