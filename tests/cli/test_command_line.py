"""The command line itself: its commands, its help, its exit codes, and what it does not import."""

import os
import subprocess
import sys

import pytest

COMMANDS = ["validate", "plan", "calib", "qat", "eval", "presets", "observers", "fake-quants", "schema"]


def test_the_commands_are_listed_in_reading_order(project):
    done = project.run("--help")
    listed = [line.split()[0] for line in done.out.partition("Commands:\n")[2].splitlines() if line.strip()]

    assert done.code == 0
    assert [name for name in listed if name in COMMANDS] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(project, command):
    done = project.run(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: quantcfg {command} ")


def test_no_command_shows_the_help(project):
    done = project.run()
    assert "Commands:" in done.out + done.err


@pytest.mark.parametrize("command", [["--help"], ["validate", "config.yaml"], ["presets"]])
def test_of_several_ranks_the_first_alone_prints(project, command):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    printed = []
    for rank in "01":
        done = subprocess.run(
            [sys.executable, "-m", "quantcfg", *command],
            cwd=project.path,
            env={**os.environ, **place, "RANK": rank},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        printed.append(bool(done.stdout))
    assert printed == [True, False]


def test_python_m_quantcfg_is_quantcfg_and_its_help_needs_no_torch():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['quantcfg', 'calib', '--help']\n"
        "try:\n"
        "    runpy.run_module('quantcfg', run_name='__main__')\n"
        "except SystemExit as exit_:\n"
        "    assert exit_.code == 0, exit_.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: quantcfg calib ")


def test_colour_is_for_terminals_that_want_it(project, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = project.run("calib", "missing.py", "config.yaml").err
    monkeypatch.setenv("NO_COLOR", "1")
    plain = project.run("calib", "missing.py", "config.yaml").err

    assert "\x1b[1;31merror:" in coloured
    assert "\x1b[1;31m" not in plain
    assert "\x1b[31m" not in plain


def test_verbose_shows_the_log(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "-v")
    assert "begun: quantcfg calib model.py config.yaml -o run -v" in done.err
    assert "saved checkpoint 4" in done.err


def test_the_default_directory_is_named_for_config_and_stage(project):
    assert (
        project.run("calib", "model.py", "config.yaml", "-q").out.splitlines()[-1]
        == "run       runs/config-calib"
    )
    assert (project.path / "runs/config-calib/manifest.json").exists()


def test_two_runs_in_one_directory_are_refused(project):
    from quantcfg.runs.directory import open_run

    with open_run(project.path / "run"):
        done = project.run("calib", "model.py", "config.yaml", "-o", "run", "-q")
    assert done.code == 2
    assert done.err.startswith("error: another run holds 'run' (process ")
