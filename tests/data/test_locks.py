"""One writer at a time, with `flock` and without it; a lock that a dead process left is removed only where that is safe."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vlmkit.data import locks
from vlmkit.data.locks import locked
from vlmkit.errors import ConfigError
from vlmkit.processes import ProcessMark, this_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and names of sockets without a file")


def refuse(*_) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.fixture(params=["flock", "no flock", "no flock, no links"])
def file_system(request, monkeypatch) -> str:
    """What the file system of the cache can do."""
    if request.param != "flock":
        monkeypatch.setattr(fcntl, "flock", refuse)
    if request.param == "no flock, no links":
        monkeypatch.setattr(os, "link", lambda *_: refuse())
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.002)
    monkeypatch.setattr(locks, "_told", set())
    return request.param


def count_up(path: Path, times: int) -> None:
    """Read, wait, write: two that do this at once lose a count."""
    for _ in range(times):
        with locked(path):
            number = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(number + 1))


def count_in_processes(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    counters = [fork.Process(target=count_up, args=(path, 15)) for _ in range(4)]
    for counter in counters:
        counter.start()
    for counter in counters:
        counter.join(60)
        assert counter.exitcode == 0


def test_one_process_at_a_time(file_system, tmp_path):
    path = tmp_path / "index.bin"
    path.write_text("0")
    count_in_processes(path)
    assert path.read_text() == "60"
    assert not list(tmp_path.glob("*.held"))


def ended_process() -> ProcessMark:
    """The mark of a process of this machine that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = this_process()
    return ProcessMark(host=here.host, space=here.space, pid=child.pid, started="1")


@pytest.mark.parametrize("file_system", ["no flock", "no flock, no links"], indirect=True)
def test_the_lock_of_a_process_that_has_ended_is_removed_once(file_system, tmp_path, caplog):
    """Many wait for it at once, and still only one at a time goes on."""
    path = tmp_path / "index.bin"
    path.write_text("0")
    (tmp_path / "index.held").write_text(ended_process().to_text())
    count_in_processes(path)
    assert path.read_text() == "60"
    (tmp_path / "index.held").write_text(ended_process().to_text())
    with caplog.at_level(logging.WARNING), locked(path):
        assert ProcessMark.from_text((tmp_path / "index.held").read_text()) == this_process()
    told = " ".join(caplog.messages)
    assert f"the file system of {tmp_path} has no flock (Function not implemented)" in told
    assert "was left by a process that has ended" in told


@pytest.mark.parametrize("file_system", ["no flock"], indirect=True)
@pytest.mark.parametrize("content", ["another machine's", "not a mark"])
def test_the_lock_of_another_machine_is_never_removed(file_system, tmp_path, monkeypatch, content):
    monkeypatch.setattr(locks, "_STALE_SECONDS", 0.1)
    path, held = tmp_path / "index.bin", tmp_path / "index.held"
    mark = ProcessMark(host="node7", space="elsewhere", pid=41, started="5")
    held.write_text(mark.to_text() if content == "another machine's" else "")
    named = "process 41 of node7" if content == "another machine's" else "an unknown process"
    with (
        pytest.raises(
            ConfigError, match=rf"{held} is the lock of {named}, .* Remove the file if no such process is running"
        ),
        locked(path),
    ):
        pass
    assert held.exists()


@pytest.mark.parametrize("file_system", ["no flock"], indirect=True)
def test_a_holder_elsewhere_that_renews_its_lock_is_waited_for(file_system, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_STALE_SECONDS", 0.3)
    monkeypatch.setattr(locks, "_RENEW_SECONDS", 0.02)
    path, held = tmp_path / "index.bin", tmp_path / "index.held"
    entered = threading.Event()

    def wait() -> None:
        with locked(path):
            entered.set()

    with locked(path):
        mark = this_process()
        held.write_text(ProcessMark(host="node7", space="elsewhere", pid=mark.pid, started="5").to_text())
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(1.0), "it is renewed, so it is neither stolen nor given up"
    waiting.join(10)
    assert entered.is_set()


def test_a_lock_that_another_has_created_meanwhile_stays(tmp_path):
    held = tmp_path / "index.held"
    held.write_text(this_process().to_text())
    locks._remove_stale(held, ended_process().to_text())
    assert held.exists()


def test_another_error_of_flock_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    def fail(*_) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "index.bin"):
        pass
