"""The run directory: who may use it, and when it is whole."""

import pytest

from quantcfg.errors import RunError, UsageError
from quantcfg.runs.directory import RunDirectory, open_run
from quantcfg.runs.metrics import MetricsLog


def finished_run(path):
    with open_run(path) as run:
        run.begin(config_files={"input.yaml": "version: 1\n"}, plan={"rows": []})
        run.metrics.append(step=1, loss=0.5)
        run.finish(result={"metrics": {}}, timing={"total_s": 1.0}, facts={"seed": 0})
    return run


def test_a_finished_run_has_a_manifest_over_every_file(tmp_path):
    run = finished_run(tmp_path / "run")

    names = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file())
    assert names == [
        "config/input.yaml",
        "manifest.json",
        "metrics.jsonl",
        "plan.json",
        "result.json",
        "timing.json",
    ]
    assert sorted(run.verify().files) == [name for name in names if name != "manifest.json"]
    assert run.verify().facts == {"seed": 0}


def test_what_could_not_be_removed_is_no_part_of_a_finished_run(tmp_path):
    with open_run(tmp_path / "run.tmp-1") as run:
        run.begin(config_files={"input.yaml": "version: 1\n"}, plan={})
        run.metrics.append(step=1, loss=0.5)
        left = run.checkpoints / ".12.tmp-4f68a5bf77ee"
        left.mkdir(parents=True)
        (left / "state.json").write_text("{}")
        run.finish(result={}, timing={}, facts={})
    with open_run(run.path, resume=True):
        assert not left.exists()
    assert sorted(run.verify().files) == [
        "config/input.yaml", "metrics.jsonl", "plan.json", "result.json", "timing.json"
    ]  # fmt: skip


def test_a_changed_file_is_found(tmp_path):
    run = finished_run(tmp_path / "run")
    (run.path / "result.json").write_text("{}")
    with pytest.raises(RunError) as caught:
        run.verify()
    message = f"'{run.path}' does not match its manifest: 'result.json' has 2 bytes instead of 20"
    assert caught.value.message == message


def test_a_finished_run_is_not_overwritten_unless_forced(tmp_path):
    run = finished_run(tmp_path / "run")
    with pytest.raises(UsageError) as caught, open_run(run.path):
        pass
    assert caught.value.message == f"'{run.path}' already holds a finished run"
    assert caught.value.hint == "--force replaces it; -o names another directory"
    with pytest.raises(KeyError), open_run(run.path, force=True):
        raise KeyError  # failed before it began: the old run is still whole
    run.verify()
    with open_run(run.path, force=True):
        run.begin(config_files={}, plan={})
    assert not run.is_finished


def test_an_unfinished_run_is_resumed_or_replaced_on_request_only(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.begin(config_files={}, plan={})
        run.checkpoints.mkdir()
    with pytest.raises(UsageError) as caught, open_run(run.path):
        pass
    assert caught.value.message == f"'{run.path}' holds an unfinished run"
    with open_run(run.path, resume=True) as again:
        assert again.is_started


def test_a_run_that_failed_before_its_first_checkpoint_does_not_block_the_next(tmp_path):
    with pytest.raises(KeyError), open_run(tmp_path / "run") as run:
        run.begin(config_files={}, plan={})
        raise KeyError
    finished_run(tmp_path / "run").verify()


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError) as caught, open_run(tmp_path, force=force):
            pass
        message = f"'{tmp_path}' holds files that are no part of a run: 'thesis.tex'"
        assert caught.value.message == message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_wrote_nothing_leaves_no_directory(tmp_path):
    with pytest.raises(KeyError), open_run(tmp_path / "runs" / "new"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught, open_run(tmp_path / "file" / "run"):
        pass
    assert caught.value.message == f"cannot make '{tmp_path / 'file' / 'run'}': Not a directory"


def test_what_is_no_run_or_not_finished_is_told_apart(tmp_path):
    with pytest.raises(UsageError, match="is not a run directory"):
        RunDirectory(tmp_path).verify()
    with open_run(tmp_path / "run") as run:
        run.begin(config_files={}, plan={})
    with pytest.raises(UsageError) as caught:
        run.verify()
    assert caught.value.message == f"the run in '{run.path}' is not finished"


def test_metrics_start_with_the_lines_of_a_checkpoint(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.content() == b""
    for step in (1, 2):
        log.append(step=step, loss=1 / step, rate=float("inf"))
    saved = log.content()
    log.append(step=3, loss=0.75)
    log.rewind(2, saved)
    log.append(step=3, loss=0.25)
    assert log.path.read_text() == (
        '{"step": 1, "loss": 1.0, "rate": "inf"}\n'
        '{"step": 2, "loss": 0.5, "rate": "inf"}\n'
        '{"step": 3, "loss": 0.25}\n'
    )


def test_metrics_that_are_no_plain_file_are_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot read"):
        MetricsLog(tmp_path / "metrics.jsonl").content()


@pytest.mark.parametrize("name", ["checkpoints", "calib"])
@pytest.mark.parametrize(
    ("put", "what"),
    [
        (lambda path, aside: path.symlink_to(aside), "a link"),
        (lambda path, aside: path.symlink_to("nowhere"), "a link"),
        (lambda path, aside: path.write_text(""), "something else"),
    ],
)
def test_a_run_is_not_gone_on_with_behind_a_link(tmp_path, name, put, what):
    aside = tmp_path / "aside"
    (tmp_path / "run").mkdir()
    aside.mkdir()
    (aside / "kept").write_text("")
    put(tmp_path / "run" / name, aside)
    with pytest.raises(UsageError) as caught, open_run(tmp_path / "run", resume=True):
        pass
    assert (caught.value.message, caught.value.hint) == (
        f"'{tmp_path}/run/{name}' has to be a directory and is {what}",
        "put back the directory that the run had there; --force starts again",
    )
    with open_run(tmp_path / "run", force=True) as run:
        run.begin(config_files={}, plan={})
    assert not (run.path / name).exists()
    assert (aside / "kept").exists()


def test_a_run_directory_may_be_given_by_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert finished_run(tmp_path / "run").verify() == RunDirectory(tmp_path / "disk").verify()


def test_the_config_of_a_resumed_run_is_that_of_its_command_alone(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.begin(config_files={"input.yaml": "a", "input-2.yaml": "b"}, plan={})
    with open_run(run.path, resume=True) as run:
        run.begin(config_files={"input.yaml": "c"}, plan={}, anew=False)
    assert [(path.name, path.read_text()) for path in (run.path / "config").iterdir()] == [
        ("input.yaml", "c")
    ]
