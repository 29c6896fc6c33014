"""One writer of a file at a time, also where the file system has no `flock`."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from vlmkit.errors import ConfigError
from vlmkit.processes import ProcessMark, this_process

_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What `flock` answers where it is not there: NFS without a lock daemon, Lustre mounted without `flock`, and others."""
_POLL_SECONDS = 0.5
_RENEW_SECONDS = 10.0
_STALE_SECONDS = 180.0
"""A holder on another machine that has not renewed its lock for so long (NFS shows times up to a minute late) is given up."""
_log = logging.getLogger(__name__)
_told: set[Path] = set()


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Let one process at a time make the file; the others wait and then find it.

    Raises:
        ConfigError: without `flock`, if the process that holds the lock is on another machine and seems to have died.
    """
    with open(path.with_suffix(".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            has_flock = True
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            has_flock = False
            if path.parent not in _told:
                _told.add(path.parent)
                _log.warning(
                    "data.cache_dir: the file system of %s has no flock (%s). Locks are files made by exclusive creation.",
                    path.parent,
                    error.strerror,
                )
        if has_flock:
            yield
            return
    with _created(path.with_suffix(".held")):
        yield


@contextmanager
def _created(path: Path) -> Generator[None]:
    """Hold a lock by having created its file, which names this process and is renewed as long as it is held.

    A file whose process has ended is removed where that is certain: on the same machine. Another machine cannot tell a
    process that has died from one that is slow, and two writers would ruin the file, so there a person has to decide.
    """
    holder: str | None = None
    changed = unchanged_since = 0.0
    while not _create(path):
        seen = _read(path)
        if seen is None:  # released in between
            continue
        text, renewed = seen
        if (text, renewed) != (holder, changed):
            holder, changed, unchanged_since = text, renewed, time.monotonic()
        mark = _mark(text)
        has_ended = mark is not None and mark.has_ended()
        if has_ended and sys.platform == "linux":
            _remove_stale(path, text)
        elif time.monotonic() - unchanged_since > _STALE_SECONDS and (has_ended or mark is None or not mark.is_local):
            raise ConfigError(
                f"data.cache_dir: {path} is the lock of {mark or 'an unknown process'}, which has not renewed it for "
                f"{_STALE_SECONDS:.0f} seconds. Remove the file if no such process is running there, and start again."
            )
        else:
            time.sleep(_POLL_SECONDS)
    released = threading.Event()
    renewer = threading.Thread(target=_renew, args=(path, released), daemon=True, name="lock")
    renewer.start()
    try:
        yield
    finally:
        released.set()
        renewer.join()
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    """Create the file with the name of this process in it; False where it is there already.

    The file is written under another name and linked to its own: a link is as exclusive as O_EXCL, and also where several
    machines write, and nobody ever reads a lock that is still empty.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(this_process().to_text())
        try:
            os.link(name, path)
        except FileExistsError:
            return (
                os.stat(name).st_nlink == 2
            )  # NFS: the first answer was lost, the second attempt found the first's link
        except OSError:  # no links here
            return _create_exclusively(path)
        return True
    finally:
        os.unlink(name)


def _create_exclusively(path: Path) -> bool:
    try:
        with open(path, "x") as file:
            file.write(this_process().to_text())
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> tuple[str, float] | None:
    """Who holds the lock and when that was renewed; None where nobody does."""
    try:
        return path.read_text(), path.stat().st_mtime
    except FileNotFoundError:
        return None


def _mark(text: str) -> ProcessMark | None:
    try:
        return ProcessMark.from_text(text)
    except ValueError:  # still being written, or cut short
        return None


def _remove_stale(path: Path, text: str) -> None:
    """Remove the lock of a process of this machine that has ended.

    All who could do so are on this machine, and only one process at a time can bind a name there: so none removes the lock
    that another has just created in place of the stale one. The name vanishes with the process.
    """
    name = xxhash.xxh3_64_hexdigest(str(path.resolve()).encode())
    with socket.socket(socket.AF_UNIX) as remover:
        try:
            remover.bind(f"\0vlmkit-lock-{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            time.sleep(_POLL_SECONDS)  # another is at it
            return
        seen = _read(path)
        if seen is not None and seen[0] == text:
            _log.warning("The lock %s was left by a process that has ended (%s). It is removed.", path, _mark(text))
            path.unlink(missing_ok=True)


def _renew(path: Path, released: threading.Event) -> None:
    while not released.wait(_RENEW_SECONDS):
        try:
            os.utime(path)
        except OSError as error:
            _log.warning("The lock %s cannot be renewed (%s).", path, error)
