"""Files that are whole or not there: written aside, synced, renamed. A kill or a power cut leaves the old or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def aside_of(path: Path) -> Path:
    """Where the next version of a file or directory is written before it takes its place."""
    return path.with_name(f".{path.name}.writing")


def sync_to_disk(path: Path) -> None:
    """Make sure that a file, or a directory's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(aside: Path, path: Path) -> None:
    """Sync what was written aside and give it its name; an older file of that name is replaced."""
    sync_to_disk(aside)
    aside.rename(path)
    sync_to_disk(path.parent)


@contextmanager
def written_aside(path: Path) -> Generator[Path]:
    """A path to write a file to, which becomes `path` once the block ends well and vanishes otherwise."""
    aside = aside_of(path)
    try:
        yield aside
        put_in_place(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk, a quota or a limit on the size of files is reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
