"""``quantcfg export``: what it writes, what it says, and what it leaves alone."""

import json
import os
import subprocess
import sys

import onnx
import pytest
import safetensors.torch
import torch

EXPORT = ("export", "model.py", "run", "-q")
FILES = {
    "onnx": {"run.onnx"},
    "pt2": {"run.pt2"},
    "safetensors": {"run.safetensors", "run.json"},
}


def written(project):
    return {name for name in project.names() if name.startswith((".run.", "run."))}


@pytest.mark.parametrize("kind", FILES)
def test_each_format_is_written_beside_the_run_and_checked(calibrated_project, kind):
    done = calibrated_project.run(*EXPORT, "--format", kind, "--json")
    report = json.loads(done.out)
    assert (done.code, written(calibrated_project)) == (0, FILES[kind])
    assert report["size_bytes"] == (calibrated_project.path / f"run.{kind}").stat().st_size
    assert (report["num_weights"], report["num_activations"]) == (2, 5)
    metrics = report["check"]["metrics"]
    assert metrics.get("exported", metrics["fake-quant"]) == metrics["fake-quant"]


def test_the_config_decides_the_format_without_a_flag(calibrated_project):
    assert calibrated_project.run(*EXPORT, "--no-check").code == 0
    assert written(calibrated_project) == {"run.onnx"}


def test_the_onnx_file_says_where_it_comes_from(calibrated_project):
    calibrated_project.run(*EXPORT, "--no-check")
    model = onnx.load(calibrated_project.path / "run.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    manifest = json.loads((calibrated_project.path / "run/manifest.json").read_text())
    assert facts["quantcfg.config_sha256"] == manifest["config"]
    assert facts["quantcfg.weights_sha256"] == manifest["weights"]
    assert facts["quantcfg.version.torch"] == torch.__version__


def test_the_table_has_the_tensors_that_it_names(calibrated_project):
    calibrated_project.run(*EXPORT, "--format", "safetensors")
    tensors = safetensors.torch.load_file(calibrated_project.path / "run.safetensors")
    table = json.loads((calibrated_project.path / "run.json").read_text())
    for row in table["quantizers"]:
        name = row["name"]
        assert tensors[f"{name}.scale"].double().tolist() == row["scale"]
        assert tensors[f"{name}.zero_point"].tolist() == row["zero_point"]
        if row["kind"] == "weight":
            integers = tensors[f"{name}.integers"]
            assert integers.dtype is torch.int8
            assert list(integers.shape) == row["shape"]
    assert {"conv.bias", "classifier.bias"} <= set(tensors)
    assert "conv.weight" not in tensors
    assert table["ops"][0]["name"] == "conv"


def test_a_loaded_program_needs_nothing_of_ours(calibrated_project):
    calibrated_project.run(*EXPORT, "--format", "pt2")
    program = torch.export.load(calibrated_project.path / "run.pt2")
    assert not [n for n in program.graph.nodes if "quantcfg" in str(n.target)]
    assert program.example_inputs is None
    assert program.module()(torch.rand(3, 1, 4, 4)).shape == (3, 3)


def test_an_existing_file_is_replaced_only_by_force(calibrated_project):
    (calibrated_project.path / "run.onnx").write_text("mine")
    done = calibrated_project.run(*EXPORT, "--no-check")
    assert done.code == 2
    assert done.err == (
        "error: 'run.onnx' exists already\nhint: --force replaces it; -o names another file\n"
    )
    assert (calibrated_project.path / "run.onnx").read_text() == "mine"
    assert calibrated_project.run(*EXPORT, "--no-check", "--force").code == 0
    onnx.checker.check_model(onnx.load(calibrated_project.path / "run.onnx"))


def test_a_link_a_directory_and_a_missing_directory_are_refused(calibrated_project):
    path = calibrated_project.path
    (path / "victim").write_text("mine")
    (path / "link.onnx").symlink_to(path / "victim")
    (path / "folder").mkdir()
    for name, text in {
        "link.onnx": "'link.onnx' is a link",
        "folder": "'folder' is no file",
        "nowhere/a.onnx": "there is no directory 'nowhere'",
    }.items():
        done = calibrated_project.run(*EXPORT, "--no-check", "--force", "-o", name)
        assert (done.code, done.err.splitlines()[0]) == (2, f"error: {text}")
    assert (path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "checkpoints/model.onnx"])
