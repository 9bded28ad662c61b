"""The lock: one living owner, and none that outlives its process."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from quantcfg.errors import UsageError
from quantcfg.runs import lock
from quantcfg.runs.lock import NAME, locked


def start_owner(folder, *, before=""):
    """A process that holds the lock of ``folder`` and says so; it ends with its stdin."""
    code = f"""
        import os, sys
        from pathlib import Path
        from quantcfg.runs.lock import locked
        with locked(Path(sys.argv[1])):
            print("held", flush=True)
            {before}
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_living_owner_is_named_and_the_lock_refused(tmp_path):
    with start_owner(tmp_path) as owner:
        try:
            with pytest.raises(UsageError) as caught, locked(tmp_path):
                pass
        finally:
            owner.kill()
    assert caught.value.message.startswith(f"another run holds '{tmp_path}' (process {owner.pid} on ")


def test_the_lock_of_a_killed_owner_is_free(tmp_path):
    with start_owner(tmp_path) as owner:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert (tmp_path / NAME).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / NAME).exists()


def test_the_lock_is_reclaimed_from_the_orphan_of_a_killed_owner(tmp_path):
    with start_owner(tmp_path, before="os.fork() or print(os.getpid(), flush=True)") as owner:
        orphan = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        try:
            with locked(tmp_path):
                assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_one_process_cannot_hold_a_lock_twice(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="another run holds"), locked(tmp_path):
        pass


def test_a_lock_is_not_taken_through_a_symlink(tmp_path):
    (tmp_path / NAME).symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="cannot write in"), locked(tmp_path):
        pass
    assert not (tmp_path / "outside").exists()


def dead_owner(folder, **changed):
    """The lock that a killed process left, with a number that is given again since."""
    owner = {"pid": os.getpid(), "start": "1", "host": socket.gethostname()} | changed
    (folder / NAME).write_text(json.dumps(owner))


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[1]", '{"pid": 1}', '{"pid": "x", "start": 1, "host": null}', "\0" * 9000]
)
def test_whatever_a_lock_holds_that_nobody_holds_it_is_free(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path), pytest.raises(UsageError), locked(tmp_path):
        pass


@pytest.mark.parametrize("pid", ["x", None, 0, -1, 1 << 40])
def test_a_held_lock_with_an_owner_that_cannot_be_is_refused(tmp_path, pid):
    with locked(tmp_path):
        dead_owner(tmp_path, pid=pid)
        with pytest.raises(UsageError, match=r"^another run holds '[^(]*'$"), locked(tmp_path):
            pass


def test_an_owner_on_another_machine_may_live(tmp_path):
    with locked(tmp_path):
        dead_owner(tmp_path, host="elsewhere")
        with pytest.raises(UsageError, match="on elsewhere"), locked(tmp_path):
            pass


def test_a_lock_is_signed_before_others_may_judge_it(tmp_path, monkeypatch):
    """The file still names the owner before, who is dead: a lock that is reclaimed now has two owners."""
    sign, looked = lock._sign, []

    def look(handle, path):
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        looked.append(path)
        sign(handle, path)

    monkeypatch.setattr(lock, "_sign", look)
    dead_owner(tmp_path)
    with locked(tmp_path):
        assert looked


def test_a_file_system_without_locks_goes_by_what_is_written(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    dead_owner(tmp_path)
    with locked(tmp_path), pytest.raises(UsageError, match="another run holds"), locked(tmp_path):
        pass


@pytest.mark.parametrize("refused", ["open", "ftruncate", "write"])
def test_a_full_disk_at_the_lock_is_one_sentence(tmp_path, monkeypatch, refused):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, refused, full)
    message = f"cannot write in '{tmp_path}': No space left on device"
    with pytest.raises(UsageError) as caught, locked(tmp_path):
        pass
    assert caught.value.message == message


def test_a_network_that_fails_when_the_lock_is_closed_does_not_fail_the_run(tmp_path, monkeypatch):
    close = os.close

    def closes_and_complains(handle):
        close(handle)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "close", closes_and_complains)
        with locked(tmp_path):
            pass
    assert not (tmp_path / NAME).exists()
    with locked(tmp_path):
        pass
