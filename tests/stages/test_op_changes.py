"""What two configs make different of a model, against models that were prepared with each."""

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from quantcfg.config.load import empty_config, load_config
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import fake_quants, prepared
from quantcfg.preparation.targets import targets_of
from quantcfg.stages.op_changes import compare_on_model
from quantcfg.stages.survey import Survey

EXAMPLE = torch.rand(2, 4)
PRESETS = ["w8a8", "w4a8", "w8a16", "w8a32", "w8a8_lsq", None]
CHANGED = [{"preset": "w8a8", "activation_observer": "percentile"}, {"weight_qkwargs": {"dtype": "qint4"}}]
PATTERNS = ["a", "a.0", "a.*", "**.1", "b", "{b,c}", "relu_0", "a.{0..2}", "re:[ab].*"]
values = st.sampled_from([*PRESETS, *CHANGED])
names = st.lists(st.tuples(st.sampled_from(PATTERNS), values), max_size=3, unique_by=lambda rule: rule[0])
types = st.fixed_dictionaries({}, optional={"Linear": values, "Tail": values})
rules = st.fixed_dictionaries(
    {"module_name": names.map(dict)}, optional={"global": values, "module_type": types}
)


class Tail(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) + x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.b = nn.Linear(4, 4)
        self.c = Tail()

    def forward(self, x):
        return self.c(torch.relu(self.b(self.a(x))))


@pytest.fixture(scope="module")
def model():
    return Net().eval()


@pytest.fixture(scope="module")
def surveyed(model):
    recording = prepared(prepare(model, empty_config(), example_inputs=EXAMPLE)).recording
    return Survey(model, recording, tuple(targets_of(model, recording)))


def installed(model, config, stage):
    """The quantizers that a prepared model really has, each by the names and numbers of its modules."""
    made = fake_quants(prepare(model, config, example_inputs=EXAMPLE, stage=stage))
    return {name: described(module) for name, module in made.items()}


def described(module):
    parts = [module, getattr(module, "observer", None)]
    plain = (bool, int, float, str, torch.dtype, torch.qscheme)
    return [
        (type(part).__name__, sorted((k, str(v)) for k, v in vars(part).items() if isinstance(v, plain)))
        for part in parts
        if part is not None
    ]


def said(changes, stage):
    """The quantizers of ops that a comparison says differ, and whether one at an input does."""
    rows = [change for change in changes if change.stage == stage]
    slots = {
        f"{row.name}.{slot}"
        for row in rows
        for slot in ("output", "weight")
        if getattr(row.before, slot) != getattr(row.after, slot)
    }
    return slots, any(row.before.inputs != row.after.inputs for row in rows)


def is_slot(name):
    return name.endswith((".output", ".weight"))


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(rules, rules)
def test_a_comparison_names_what_differs_between_prepared_models(model, surveyed, tmp_path, before, after):
    configs = []
    for name, some_rules in (("a", before), ("b", after)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"version": 1, "qconfig": some_rules}, sort_keys=False))
        configs.append(load_config(path))
    changes = compare_on_model(surveyed, *configs)
    for stage in ("calib", "qat"):
        old, new = (installed(model, config, stage) for config in configs)
        differ = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        slots, inputs = said(changes, stage)
        assert set(filter(is_slot, differ)) == slots
        # ops that read one value share its quantizer, so that one op can change and the modules stay
        assert inputs or all(map(is_slot, differ))
