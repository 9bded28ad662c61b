"""The integer model as a whole: how near it is, what it leaves in float, what it warns of and refuses."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quantcfg
from quantcfg.errors import NumericError, PrepareError, QuantcfgWarning
from quantcfg.integer.compare import compare_integers
from quantcfg.integer.convert import convert
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, set_fake_quantize
from tests.export.exported import calibrated, leaves, qconfig
from tests.prepare.models import CASES, ResNet

IN_FLOAT = {"softmax", "multi_head_attention_forward"}  # of masked scores; torch's own attention in one op
SPECS = {"8 bits": qconfig("quint8", "qint8", affine=True), "4 bits": qconfig("qint4", "qint4")}


def report_of(case, spec, **options):
    torch.manual_seed(0)
    make, inputs = CASES[case]
    args = inputs()
    model = calibrated(make(), {"": SPECS[spec]}, args)
    return compare_integers(model, [lambda m: m(*args)], **options)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("case", CASES)
def test_no_op_is_off_by_more_than_one_step(case, spec):
    report = report_of(case, spec)
    assert report.num_values > 0
    assert not [op.name for op in report.ops if op.more]
    assert {op.op for op in report.in_float} <= IN_FLOAT


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("case", CASES)
def test_with_unrounded_biases_it_is_the_fake_quant_model(case, spec):
    report = report_of(case, spec, bias="exact")
    assert report.equal_share >= 0.999
    assert report.num_values - sum(op.equal for op in report.ops) <= 1
    assert not [op.name for op in report.ops if op.own]  # what differs, float32 rounded


def test_what_is_not_the_rounding_of_float32_is_counted_as_its_own():
    report = report_of("dense", "4 bits")
    assert sum(op.own for op in report.ops) > 0
    assert report.own_share == 1.0 - sum(op.own for op in report.ops) / report.num_values


def test_a_bias_in_int32_is_all_that_four_bits_differ_by():
    assert report_of("dense", "4 bits").equal_share < 1.0
    assert report_of("dense", "4 bits", bias="exact").equal_share == 1.0


def test_what_a_rule_leaves_in_float_stays_in_float():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    model = prepare(net, {"": SPECS["8 bits"], "module_name": {"1": None}}, example_inputs=(x,))
    with calibrating(model):
        model(x)
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    with torch.no_grad():
        y = convert(model)(x)
        assert torch.equal(y, net[1](model[0](x)))
    assert [op.name for op in compare_integers(model, [lambda m: m(x)]).ops] == ["0"]


def test_a_tail_of_32_bits_is_its_accumulator():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(3, 4)
    rules = {
        "": SPECS["8 bits"],
        "module_name": {"2": quantcfg.get_default_qconfig(activation_fake_quant=None)},
    }
    model = calibrated(net, rules, (x,))
    report = compare_integers(model, [lambda m: m(x)])
    assert [(op.name, op.num_values, op.more) for op in report.ops][-1] == ("2", 9, 0)


class Wide(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.fc = nn.Linear(length, 2, bias=False)
        nn.init.constant_(self.fc.weight, 1.0)

    def forward(self, x):
        return self.fc(x)


def test_an_accumulator_that_could_overflow_is_warned_of():
    x = torch.ones(1, 140_000)
    model = calibrated(Wide(140_000), {"": SPECS["8 bits"]}, (x,))
    with pytest.warns(QuantcfgWarning, match=r"fc: its int32 accumulator could overflow: .* 9\.104e\+09"):
        convert(model)(x)
    with pytest.warns(QuantcfgWarning):
        report = compare_integers(model, [lambda m: m(x)])
    assert [op.name for op in report.overflowing] == ["fc"]


def test_the_bound_of_an_accumulator_is_reached_by_its_worst_input():
    model = calibrated(Wide(100), {"": qconfig()}, (torch.full((1, 100), -1.0),))
    (op,) = compare_integers(model, [lambda m: m(torch.ones(1, 100))]).ops
    assert op.largest == 100 * 128 * 127  # weights of 127.5 steps round to 128, and are cut to 127


def test_batch_norms_that_stay_are_computed_like_folded_ones():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = ResNet().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    for bn in ("keep", "fold"):
        model = prepare(net, {"": SPECS["8 bits"]}, example_inputs=(x,), bn=bn)
        with calibrating(model):
            model(x)
        set_fake_quantize(model, FakeQuantState.VALIDATION)
        report = compare_integers(model.eval(), [lambda m: m(x)])
        assert not report.in_float
        assert report.equal_share > 0.999
        assert not any(op.more for op in report.ops)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, rounds=2):
        for _ in range(rounds):
            x = F.gelu(self.fc(x)) * 2 - x
        return x


def test_a_loop_that_runs_longer_uses_what_its_last_round_has():
    x = torch.randn(3, 4)
    model = calibrated(Loop(), {"": SPECS["8 bits"]}, (x,))
    with torch.no_grad():
        torch.testing.assert_close(convert(model)(x, rounds=4), model(x, rounds=4), rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_dtype(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=dtype)
    model = calibrated(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype),
                       {"": SPECS["8 bits"]}, (x,))  # fmt: skip
    with torch.no_grad():
        y = convert(model)(x)
        assert y.dtype is dtype
        torch.testing.assert_close(y, model(x), rtol=0, atol=0.05)


def test_the_model_itself_is_left_as_it_was():
    torch.manual_seed(0)
    make, inputs = CASES["resnet"]
    args = inputs()
    model = calibrated(make(), {"": SPECS["8 bits"]}, args)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    y = model(*args)
    convert(model)(*args)
    compare_integers(model, [lambda m: m(*args)])
    assert torch.equal(model(*args), y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_copies_and_pickles():
    make, inputs = CASES["resnet"]
    args = inputs()
    converted = convert(calibrated(make(), {"": SPECS["8 bits"]}, args))
    with torch.no_grad():
        y = converted(*args)
        for again in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert torch.equal(leaves(again(*args))[0], y)


def test_inference_mode_computes_the_same():
    make, inputs = CASES["in_place"]
    args = inputs()
    converted = convert(calibrated(make(), {"": SPECS["8 bits"]}, args))
    with torch.no_grad():
        y = converted(*args)
    with torch.inference_mode():
        assert torch.equal(converted(*args), y)


def test_what_cannot_be_converted_is_refused():
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    with pytest.raises(PrepareError, match="not a prepared model"):
        convert(net)
    with pytest.raises(NumericError, match="never observed"):
        convert(prepare(net, {"": SPECS["8 bits"]}, example_inputs=(x,)))
    model = calibrated(net, {"": SPECS["8 bits"]}, (x,))
    with pytest.raises(PrepareError, match="computes in integers already"):
        convert(convert(model))
    with pytest.raises(PrepareError, match="unknown bias 'int8'; known: int32, exact"):
        convert(model, bias="int8")


class Branching(nn.Module):
    """Runs more of the same ops where ``large`` is asked for: before what it runs otherwise."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, large=False):
        y = self.first(x)
        if large:
            y = y * 1000
        return self.last(y * 0.5)


