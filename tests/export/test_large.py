"""Files above 2 GiB, the most that a protobuf message can hold: some minutes, and 8 GiB of memory each."""

import gc
import resource

import onnx
import pytest
import safetensors
import torch
from torch import nn

import quantcfg as qc
from quantcfg.export import onnx_file, table
from quantcfg.export.calls import Call, varying_axes
from quantcfg.export.deployed import deployed
from quantcfg.export.files import durable
from quantcfg.export.freeze import freeze
from quantcfg.export.ops import PLAIN, SINGLE
from quantcfg.export.program import Program, export_program, quiet
from quantcfg.export.session import FileModel, input_names, open_session, runner
from quantcfg.stages.progress import Silence

pytestmark = pytest.mark.slow
NUM_ROWS, WIDTH = 600_000, 1024  # 2.29 GiB in float32
MOST_MEMORY_KIB = 10 << 20


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(NUM_ROWS, WIDTH, _weight=torch.zeros(NUM_ROWS, WIDTH))
        self.fc = nn.Linear(WIDTH, 4)
        nn.init.normal_(self.embedding.weight[-8:].detach())

    def forward(self, ids):
        return self.fc(self.embedding(ids))


IDS = torch.tensor([[0, NUM_ROWS - 1, NUM_ROWS - 2, NUM_ROWS - 8]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    rules = {"": qc.get_default_qconfig(), "module_name": {"embedding": None}}
    prepared = qc.prepare(Words(), rules, example_inputs=(IDS,))
    gc.collect()
    with qc.calibrating(prepared), torch.no_grad():
        prepared(IDS)
    qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
    yield prepared.eval()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST_MEMORY_KIB


def program_of(model, ops) -> tuple[Program, object]:
    frozen = freeze(deployed(model, in_float32=True), lambda m: m(IDS), ops)
    call = Call((IDS,), {})
    return export_program(frozen.model, call, varying_axes([call]), Silence()), frozen


def test_onnx_has_its_data_beside_it_and_runs(model, tmp_path):
    program, _ = program_of(model, SINGLE)
    path = tmp_path / "words.onnx"
    assert onnx_file.write(onnx_file.to_onnx(program, {}), path) == ["words.data", "words.onnx"]
    assert path.stat().st_size < 1 << 20 < 1 << 31 < path.with_suffix(".data").stat().st_size
    alone = onnx.load(path, load_external_data=False)
    places = {e.value for t in alone.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"words.data"}
    for optimised in (False, True):
        file = FileModel(program, input_names(alone), runner(open_session(path, optimised=optimised)))
        with torch.no_grad():
            step = float(qc.fake_quants(model)["fc.output"].qparams().scale)
            torch.testing.assert_close(file(IDS), model(IDS), rtol=0, atol=1.1 * step)


def test_pt2_loads_and_computes_the_same_bits(model, tmp_path):
    program, _ = program_of(model, PLAIN)
    path = tmp_path / "words.pt2"
    with quiet(), durable(path) as file:
        torch.export.save(program.exported, file)
    assert path.stat().st_size > 1 << 31
    with torch.no_grad():
        assert torch.equal(torch.export.load(path).module()(IDS), model(IDS))


def test_safetensors_has_every_row(model, tmp_path):
    path = tmp_path / "words.safetensors"
    table.write_safetensors(program_of(model, PLAIN)[1], {}, path)
    assert path.stat().st_size > 1 << 31
    with safetensors.safe_open(path, "pt") as file:
        assert torch.equal(file.get_slice("embedding.weight")[-8:], model.embedding.weight[-8:])