def test_nothing_is_written_into_the_run(calibrated_project, name):
    path = calibrated_project.path
    (path / "elsewhere").symlink_to(path / "run")
    before = {file: file.read_bytes() for file in (path / "run").rglob("*") if file.is_file()}
    for place in ("run", "elsewhere", "run/../run"):
        done = calibrated_project.run(*EXPORT, "--no-check", "--force", "-o", f"{place}/{name}")
        said = f"error: '{place}/{name}' is inside of the run directory, which is left as it is"
        assert (done.code, done.err.splitlines()[0]) == (2, said)
    assert {file: file.read_bytes() for file in (path / "run").rglob("*") if file.is_file()} == before


def test_a_name_that_is_no_text_or_that_of_the_table_is_refused(calibrated_project):
    done = calibrated_project.run(*EXPORT, "-o", os.fsdecode(b"\xff.onnx"))
    assert (done.code, done.err.splitlines()[0]) == (2, r"error: '\udcff.onnx' is no name in UTF-8")
    done = calibrated_project.run(*EXPORT, "--format", "safetensors", "-o", "q.json")
    assert done.code == 2
    assert done.err.startswith("error: 'q.json' is the name of the table that lies beside the file\n")


def test_a_name_that_the_system_refuses_is_an_error(calibrated_project):
    done = calibrated_project.run(*EXPORT, "--no-check", "-o", "a" * 300)
    assert (done.code, written(calibrated_project)) == (6, set())
    assert "File name too long" in done.err


def test_a_failed_check_writes_nothing(calibrated_project, monkeypatch):
    monkeypatch.setattr("quantcfg.export.check.bound", lambda error, share: -1.0)
    done = calibrated_project.run(*EXPORT)
    assert (done.code, written(calibrated_project)) == (6, set())
    assert "computes something else than the fake-quant model" in done.err


def test_a_failed_write_leaves_nothing(calibrated_project, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    done = calibrated_project.run(*EXPORT, "--no-check")
    assert (done.code, written(calibrated_project)) == (6, set())
    assert done.err == "error: cannot write 'run.onnx': No space left on device\n"


def test_a_damaged_run_is_refused(calibrated_project):
    (checkpoint,) = (calibrated_project.path / "run/checkpoints").glob("*/model.safetensors")
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    done = calibrated_project.run(*EXPORT)
    assert (done.code, written(calibrated_project)) == (6, set())
    assert done.err.startswith("error: 'run' does not match its manifest: ")


def test_a_run_of_another_version_is_refused(calibrated_project):
    manifest = calibrated_project.path / "run/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 9'))
    done = calibrated_project.run(*EXPORT)
    assert (done.code, written(calibrated_project)) == (6, set())
    assert "has format version 9; this quantcfg reads 1" in done.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("nn.Linear(4, 3)", "nn.Linear(4, 5)", "size mismatch"), ("self.conv", "self.first", "more\n")],
)
def test_a_run_of_another_model_is_refused(calibrated_project, old, new, said):
    text = (calibrated_project.path / "model.py").read_text()
    (calibrated_project.path / "other.py").write_text(text.replace(old, new))
    done = calibrated_project.run("export", "other.py", "run", "-q")
    assert (done.code, written(calibrated_project)) == (6, set())
    assert "error: 'run' was made with another model: " in done.err
    assert said in done.err
    assert max(map(len, done.err.splitlines())) < 200


def test_what_is_no_run_is_refused(calibrated_project):
    done = calibrated_project.run("export", "model.py", "elsewhere", "-q")
    hint = "hint: name what quantcfg calib or quantcfg qat wrote, such as runs/config-calib\n"
    assert (done.code, done.err) == (2, f"error: 'elsewhere' is not a run directory\n{hint}")


