"""Files that belong together: published whole, or everything is as it was."""

import os

import pytest

from quantcfg.errors import RunError
from quantcfg.export.files import publish, staged

NAMES = ["a.data", "a.onnx"]


@pytest.fixture
def pair(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text("old")
    return tmp_path


def replace(folder):
    with staged(folder / "a.onnx") as aside:
        for name in NAMES:
            (aside / name).write_text("new")
        publish(aside, folder / "a.onnx", NAMES)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_pair_is_replaced(pair):
    replace(pair)
    assert content(pair) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("failing", range(4))
def test_a_refused_step_leaves_the_old_pair(pair, monkeypatch, failing):
    move, calls = os.replace, []

    def refuse(source, target):
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="No space left"):
        replace(pair)
    assert content(pair) == dict.fromkeys(NAMES, "old")


@pytest.mark.parametrize("killed", range(5))
def test_whoever_looks_meanwhile_never_sees_a_new_part_with_an_old_one(pair, monkeypatch, killed):
    move, seen = os.replace, []

    def watch(source, target):
        seen.append({name: (pair / name).read_text() for name in NAMES if (pair / name).exists()})
        move(source, target)

    monkeypatch.setattr(os, "replace", watch)
    replace(pair)
    seen.append(content(pair))
    assert "a.onnx" not in seen[killed] or len(set(seen[killed].values())) == 1


def test_what_a_killed_export_left_goes_with_the_next_one_of_its_name(pair):
    left, other = pair / ".a.onnx.tmp-00", pair / ".b.onnx.tmp-00"
    for folder in (left, other):
        folder.mkdir()
        (folder / "a.data").write_text("half")
    with staged(pair / "a.onnx") as aside:
        replace(pair)  # by another process, say, which leaves alone what is in use
        assert aside.exists()
    assert sorted(path.name for path in pair.iterdir()) == [other.name, *NAMES]
