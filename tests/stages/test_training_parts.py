"""The parts of a training, each against the formula it stands for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantcfg.config.load import load_config
from quantcfg.config.training import SGD, Adam, Best, Distill, OneCycle
from quantcfg.errors import UsageError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import fake_quants
from quantcfg.stages.averaging import WeightAverage
from quantcfg.stages.distillation import Teacher
from quantcfg.stages.optimizers import build_learning_rate, build_optimizer
from quantcfg.stages.selection import Selection
from quantcfg.stages.training import enter_phase


class Scores:
    """A model file whose model gives its batch's inputs as scores."""

    def forward(self, model, batch):
        return model(batch[0])


def make_prepared(tmp_path, text):
    (tmp_path / "config.yaml").write_text("version: 1\n" + text)
    config = load_config(tmp_path / "config.yaml")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    return config, prepare(model, config, example_inputs=torch.rand(2, 1, 4, 4), stage="qat", bn="keep")


@pytest.mark.parametrize(("mode", "better", "worse"), [("max", 2.0, 1.0), ("min", 1.0, 2.0)])
def test_an_equal_metric_is_no_better_one(mode, better, worse):
    selection = Selection(Best(metric="m", mode=mode, patience=2))
    for step, value in enumerate((worse, better, better), start=1):
        selection.add({"m": value}, step)
    assert (selection.kept(9), selection.is_exhausted) == ((2, {"m": better}), False)
    selection.add({"m": worse}, 4)
    assert selection.is_exhausted
    copy = Selection(selection.section)
    copy.load(selection.state())
    assert copy == selection


def test_without_a_metric_the_last_model_is_kept():
    selection = Selection(None)
    selection.add({"a": 1.0}, 4)
    assert (selection.kept(4), selection.is_exhausted) == ((4, {"a": 1.0}), False)


def test_a_metric_needs_something_to_be_evaluated_on():
    with pytest.raises(UsageError) as error:
        Selection(Best(metric="m")).check({})
    assert (
        error.value.message
        == "qat.best.metric is 'm'; the metrics are none: the model file has no eval_data()"
    )


def test_the_average_is_that_of_the_formula_and_the_weights_come_back():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, expected = WeightAverage(model, 0.75), {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(5):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        average.update()
        for name, tensor in model.state_dict().items():
            expected[name] = (
                tensor.clone() if name.endswith("tracked") else 0.75 * expected[name] + 0.25 * tensor
            )
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with average.applied():
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (1.0, 4.0)])
def test_distillation_is_the_divergence_of_the_formula(weight, temperature):
    scores, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 1, -100])
    model = nn.Linear(3, 3)
    teacher = Teacher(model, Scores(), Distill(weight=weight, temperature=temperature))
    student = torch.randn(6, 3, requires_grad=True)
    loss = F.cross_entropy(student, targets)

    p = (model(scores)[targets >= 0].double() / temperature).softmax(-1)
    q = (student[targets >= 0].double() / temperature).softmax(-1)
    divergence = (p * (p / q).log()).sum() / 4
    expected = (1 - weight) * loss + weight * temperature**2 * divergence
    blended = teacher.blend(loss, student, (scores, targets))
    torch.testing.assert_close(blended, expected.float(), rtol=1e-5, atol=1e-6)
    blended.backward()
    assert model.weight.grad is None
    assert student.grad is not None


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it():
    model, batch = nn.Linear(3, 3), (torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    teacher = Teacher(model, Scores(), Distill(weight=1.0))
    assert teacher.blend(torch.tensor(5.0), model(batch[0]), batch).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (SGD(name="SGD", lr=0.1, weight_decay=0.2), [(0.1, 0.2), (0.1, 0.0)]),
        (Adam(name="Adam", lr=0.1, quantizer_lr=0.01, quantizer_weight_decay=0.3), [(0.1, 0.0), (0.01, 0.3)]),
    ],
)
def test_parameters_of_quantizers_have_rate_and_decay_of_their_own(tmp_path, section, expected):
    _, model = make_prepared(tmp_path, "qconfig: {global: w8a8_lsq}")
    groups = build_optimizer(section, model).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == expected
    learned = {id(p) for fake_quant in fake_quants(model).values() for p in fake_quant.parameters()}
    assert {id(p) for p in groups[1]["params"]} == learned
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_onecycle_keeps_the_proportion_of_the_rates(tmp_path):
    _, model = make_prepared(tmp_path, "qconfig: {global: w8a8_lsq}")
    optimizer = build_optimizer(SGD(name="SGD", lr=0.1, quantizer_lr=0.01), model)
    rate = build_learning_rate(OneCycle(name="onecycle", max_lr=2.0), optimizer, 10)
    highest = [0.0, 0.0]
    for _ in range(9):
        optimizer.step()
        rate.after_step()
        highest = [max(h, g["lr"]) for h, g in zip(highest, optimizer.param_groups, strict=True)]
    assert highest == pytest.approx([2.0, 0.2], rel=0.05)


@pytest.mark.parametrize("preset", ["w8a8", "w8a8_lsq"])
def test_activations_stay_in_float_for_the_epochs_asked_for(tmp_path, preset):
    text = f"qconfig: {{global: {preset}}}\nqat: {{schedule: {{quantize_activations_after: 2}}}}"
    config, model = make_prepared(tmp_path, text)

    class Holder:
        pass

    job = Holder()
    job.config = config
    for epoch, expected in ((0, False), (1, False), (2, True)):
        enter_phase(job, model, epoch)
        quantizing = {name: fake_quant.quantizing for name, fake_quant in fake_quants(model).items()}
        assert {v for name, v in quantizing.items() if name.endswith(".weight")} == {True}
        assert {v for name, v in quantizing.items() if not name.endswith(".weight")} == {expected}
        assert all(fake_quant.observing for fake_quant in fake_quants(model).values())
