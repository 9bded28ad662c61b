"""What a careless change would do to quantcfg.

``plant`` does it under these names, and the scripts beside this file have to notice:

    no-fsync        files are not synchronised
    no-append-sync  what was appended to files is not synchronised
    in-place        files are written under their final names
    no-random       random generators are not restored
    no-verify       a checkpoint is not compared with its manifest
"""

import os
import stat

from quantcfg.runs import checkpoint, manifest, writer
from quantcfg.stages import seeding


class _WithoutSync:
    """The module ``os`` for a writer that forgets to synchronise files."""

    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            os.fsync(handle)


def _write_in_place(path, data):
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(handle, data[: len(data) // 2])
    os.write(handle, data[len(data) // 2 :])
    os.close(handle)


def plant(bug):
    """Put one of them into this process and its forks."""
    if bug == "no-fsync":
        writer.os = _WithoutSync()
    elif bug == "no-append-sync":
        manifest.synchronize = lambda path: None
    elif bug == "in-place":
        writer.write_bytes = checkpoint.write_bytes = _write_in_place
    elif bug == "no-random":
        seeding.restore_random_state = lambda state: None
    elif bug == "no-verify":
        checkpoint.verify = manifest.read_manifest
    else:
        raise ValueError(bug)
