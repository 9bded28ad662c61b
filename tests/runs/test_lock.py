"""The lock: one living owner, and none that outlives its process."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from quantcfg.errors import UsageError
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