@pytest.mark.parametrize(
    ("missing", "arguments", "text"),
    [
        ("onnxscript", (), "--format onnx needs onnxscript"),
        ("onnxruntime", ("--check",), "--check needs onnxruntime"),
    ],
)
def test_a_missing_package_is_named(calibrated_project, monkeypatch, missing, arguments, text):
    from quantcfg.export import export

    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else found(name))
    done = calibrated_project.run(*EXPORT, *arguments)
    assert (done.code, done.err) == (2, f"error: {text}\nhint: pip install 'quantcfg[export]'\n")


def test_the_text_report_compares_all_four(calibrated_project):
    done = calibrated_project.run(*EXPORT)
    lines = [line.split()[0] for line in done.out.splitlines()]
    assert lines[1:5] == ["float", "fake-quant", "integer", "exported"]
    ends = [line for line in lines[lines.index("qparams") :] if line != "differ"]
    assert ends == ["qparams", "integers", "reference", "latency", "size", "quantizers", "file"]


UNUSUAL = """
def forward(model, batch):
    return model(x=batch[0])["logits"]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, scale=1.0):
        return {"logits": self.net(x) * scale, "unused": None}


def build_model():
    torch.manual_seed(0)
    return Named()
"""


def test_a_forward_of_the_users_own_with_names_and_a_dict(project):
    project.model(UNUSUAL)
    project.write("config.yaml", "version: 1\nqconfig: {global: w8a8}\ncalib: {batches: 2}\n")
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    done = project.run(*EXPORT)
    assert (done.code, done.err) == (0, "")
    model = onnx.load(project.path / "run.onnx")
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["logits"]


WITH_LABELS = """
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, tokens, labels=None):
        logits = self.head(self.embedding(tokens).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def build_model():
    torch.manual_seed(0)
    return Tagger()


def batches():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(9, (4, length), generator=generator) for length in (5, 7, 5)]
    return [{"tokens": tokens, "labels": tokens[:, 0] % 3} for tokens in rows]


calib_data = eval_data = batches
"""


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_model_that_takes_its_targets_by_name_is_compared_with_its_file(project, kind):
    project.model(WITH_LABELS)
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    done = project.run(*EXPORT, "--format", kind, "--json")
    assert (done.code, done.err) == (0, "")
    metrics = json.loads(done.out)["check"]["metrics"]
    assert metrics["exported"] == metrics["fake-quant"]


ONE_BY_ONE = """
class OneByOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return torch.stack([self.net(row[None])[0] for row in x])


def build_model():
    torch.manual_seed(0)
    return OneByOne()
"""


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_model_that_fixes_its_batch_is_compared_on_batches_of_that_size(project, kind):
    project.model(ONE_BY_ONE)
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    done = project.run("export", "model.py", "run", "--json", "--format", kind)
    report = json.loads(done.out)
    assert (done.code, report["dynamic_axes"]) == (0, [])
    other = "input 0 of the file has 16 along axis 0, and a batch has 12"
    assert "note: fixed in the file, because the model computes with its length: input 0 axis 0" in done.err
    assert f"note: batch 2 of eval_data() was not compared: {other}" in done.err
    assert f"note: no metric of the exported file: {other}" in done.err
    assert list(report["check"]["metrics"]) == ["float", "fake-quant", "integer"]


HALVES = """
class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        first, second = x.chunk(2, 0)
        return torch.cat([self.net(first), self.net(second)])


def build_model():
    torch.manual_seed(0)
    return Halves()
"""


def test_what_the_exporter_can_only_express_with_fixed_axes_is_written_so(project):
    project.model(HALVES)
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    done = project.run("export", "model.py", "run", "--no-check")
    assert (done.code, written(project)) == (0, {"run.onnx"})
    assert "note: every axis is fixed in the file: with one that varies, the ONNX exporter cannot" in done.err
    (value,) = onnx.load(project.path / "run.onnx").graph.input
    assert [length.dim_value for length in value.type.tensor_type.shape.dim] == [16, 1, 4, 4]


