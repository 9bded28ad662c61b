"""The compiled schema says what the models say, keeps in step with them, and is all that a check needs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ValidationError as CoreError

from quantcfg.config import compiled
from quantcfg.config.collect import Findings
from quantcfg.config.compile import compiled_text
from quantcfg.config.load import load_config
from quantcfg.config.nodes import plain
from quantcfg.config.parameters import PARAMETERS
from quantcfg.config.schema import File
from quantcfg.config.source import Stop, parse
from tests.config.mutation import mutants

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").iterdir())
VALUES = [None, True, 0, 1, -1, 7, 0.5, 1.5, 1e30, "", "qint8", "mse", "1", [], [1], {}, {"a": 1}]


def errors_of(validate, data):
    try:
        validate(data)
    except (ValidationError, CoreError) as error:
        found = error.errors(include_url=False, include_input=False)
        return sorted(((item["type"], item["loc"], sorted(item.get("ctx", ()))) for item in found), key=str)
    return []


def trees():
    """Every tenth mutant of every shipped config that can be read at all."""
    for path in CONFIGS:
        texts = [path.read_text(), *(mutant.text for mutant in mutants(path.name, path.read_text()))]
        for text in texts[:: 10 if len(texts) > 200 else 3]:
            try:
                tree = parse(path.name, text.encode(), Findings())
            except Stop:
                continue
            yield plain(tree)


def test_it_was_made_from_what_is_there():
    assert compiled.FILE.read_text() == compiled_text(), "run `make schema`"


def test_it_reports_what_the_models_report():
    compared = broken = 0
    for data in trees():
        wanted = errors_of(File.model_validate, data)
        assert errors_of(compiled.file_validator().validate_python, data) == wanted
        compared, broken = compared + 1, broken + bool(wanted)
    assert compared > 300
    assert broken > 100


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_are_checked_as_the_models_check_them(kind):
    for name, field in PARAMETERS[kind].model_fields.items():
        model = TypeAdapter(field.rebuild_annotation(), config={"strict": True, "allow_inf_nan": False})
        for value in [*VALUES, float("inf"), "per_channel_affine", 4096, 10**6]:
            wanted = errors_of(model.validate_python, value)
            assert errors_of(compiled.parameter_validator(kind, name).validate_python, value) == wanted


def test_a_file_that_is_out_of_date_is_not_used(monkeypatch, tmp_path):
    old = tmp_path / "compiled.json"
    old.write_text(compiled.FILE.read_text().replace(compiled.fingerprint(), "0"))
    monkeypatch.setattr(compiled, "FILE", old)
    for text in (None, "{", "[]"):
        if text is not None:
            old.write_text(text)
        assert compiled.compiled.__wrapped__() == compiled.compiled()


def test_the_sources_are_those_of_every_model_and_function():
    modules = {cls.__module__ for cls in compiled_classes()} | {cls.__module__ for cls in PARAMETERS.values()}
    assert modules <= {f"quantcfg.config.{name.removesuffix('.py')}" for name in compiled.SOURCES}


def compiled_classes():
    File.model_rebuild()
    pending = [File.__pydantic_core_schema__]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if node.get("type") == "model":
                yield node["cls"]
            pending += node.values()
        elif isinstance(node, list | tuple):
            pending += node


def test_no_function_of_it_needs_the_models():
    calls = {
        line.split('"')[3] for line in compiled.FILE.read_text().split("\n") if f'"{compiled.CALL}"' in line
    }
    assert calls
    for call in calls:
        module = import_module(call.partition(":")[0])
        assert module.__name__ == "quantcfg.config.forms", f"{call}: move it to forms.py"


@pytest.mark.parametrize("path", [*CONFIGS, ROOT / "examples" / "typo.yaml"], ids=lambda path: path.name)
def test_a_check_needs_neither_the_models_nor_typer(path):
    code = (
        "import sys\nfrom quantcfg.cli.main import main\n"
        f"code = main(['validate', {str(path)!r}])\n"
        "names = ('pydantic', 'typer', 'rich', 'torch', 'numpy', 'importlib.metadata')\n"
        "assert not [name for name in names if name in sys.modules], sys.modules.keys()\n"
        "raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "Error" in done.stderr) == (int(path.name == "typo.yaml"), False), done.stderr


def test_the_values_of_a_checked_config_are_those_of_the_models():
    for path in CONFIGS:
        config = load_config(path)
        assert config.file == File.model_validate(config.flattened())
