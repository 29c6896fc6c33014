"""Videos for whoever asks: a reader chosen by name or by what there is, stopped where it hangs, errors for the user."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from vlmkit.errors import ConfigError, DataError
from vlmkit.processing.readers import (
    ANIMATIONS,
    READERS,
    AnimationReader,
    ReadError,
    VideoHeader,
    VideoReader,
    make_reader,
)
from vlmkit.processing.reading import ReadingProcess, ReadTimeout
from vlmkit.processing.retries import try_again

if TYPE_CHECKING:
    from torch import Tensor

ReaderName = Literal["auto", "decord", "torchcodec", "pyav"]
T = TypeVar("T")
_INSTALL = {
    "decord": "pip install decord",
    "torchcodec": "pip install torchcodec, and FFmpeg's libraries by your system's package manager",
    "pyav": "pip install av",
}


@dataclass(frozen=True, kw_only=True)
class VideoReading:
    """How videos are read.

    Attributes:
        reader: `auto` takes the first of `READERS` that works here.
        timeout_seconds: A read that takes longer is stopped, and its row is bad. None reads in this very process, where
            a library that hangs hangs the run.
    """

    reader: ReaderName = "auto"
    timeout_seconds: float | None = 60.0

    def __post_init__(self) -> None:
        if self.reader not in ("auto", *READERS):
            raise ValueError(f"data.video_reader must be one of auto, {', '.join(READERS)}, got {self.reader!r}")
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ValueError(f"data.media_timeout_seconds must be positive, or null, got {self.timeout_seconds}")

    def header(self, path: Path) -> VideoHeader:
        """Open the container and describe its first video stream.

        Raises:
            DataError: the file is no video, holds no frame, or cannot be read in time.
            ConfigError: there is no reader.
        """
        header = self._read(path, lambda reader: reader.header(path))
        if header.num_frames < 1:
            raise DataError(
                f"video {str(path)!r} holds no frame. Replace the file or drop the row.", reason="empty_media"
            )
        if header.fps is None or not 0 < header.fps < math.inf:
            raise DataError(
                f"video {str(path)!r} says no frame rate, so its frames have no time. Replace the file or drop the row.",
                reason="unreadable_media",
            )
        return header

    def frames(self, path: Path, indices: list[int]) -> Tensor:
        """Decode the frames at `indices` (ascending).

        Returns:
            (len(indices), 3, height, width) uint8.

        Raises:
            DataError: the file cannot be decoded at these frames, or not in time.
            ConfigError: there is no reader.
        """
        import torch

        frames = self._read(path, lambda reader: reader.frames(path, indices))
        return torch.from_numpy(frames if frames.flags.writeable else frames.copy()).permute(0, 3, 1, 2)

    @property
    def chosen(self) -> str:
        """The library that reads videos here, by which counts can differ; `none` where there is none."""
        try:
            return choose_reader(self.reader)
        except ConfigError:
            return "none"

    def _read(self, path: Path, ask: Callable[[VideoReader], T]) -> T:
        animation = path.suffix.lower() in ANIMATIONS
        name = AnimationReader.name if animation else choose_reader(self.reader)
        try:
            return try_again(lambda: ask(_reader(name, self.timeout_seconds, threading.get_ident())))
        except ReadError as error:
            raise DataError(
                f"video {str(path)!r} cannot be read by {name} ({error}). Replace the file or drop the row.",
                reason="unreadable_media",
            ) from error
        except ReadTimeout:
            raise DataError(
                f"video {str(path)!r} was not read by {name} within {self.timeout_seconds:g} seconds, so reading was stopped. "
                "Replace the file, drop the row, or raise data.media_timeout_seconds.",
                reason="media_timeout",
            ) from None


@cache
def choose_reader(name: str) -> str:
    """The reader that a setting means on this machine.

    Raises:
        ConfigError: it cannot be loaded, or (`auto`) none can.
    """
    faults: list[str] = []
    for one in READERS if name == "auto" else (name,):
        try:
            READERS[one]()
        except (ImportError, OSError, RuntimeError) as error:
            faults.append(f"{one}: {(str(error).strip().splitlines() or ['not found'])[0]} ({_INSTALL[one]})")
        else:
            return one
    if name == "auto":
        raise ConfigError(
            "data.video_reader=auto: no library that reads videos can be loaded. Install one:\n" + "\n".join(faults)
        )
    raise ConfigError(
        f"data.video_reader={name} cannot be loaded. Install it, or choose data.video_reader=auto. {faults[0]}"
    )


@cache
def _reader(name: str, timeout_seconds: float | None, _thread: int) -> VideoReader:
    """Of each thread its own: a process answers one question at a time, and ends with the thread that started it."""
    return make_reader(name) if timeout_seconds is None else ReadingProcess(name, timeout_seconds=timeout_seconds)


__all__ = ["ReaderName", "VideoHeader", "VideoReading", "choose_reader"]
