"""A path without a medium: the message says what is there instead, or which file was meant."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vlmkit.errors import DataError
from vlmkit.processing import absence
from vlmkit.processing.absence import check_file


def finding(path: Path, kind: str = "image") -> str:
    with pytest.raises(DataError) as caught:
        check_file(path, kind)
    assert caught.value.reason == "missing_media"
    assert caught.value.finding.startswith(f"{kind} {str(path)!r} ")
    return caught.value.finding


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images" / "a b.JPG").write_bytes(b"x")
    (tmp_path / "frames").mkdir()
    for number in range(3):
        (tmp_path / "frames" / f"{number}.png").write_bytes(b"x")
    return tmp_path


def test_a_file_passes(folder: Path) -> None:
    check_file(folder / "Images" / "a b.JPG", "image")
    (folder / "link.jpg").symlink_to(folder / "Images" / "a b.JPG")
    check_file(folder / "link.jpg", "image")


def test_an_empty_file_is_named(folder: Path) -> None:
    (folder / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg' is an empty file \(0 bytes\)") as caught:
        check_file(folder / "empty.jpg", "image")
    assert caught.value.reason == "unreadable_media"


def test_a_directory_is_named_and_a_folder_of_frames_says_how_to_list_them(folder: Path) -> None:
    assert finding(folder / "frames").endswith("is a directory (3 images in it). Name a file.")
    assert finding(folder, "video").endswith("is a directory. Name a file.")
    assert finding(folder / "frames", "video").endswith(
        'is a directory of 3 images. List the frames in order instead: "video": ["frames/0.png", ...].'
    )


def test_pipes_sockets_and_devices_are_named(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    assert "is a pipe, not a file" in finding(folder / "pipe.jpg")
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        assert "is a socket, not a file" in finding(folder / "socket.jpg")
    assert "is a device, not a file" in finding(Path("/dev/null"))


def test_links_that_lead_nowhere_are_named(folder: Path) -> None:
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    assert "is a link that leads back to itself" in finding(folder / "loop.jpg")
    (folder / "gone.jpg").symlink_to("/mnt/archive/gone.jpg")
    assert "is a link to '/mnt/archive/gone.jpg', where nothing is" in finding(folder / "gone.jpg")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("images/A B.jpg", "upper and lower case differ"),
        ("Images/a b.JPG ", "a space too many"),
        ("Images /a b.JPG", "a space too many"),
        ("Images\\a b.JPG", "separated by / here"),
        ("images\\A b.jpg", "separated by / here"),
        ("Images/a%20b.JPG", "%20 is a space"),
    ],
)
def test_the_file_that_was_meant_is_named(folder: Path, written: str, why: str) -> None:
    message = finding(folder / written)
    assert f"not found, but {str(folder / 'Images' / 'a b.JPG')!r} is there" in message
    assert why in message


def test_the_directory_that_is_missing_is_named(folder: Path) -> None:
    assert f"not found: {str(folder)!r} has no directory 'train2017'" in finding(folder / "train2017" / "x" / "1.jpg")
    inside = finding(folder / "Images" / "a b.JPG" / "1.jpg")
    assert "a b.JPG' is a file, not a directory" in inside
    assert finding(folder / "none.jpg").endswith("not found. Check data.root and the path in the row.")


def test_names_that_no_file_has_are_refused(folder: Path) -> None:
    assert "characters that no file name has" in finding(folder / "\ud800.jpg")


def test_a_directory_is_listed_once_for_all_its_missing_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(absence.os, "scandir", lambda path: listed.append(path) or scandir(path))
    for number in range(20):
        finding(folder / "Images" / f"{number}.jpg")
    assert len(listed) <= 2


def test_an_error_of_the_disk_is_not_taken_for_a_missing_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(absence.os, "stat", fail)
    with pytest.raises(OSError, match="Input/output error"):
        check_file(folder / "x.jpg", "image")
