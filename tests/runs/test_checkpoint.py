"""Checkpoints: what is read is what was written, and damage is found before anything is used."""

import errno
import json
import os
import shutil

import pytest
import torch
from torch import nn

from quantcfg.errors import RunError
from quantcfg.runs.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    drop_newer_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    snapshot,
    write_snapshot,
)
from quantcfg.runs.manifest import FORMAT_VERSION
from quantcfg.runs.writer import to_json

FILES = ["model.safetensors", "training.safetensors", "state.json", "metrics.jsonl", "manifest.json"]


def save_checkpoint(folder, checkpoint):
    return write_snapshot(folder, snapshot(checkpoint))


def a_checkpoint(step):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "betas": (0.9, 0.99),
        "best": float("inf"),
        "at": {3: [1, None]},
    }
    return Checkpoint(step, model.state_dict(), state, {"seed": 3}, b'{"step": 1}\n')


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_read_equals_what_was_written(tmp_path):
    saved = a_checkpoint(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))

    assert (loaded.step, loaded.facts, loaded.metrics) == (7, {"seed": 3}, b'{"step": 1}\n')
    torch.testing.assert_close(loaded.model, dict(saved.model), rtol=0, atol=0)
    assert {k: loaded.state[k] for k in ("betas", "best", "at")} == {
        k: saved.state[k] for k in ("betas", "best", "at")
    }
    torch.testing.assert_close(loaded.state["optimizer"], saved.state["optimizer"], rtol=0, atol=0)


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path):
    first = save_checkpoint(tmp_path / "a", a_checkpoint(7))
    second = save_checkpoint(tmp_path / "b", load_checkpoint(first))

    assert files(first) == files(second)


def test_tied_and_strided_tensors_are_saved_each_on_its_own(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    saved = Checkpoint(1, {"a": weight, "b": weight, "c": weight.t()}, {})
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))

    torch.testing.assert_close(loaded.model, {"a": weight, "b": weight, "c": weight.t()}, rtol=0, atol=0)


def test_a_value_without_a_place_in_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"'scheduler.fn' is of type function, which a checkpoint cannot hold"):
        save_checkpoint(tmp_path, Checkpoint(1, {}, {"scheduler": {"fn": lambda: None}}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_truncation_and_loss_is_found(tmp_path, name):
    path = save_checkpoint(tmp_path, a_checkpoint(3)) / name
    whole = path.read_bytes()
    for offset in range(0, len(whole), max(1, len(whole) // 48)):
        for damaged in (whole[:offset], whole[:offset] + bytes([whole[offset] ^ 0x20]) + whole[offset + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(RunError):
                load_checkpoint(path.parent)
    path.unlink()
    with pytest.raises(RunError):
        load_checkpoint(path.parent)


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_directory(path):
    path.unlink()
    path.mkdir()


def a_link(path):
    path.rename(path.with_suffix(".kept"))
    path.symlink_to(path.with_suffix(".kept"))


def a_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("put", [a_pipe, a_directory, a_link, a_device])
def test_what_is_no_plain_file_is_not_read(tmp_path, name, put):
    save_checkpoint(tmp_path, a_checkpoint(1))
    put(save_checkpoint(tmp_path, a_checkpoint(2)) / name)
    found, skipped = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, len(skipped)) == (1, 1)


def test_a_checkpoint_behind_a_link_is_not_read(tmp_path):
    path = save_checkpoint(tmp_path, a_checkpoint(1))
    path.rename(tmp_path / "aside")
    path.symlink_to("aside")
    with pytest.raises(RunError) as caught:
        load_checkpoint(path)
    assert caught.value.message == f"'{path}' is a link: a checkpoint lies in the directory of its run"


@pytest.mark.parametrize(
    "put", [lambda path: path.write_text(""), os.mkfifo, lambda path: path.symlink_to("x")]
)
def test_what_lies_in_the_place_of_a_checkpoint_is_named_and_replaced(tmp_path, put):
    save_checkpoint(tmp_path, a_checkpoint(1))
    put(tmp_path / "2")
    found, skipped = newest_checkpoint(tmp_path)
    assert (found and found.step, len(skipped)) == (1, 1)
    assert load_checkpoint(save_checkpoint(tmp_path, a_checkpoint(2))).step == 2
    drop_newer_checkpoints(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["", "1/manifest.json"])
def test_what_cannot_be_read_is_named(tmp_path, monkeypatch, name):
    path = save_checkpoint(tmp_path, a_checkpoint(1)).parent / name

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(RunError) as caught:
        checkpoint_paths(tmp_path) if not name else load_checkpoint(path.parent)
    assert caught.value.message == f"cannot read '{path}': Permission denied"


def test_a_manifest_without_evidence_is_damaged(tmp_path):
    path = save_checkpoint(tmp_path, a_checkpoint(1)) / "manifest.json"
    whole = json.loads(path.read_text())
    for forged in (whole | {"files": {}}, whole | {"step": 2}, {}, [], None, 1, whole | {"sha256": "0" * 64}):
        path.write_text(to_json(forged))
        with pytest.raises(RunError, match="is damaged"):
            load_checkpoint(path.parent)
    for nested in ("[", '{"a":'):
        path.write_text(nested * 100_000)
        with pytest.raises(RunError, match="is damaged"):
            load_checkpoint(path.parent)


def test_files_swapped_between_steps_are_found(tmp_path):
    old, new = save_checkpoint(tmp_path, a_checkpoint(1)), save_checkpoint(tmp_path, a_checkpoint(2))
    shutil.copy(old / "state.json", new / "state.json")
    with pytest.raises(RunError, match=r"'state.json' has"):
        load_checkpoint(new)
    shutil.rmtree(new)
    old.rename(new)
    with pytest.raises(RunError, match="it was moved or renamed"):
        load_checkpoint(new)


def test_a_manifest_of_another_format_is_named(tmp_path):
    path = save_checkpoint(tmp_path, a_checkpoint(1))
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(RunError) as caught:
        load_checkpoint(path)
    assert caught.value.message == f"'{manifest}' has format version 9; this quantcfg reads {FORMAT_VERSION}"


def test_the_newest_valid_one_is_taken_and_the_damaged_one_named(tmp_path):
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, a_checkpoint(step))
    (tmp_path / "10" / "state.json").unlink()
    found, skipped = newest_checkpoint(tmp_path)

    assert found is not None
    assert found.step == 9
    assert skipped == (f"'{tmp_path / '10'}' does not match its manifest: 'state.json' is missing",)


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert newest_checkpoint(tmp_path / "none") == (None, ())


def test_a_step_is_saved_again_and_old_ones_are_pruned(tmp_path):
    for step in (1, 2, 10, 10):
        save_checkpoint(tmp_path, a_checkpoint(step))
    prune_checkpoints(tmp_path, keep=2)

    assert [path.name for path in checkpoint_paths(tmp_path)] == ["2", "10"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "2"]
