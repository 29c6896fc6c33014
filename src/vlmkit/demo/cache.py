"""Where the demo's files lie, and how a directory is written once however many processes ask for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vlmkit.errors import VlmkitError

CONTENTS = "contents.json"
"""Written last into every directory: the size in bytes of each file, so that a half-deleted cache is noticed."""


def cache_root() -> Path:
    """The user's cache of vlmkit: `VLMKIT_CACHE`, else `$XDG_CACHE_HOME/vlmkit`, else `~/.cache/vlmkit`."""
    if own := os.environ.get("VLMKIT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "vlmkit"


def recipe_key(*sources: str, **settings: object) -> str:
    """Twelve hex digits that change with the settings and with any character of the source files.

    Args:
        sources: Paths of the Python files that write the directory.
        settings: Whatever else decides its contents; must be JSON.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for source in sources:
        digest.update(Path(source).read_text(encoding="utf-8").encode())
    return digest.hexdigest()[:12]


def written_once(directory: Path, write: Callable[[Path], None]) -> Path:
    """Make `directory` by `write`, unless it is there; give its path.

    `write` fills a fresh directory beside it, which is then renamed: readers see all files or none. Where two processes
    write at once, the first to finish wins and the other takes its files; the contents are the same.

    Raises:
        VlmkitError: `directory` is there, but files are missing from it or have another size; or it cannot be written.
    """
    if directory.is_dir():
        _check(directory)
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise VlmkitError(
            f"{directory.parent} cannot be written ({error.strerror}). Set VLMKIT_CACHE to a directory that can."
        ) from error
    try:
        write(aside)
        (aside / CONTENTS).write_text(json.dumps(_sizes(aside), indent=1, sort_keys=True), encoding="utf-8")
        aside.chmod(0o755)  # mkdtemp keeps others out; a shared cache is to be read
        _rename(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _check(directory)
    return directory


def _rename(aside: Path, directory: Path) -> None:
    try:
        aside.rename(directory)
    except OSError:
        if not directory.is_dir():  # otherwise another process was first
            raise


def _sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != CONTENTS)
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


def _check(directory: Path) -> None:
    listing = directory / CONTENTS
    expected: dict[str, int] = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {CONTENTS: 0}
    found = _sizes(directory)
    damaged = sorted(name for name, size in expected.items() if found.get(name) != size)
    if damaged:
        raise VlmkitError(
            f"{directory}: {len(damaged)} of its files are missing or have another size than when they were written "
            f"(the first: {damaged[0]}). Delete this directory; it is written anew."
        )
