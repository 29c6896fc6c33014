"""Files that are whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vlmkit.errors import CheckpointError
from vlmkit.storage import is_full, written_aside


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_aside(path) as aside:
        aside.joinpath("x").write_text("no directory")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.ENOENT, False)])
def test_a_full_disk_is_known_by_its_number(number, full):
    assert is_full(OSError(number, "")) is full


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_grow_is_told_with_what_stands(tmp_path):
    """The kernel's own full device."""
    from vlmkit.cli.training import told_when_full
    from vlmkit.training.steplines import append_line

    good = tmp_path / "checkpoints" / "step-000004.ckpt"
    good.parent.mkdir()
    good.touch()
    message = rf"no more can be written .*newest good checkpoint is {good}\."
    with pytest.raises(CheckpointError, match=message), told_when_full(tmp_path):
        append_line(Path("/dev/full"), {"step": 1})


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    """A power cut between the two leaves the old file; what was synced, and when, is written down on the way."""
    import os

    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(handle):
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    def noted_rename(path, target):
        done.append(f"rename {path.name} {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    with written_aside(tmp_path / "a.txt") as aside:
        aside.write_text("new")
    assert done == ["sync .a.txt.writing", "rename .a.txt.writing a.txt", f"sync {tmp_path.name}"]