LOOKS_INSIDE = """
def evaluate(model, data):
    return {"bias": float(model.classifier.bias.sum())}
"""


def test_an_evaluation_that_looks_inside_the_model_is_noted(project):
    project.model(LOOKS_INSIDE)
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    done = project.run("export", "model.py", "run", "--json")
    assert done.code == 0
    assert list(json.loads(done.out)["check"]["metrics"]) == ["float", "fake-quant", "integer"]
    assert "note: no metric of the exported file: evaluate() raised AttributeError" in done.err


def test_a_bug_of_the_reference_evaluator_is_noted(calibrated_project, monkeypatch):
    def run(self, names, feeds):
        raise ValueError("could not broadcast")  # what a ConvTranspose with groups ends in

    monkeypatch.setattr("onnx.reference.ReferenceEvaluator.run", run)
    done = calibrated_project.run("export", "model.py", "run", "--check")
    assert done.code == 0
    assert "ONNX's reference evaluator was not run: RuntimeError: could not broadcast" in done.err


def test_what_one_file_cannot_hold_lies_beside_it(calibrated_project, monkeypatch):
    monkeypatch.setattr("quantcfg.export.external.MAX_BYTES", 100)
    monkeypatch.setattr("quantcfg.export.external._LEAST", 36)  # the convolution's integers
    done = calibrated_project.run(*EXPORT)
    assert (done.code, done.err) == (0, "")
    assert written(calibrated_project) == {"run.onnx", "run.data"}
    path = calibrated_project.path / "run.onnx"
    alone = onnx.load(path, load_external_data=False)
    entries = [entry for tensor in alone.graph.initializer for entry in tensor.external_data]
    places = {entry.value for entry in entries if entry.key == "location"}
    assert places == {"run.data"}
    onnx.checker.check_model(str(path), full_check=True)


def test_data_that_is_in_the_way_is_not_replaced(calibrated_project, monkeypatch):
    monkeypatch.setattr("quantcfg.export.external.MAX_BYTES", 100)
    (calibrated_project.path / "run.data").write_text("mine")
    done = calibrated_project.run(*EXPORT, "--no-check")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: 'run.data' exists already")
    assert written(calibrated_project) == {"run.data"}
    (calibrated_project.path / "run.data").unlink()
    (calibrated_project.path / "victim").write_text("mine")
    (calibrated_project.path / "run.data").symlink_to(calibrated_project.path / "victim")
    done = calibrated_project.run(*EXPORT, "--no-check", "--force")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: 'run.data' is a link")
    assert (calibrated_project.path / "victim").read_text() == "mine"


def test_no_name_is_that_of_what_the_check_writes_for_itself(calibrated_project):
    done = calibrated_project.run(*EXPORT, "-o", "watched.onnx")
    assert (done.code, done.err) == (0, "")
    assert len(onnx.load(calibrated_project.path / "watched.onnx").graph.output) == 1


def test_a_pair_of_files_appears_together_or_not_at_all(calibrated_project, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("run.safetensors"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    done = calibrated_project.run(*EXPORT, "--no-check", "--format", "safetensors")
    assert (done.code, written(calibrated_project)) == (6, set())


ALONE = """
import sys
sys.modules["quantcfg"] = None  # importing it fails
import torch
from safetensors.torch import load_file
print(tuple(torch.export.load("run.pt2").module()(torch.rand(3, 1, 4, 4)).shape))
tensors = load_file("run.safetensors")
print(tensors["conv.weight.integers"].dtype, tensors["conv.weight.scale"].dtype)
"""


def test_files_are_read_where_quantcfg_is_not_installed(calibrated_project):
    for kind in ("pt2", "safetensors"):
        assert calibrated_project.run(*EXPORT, "--format", kind, "--no-check").code == 0
    command = [sys.executable, "-W", "ignore", "-c", ALONE]
    done = subprocess.run(command, cwd=calibrated_project.path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(3, 3)", "torch.int8 torch.float32"]
