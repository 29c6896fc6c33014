"""Finding the videos, frames and subtitles that rows name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vlmkit.conversation import VideoPart
from vlmkit.errors import DataError
from vlmkit.evaluation.rows import Row

ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", ".avi")
_PICTURES = (".jpg", ".jpeg", ".png")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_TIME = re.compile(r"\s*\d+:\d+:\d+[,.]\d+\s*-->")


def find_video(row: Row, name: str) -> Path:
    """The file of a video, with or without its ending in the name, near the file of the row.

    Raises:
        DataError: it is not there, or the rows come from the hub, which has no loose videos.
    """
    if row.root is None:
        raise _gone(row, f"video {name!r} cannot be had from the hub by the row. Download the data and set data_root.")
    if (path := find_beside(row, name, folders=("data", "video", "videos"), endings=("", *ENDINGS))) is None:
        raise _gone(row, f"video {name!r} is not under {row.root} (nor in data, video or videos there or beside it).")
    return path


def find_beside(row: Row, name: str, *, folders: Sequence[str], endings: Sequence[str]) -> Path | None:
    """A file by name, beside the file of a row or one directory up, there or in one of some folders.

    Args:
        row: Whose file.
        name: Of the wanted file; one that leads out of these directories is not found.
        folders: In which it may lie.
        endings: Tried after the name.
    """
    for base in (row.root, row.root.parent) if row.root else ():
        for folder in (base, *(base / one for one in folders)):
            for ending in endings:
                path = folder / f"{name}{ending}"
                if path.is_file() and path.resolve().is_relative_to(base.resolve()):
                    return path
    return None


class VideoTree:
    """Every video below a directory, and every directory of frames, by name: for data whose rows name no folders.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places: dict[str, list[Path]] = {}
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                self._places.setdefault(name, []).append(Path(folder, name))

    def find(self, row: Row, name: str, *, likely: str) -> VideoPart:
        """The video, or the frames, of a name.

        Args:
            row: For messages.
            name: As the row has it, perhaps with folders.
            likely: Folder in which it should lie, as the end of a path; it decides where there are several.

        Raises:
            DataError: there is none, there are several, or a directory holds no frames.
        """
        wanted = Path(name).parts
        found = [path for path in self._places.get(Path(name).name, ()) if path.parts[-len(wanted) :] == wanted]
        if len(found) > 1:
            found = [path for path in found if likely in path.as_posix()] or found
        if not found:
            raise _gone(row, f"video {name!r} is nowhere under {self.root}. Unpack the videos there.")
        if len(found) > 1:
            raise _gone(row, f"video {name!r} is in {len(found)} places: {', '.join(map(str, found[:3]))}. Keep one.")
        return VideoPart(found[0] if found[0].is_file() else self._frames(row, found[0]))

    def _frames(self, row: Row, folder: Path) -> tuple[Path, ...]:
        frames = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES))
        if not frames:
            raise _gone(row, f"{folder} holds no frames ({', '.join(_PICTURES)}).")
        return frames


def read_subtitles(path: Path) -> str:
    """What is said in a SubRip file, a line each, without numbers, times and marks; lines said again at once are left out."""
    said: list[str] = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        start = next((place + 1 for place, line in enumerate(lines) if _TIME.match(line)), None)
        text = " ".join(filter(None, (_TAG.sub("", line).strip() for line in lines[start:]))) if start else ""
        if text and (not said or said[-1] != text):
            said.append(text)
    return "\n".join(said)


def _gone(row: Row, finding: str) -> DataError:
    return DataError(finding, reason="missing_media", origin=row.origin)
