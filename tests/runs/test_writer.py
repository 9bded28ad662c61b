"""The writer: whole files under final names, nothing else."""

import errno
import json
import os

import pytest

from quantcfg.errors import RunError
from quantcfg.runs import writer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    writer.write_json(path, {"b": 1})
    writer.write_json(path, {"b": [1.5, None, "é"]})

    assert path.read_text() == '{\n  "b": [\n    1.5,\n    null,\n    "é"\n  ]\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_json_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []


def test_the_order_is_write_fsync_rename_fsync_of_the_directory(tmp_path, monkeypatch):
    calls = []

    def trace(name):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, **kwargs: (calls.append(name), real(*args, **kwargs))[1])

    for name in ("write", "fsync", "replace"):
        trace(name)
    writer.write_bytes(tmp_path / "a", b"data")

    assert calls == ["write", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, failing):
    path = tmp_path / "a"
    writer.write_bytes(path, b"old")

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(RunError) as caught:
        writer.write_bytes(path, b"new")

    assert caught.value.message == f"cannot write '{path}': No space left on device"
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["a"])


def test_a_file_in_a_new_directory_is_named_as_it_would_be_called(tmp_path, monkeypatch):
    def fail(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(RunError) as caught, writer.new_directory(tmp_path / "config") as folder:
        writer.write_text(folder / "input.yaml", "version: 1")

    assert caught.value.message == f"cannot write '{tmp_path}/config/input.yaml': No space left on device"
    assert names(tmp_path) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data)[:3]))
    writer.write_bytes(tmp_path / "a", b"0123456789")

    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_symlink_under_the_final_name_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "a").symlink_to(tmp_path / "outside")
    writer.write_text(tmp_path / "a", "new")

    assert (tmp_path / "outside").read_text() == "untouched"
    assert not (tmp_path / "a").is_symlink()


def test_lines_are_not_appended_through_a_symlink(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match="cannot write"):
        writer.append_line(tmp_path / "a", "line")
    assert not (tmp_path / "outside").exists()


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(RunError, match="No such device or address"):
        writer.append_line(tmp_path / "log.txt", "no")


def test_a_directory_gets_its_name_only_when_the_block_ends_well(tmp_path):
    with pytest.raises(KeyError), writer.new_directory(tmp_path / "d") as folder:
        writer.write_text(folder / "a", "1")
        assert not (tmp_path / "d").exists()
        raise KeyError
    assert names(tmp_path) == []

    with writer.new_directory(tmp_path / "d") as folder:
        writer.write_text(folder / "a", "2")
    with writer.new_directory(tmp_path / "d") as folder:
        writer.write_text(folder / "b", "3")
    assert (names(tmp_path), names(tmp_path / "d")) == (["d"], ["b"])


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "keep.tmp-1").write_text("the user's own")
    writer.temporary_name(tmp_path / "a").write_text("torn")
    writer.temporary_name(tmp_path / "d").mkdir()
    (tmp_path / "sub").mkdir()
    writer.temporary_name(tmp_path / "sub" / "b").write_text("torn")

    assert len(writer.remove_leftovers(tmp_path)) == 3
    assert names(tmp_path) == ["keep.tmp-1", "sub"]
    assert names(tmp_path / "sub") == []


def test_json_text_is_a_function_of_the_value():
    assert json.loads(writer.to_json({"x": 1e-7})) == {"x": 1e-7}
    assert writer.to_json({"x": 1e-7}) == writer.to_json({"x": 1e-7})
