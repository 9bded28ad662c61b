"""Where a run came from: git state, data, and what differs between two runs."""

import json
import shutil
import subprocess

import pytest

from quantcfg.stages.provenance import git_state
from tests.cli.conftest import project  # noqa: F401  a fixture
from tests.cli.stopping import STOPPABLE, stopped

CALIB = ("calib", "model.py", "config.yaml")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *arguments):
    names = ("-c", "user.name=n", "-c", "user.email=e@example.com")
    done = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "model.py").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


@needs_git
def test_the_commit_is_named_and_whether_the_tree_differs_from_it(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state(repository / "model.py") == {"commit": commit, "dirty": False}
    (repository / "other.txt").write_text("untracked")
    assert git_state(repository / "model.py") == {"commit": commit, "dirty": False}
    (repository / "model.py").write_text("two")
    assert git_state(repository / "model.py") == {"commit": commit, "dirty": True}


@needs_git
def test_nothing_that_a_repository_configures_is_run(repository):
    (repository / "hook").write_text("#!/bin/sh\ntouch ran\n")
    (repository / "hook").chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(repository / "hook"))
    assert git_state(repository / "model.py") is not None
    assert not (repository / "ran").exists()


def test_without_a_repository_or_git_there_is_no_state(tmp_path, monkeypatch):
    assert git_state(tmp_path / "model.py") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path / "model.py") is None


def manifest(project, run):  # noqa: F811
    return json.loads((project.path / run / "manifest.json").read_text())


def test_the_first_batches_are_recorded_by_their_content(project):  # noqa: F811
    for run in ("one", "same"):
        assert project.run(*CALIB, "-o", run, "-q").code == 0
    assert manifest(project, "one")["data"] == manifest(project, "same")["data"]
    assert set(manifest(project, "one")["data"]) == {"calib_data", "eval_data"}
    project.model("def calib_data():\n    return DataLoader(dataset(7), batch_size=8)\n")
    assert project.run(*CALIB, "-o", "other", "-q").code == 0
    one, other = manifest(project, "one")["data"], manifest(project, "other")["data"]
    assert one["calib_data"] != other["calib_data"]
    assert one["eval_data"] == other["eval_data"]


def test_a_resumed_run_records_the_data_of_a_whole_one(project, monkeypatch):  # noqa: F811
    project.model(STOPPABLE)
    qat = ("qat", "model.py", "config.yaml", "-q", "-o")
    assert project.run(*qat, "whole").code == 0
    assert stopped(project, monkeypatch, "loss:9:2", *qat, "run").code == 130
    assert project.run(*qat, "run", "--resume").code == 0
    assert manifest(project, "run")["data"] == manifest(project, "whole")["data"]
    assert set(manifest(project, "run")["data"]) == {"calib_data", "eval_data", "train_data"}


def test_diff_says_what_two_runs_of_one_config_differ_in(project):  # noqa: F811
    assert project.run(*CALIB, "-o", "one", "-q").code == 0
    project.model("""
        def build_model():
            torch.manual_seed(1)
            return Net()
        def calib_data():
            return DataLoader(dataset(7), batch_size=8)
    """)
    assert project.run(*CALIB, "-o", "other", "-q", "--seed", "4").code == 0
    done = project.run("diff", "one", "other", "--format", "json")
    changes = {change["what"]: change for change in json.loads(done.out)["changes"]}
    assert done.code == 4
    assert set(changes) >= {"seed", "weights", "model_file", "data.calib_data", "calibrated model"}
    assert (changes["seed"]["before"], changes["seed"]["after"]) == ("0", "4")
    assert not {what for what in changes if what.startswith(("versions", "data.eval", "device"))}


def test_diff_of_equal_runs_finds_nothing_and_of_damaged_ones_the_damage(project):  # noqa: F811
    for run in ("one", "same"):
        assert project.run(*CALIB, "-o", run, "-q").code == 0
    done = project.run("diff", "one", "same")
    assert (done.code, done.out) == (0, "one and same mean the same\n")
    (project.path / "same/result.json").write_text("{}")
    done = project.run("diff", "one", "same")
    assert done.code == 6
    assert "does not match its manifest: 'result.json'" in done.err