@pytest.mark.filterwarnings("ignore:'mul' runs in the model now")
def test_a_branch_that_was_not_recorded_is_in_float_as_in_the_prepared_model():
    x = torch.randn(16, 8)
    model = calibrated(Branching(), {"": SPECS["8 bits"]}, (x,))
    expected = model(x, large=True)
    found = convert(model)(x, large=True)
    assert (found - expected).abs().max() <= expected.abs().max() / 64


class TwiceWithOneNorm(nn.Module):
    """A layer that is called twice, with a batch norm behind the first call alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.1, 4.0)

    def forward(self, x):
        return self.conv(F.relu(self.norm(self.conv(x))))


def test_a_weight_that_one_call_reads_through_a_batch_norm_is_its_own_in_the_other():
    torch.manual_seed(0)
    x = torch.randn(4, 4, 8, 8)
    model = calibrated(TwiceWithOneNorm().eval(), {"": SPECS["8 bits"]}, (x,))
    assert not [op.name for op in compare_integers(model, [lambda m: m(x)]).ops if op.more]


class Cells(nn.Module):
    """What a detector decodes: features on a grid, with the integer position of each cell."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1)
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        cells, inside = torch.stack([columns, rows], -1), (columns > 2)[..., None]
        return (y.sigmoid() + cells) * inside / torch.tensor([8, 8])


def test_tensors_of_integers_and_booleans_are_no_numbers():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    model = calibrated(Cells().eval(), {"": SPECS["8 bits"]}, (x,))
    expected = model(x)
    assert (convert(model)(x) - expected).abs().max() <= expected.abs().max() / 64
