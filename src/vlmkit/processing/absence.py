"""Why a path is no file that a medium could be read from: what is there instead, or which file was meant."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from vlmkit.errors import DataError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MOST_ENTRIES = 200_000
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: Path, kind: Literal["image", "video"], *, root: str = "data.root") -> None:
    """Refuse a path that is no file with something in it, and say what it is.

    Args:
        path: Where the medium is said to be.
        kind: What messages call it.
        root: The setting that says where media lie.

    Raises:
        DataError: `missing_media`, or `unreadable_media` for an empty file.
        OSError: the disk says something else; see `read_medium`.
    """
    try:
        status = os.stat(path)
    except ValueError:  # a lone surrogate
        raise _missing(f"{kind} {str(path)!r} holds characters that no file name has. Correct the path.") from None
    except OSError as error:
        raise _missing(f"{kind} {str(path)!r} {_explain(error, path, root)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise _missing(f"{kind} {str(path)!r} is a directory{_describe_directory(path, kind)}")
    if not stat.S_ISREG(status.st_mode):
        what = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise _missing(f"{kind} {str(path)!r} is {what}, not a file. Name a file.")
    if not status.st_size:
        raise DataError(
            f"{kind} {str(path)!r} is an empty file (0 bytes). Replace it or drop the row.", reason="unreadable_media"
        )


def _missing(finding: str) -> DataError:
    return DataError(finding, reason="missing_media")


def _explain(error: OSError, path: Path, root: str) -> str:
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself. Put the file in its place."
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise error
    if path.is_symlink():
        return f"is a link to {os.readlink(path)!r}, where nothing is. Mount or restore what it leads to."
    for meant, why in _meant_paths(str(path)):
        if (known := _with_other_case(meant)) is not None:
            why = why or "upper and lower case differ"
            return f"not found, but {str(known)!r} is there: {why}. Correct the path in the row."
    parent = next(parent for parent in path.parents if parent.exists())
    if parent != path.parent or not parent.is_dir():
        part = path.relative_to(parent).parts[0]
        what = f"has no directory {part!r}" if parent.is_dir() else "is a file, not a directory"
        return f"not found: {str(parent)!r} {what}. Check {root} and the path in the row."
    return f"not found. Check {root} and the path in the row."


def _meant_paths(path: str) -> Iterator[tuple[str, str]]:
    """Ways in which a path may have been meant, each with what is wrong with how it is written."""
    yield path, ""
    if path != (stripped := "/".join(part.strip() for part in path.split("/"))):
        yield stripped, "a space too many begins or ends a name"
    if "\\" in path:
        yield path.replace("\\", "/"), "directories are separated by / here, not by \\"
    if path != (decoded := unquote(path)):
        yield decoded, "the path is written as in a URL (%20 is a space)"


def _with_other_case(path: str) -> Path | None:
    """The file of that path, letters compared without regard to case; None where there is none."""
    place = Path(path)
    if place.is_file():
        return place
    ancestor = next(parent for parent in place.parents if parent.is_dir())
    for part in place.relative_to(ancestor).parts:
        name = _entries(ancestor, os.stat(ancestor).st_mtime_ns).get(part.casefold()) if ancestor.is_dir() else None
        if name is None:
            return None
        ancestor = ancestor / name
    return ancestor if ancestor.is_file() else None


@lru_cache(maxsize=8)
def _entries(directory: Path, changed: int) -> dict[str, str]:
    """Names in a directory by their case-folded form, of the first so many; kept while the directory is unchanged."""
    try:
        with os.scandir(directory) as entries:
            return {entry.name.casefold(): entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)}
    except OSError:
        return {}


def _describe_directory(path: Path, kind: str) -> str:
    names = sorted(
        name for name in _entries(path, os.stat(path).st_mtime_ns).values() if name.lower().endswith(_IMAGE_SUFFIXES)
    )
    if kind == "image" or not names:
        inside = f" ({len(names)} images in it)" if names else ""
        return f"{inside}. Name a file."
    return f' of {len(names)} images. List the frames in order instead: "video": ["{path.name}/{names[0]}", ...].'
