"""The commands that need no torch: exit codes, streams and formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantcfg.config.parameters import FAKE_QUANT_PARAMETERS, OBSERVER_PARAMETERS
from quantcfg.config.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
GOOD = "version: 1\nqconfig: {global: w8a8}\n"
BAD = "version: 1\nqconfig: {global: w8a9}\n"
WARNS = "version: 1\n"


@pytest.fixture
def quantcfg(tmp_path):
    for name, text in (("good.yaml", GOOD), ("bad.yaml", BAD), ("warns.yaml", WARNS)):
        (tmp_path / name).write_text(text)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "quantcfg", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["good.yaml"], 0),
        (["bad.yaml"], 1),
        (["good.yaml", "bad.yaml"], 1),
        (["nowhere.yaml"], 2),
        ([], 2),
        (["good.yaml", "--nonsense"], 2),
        (["warns.yaml"], 0),
        (["warns.yaml", "--strict"], 3),
        (["good.yaml", "--set", "qat.epochs=2"], 0),
        (["good.yaml", "--set", "qat.epoch=2"], 1),
    ],
)
def test_exit_codes_of_validate(arguments, code, quantcfg):
    done = quantcfg("validate", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["validate", "good.yaml"], ["presets"]], ids=str)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error_of_ours(quantcfg, tmp_path, arguments, unbuffered):
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "quantcfg", *arguments],
        cwd=tmp_path,
        stdout=writes,
        stderr=subprocess.PIPE,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_is_fine_goes_to_stdout_and_findings_to_stderr(quantcfg):
    fine, faulty = quantcfg("validate", "good.yaml"), quantcfg("validate", "bad.yaml")
    assert (fine.stdout, fine.stderr) == ("good.yaml: ok\n", "")
    assert faulty.stdout == ""
    assert faulty.stderr == (
        "error[QC120]: unknown qconfig `w8a9`\n"
        " --> bad.yaml:2:19\n"
        "  |\n"
        "2 | qconfig: {global: w8a9}\n"
        "  |                   ^^^^ did you mean `w8a8`?\n"
        "  |\n"
        "  = help: write `w8a8`\n"
        "\n"
        "bad.yaml: 1 error\n"
    )


@pytest.mark.parametrize("fmt", ["json", "sarif"])
def test_findings_for_machines_go_to_stdout(fmt, quantcfg):
    done = quantcfg("validate", "bad.yaml", "good.yaml", "--format", fmt)
    assert (done.returncode, done.stderr) == (1, "")
    assert "QC120" in json.dumps(json.loads(done.stdout))


def test_findings_for_github_go_to_stdout(quantcfg):
    done = quantcfg("validate", "bad.yaml", "--format", "github")
    assert done.stdout.startswith(
        "::error file=bad.yaml,line=2,col=19,endColumn=23,title=QC120::unknown qconfig"
    )


def test_schema_prints_the_file_of_the_repository(quantcfg):
    assert quantcfg("schema").stdout == (ROOT / "schemas" / "quantcfg.schema.json").read_text()


@pytest.mark.parametrize(
    ("command", "names"),
    [("presets", PRESETS), ("observers", OBSERVER_PARAMETERS), ("fake-quants", FAKE_QUANT_PARAMETERS)],
)
def test_the_catalogues_list_and_show_everything(command, names, quantcfg):
    listed = json.loads(quantcfg(command, "--format", "json").stdout)
    assert [entry["name"] for entry in listed] == list(names)
    assert all(entry["doc"] for entry in listed)
    text = quantcfg(command).stdout
    assert all(name in text for name in names)
    assert max(map(len, text.split("\n"))) <= 80
    last = quantcfg(command, list(names)[-1])
    assert (last.returncode, last.stdout.split("\n")[0]) == (0, list(names)[-1])


def test_an_unknown_name_is_a_usage_error_with_a_guess(quantcfg):
    done = quantcfg("observers", "percentil")
    assert done.returncode == 2
    assert done.stderr == "error: there is no observer 'percentil'\nhint: did you mean percentile?\n"


def test_torch_is_not_imported(quantcfg, tmp_path):
    code = (
        "import sys\nfrom quantcfg.cli.main import main\n"
        "lines = ['validate', 'good.yaml'], ['schema'], ['presets'], ['observers', 'kl'], ['--help']\n"
        "codes = [int(main(line)) for line in lines]\n"
        "print(codes, 'torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == "[0, 0, 0, 0, 0] False False\n"
