"""Three libraries that read videos, and Pillow for animations, behind one protocol. Needs numpy alone until one is used.

`bench/video.py` measures them; `READERS` is in the order of its result, which `data.video_reader=auto` follows: decord
before torchcodec, since it is nearly as fast, needs nothing from the system, and its process a tenth of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmkit.processing.images import open_image, to_rgb


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What a container says about its video stream.

    Attributes:
        num_frames: Frames in the stream.
        fps: Frames per second; None for a list of frames, which are taken as sampled already.
        height, width: Pixels.
    """

    num_frames: int
    fps: float | None
    height: int
    width: int


class ReadError(Exception):
    """A file that a library cannot read; says why."""


class VideoReader(Protocol):
    """Describes videos and decodes some of their frames."""

    def header(self, path: Path) -> VideoHeader:
        """Open the container and describe its first video stream.

        Raises:
            ReadError: the file is no video.
        """
        ...

    def frames(self, path: Path, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode the frames at `indices` (ascending).

        Returns:
            (len(indices), height, width, 3) uint8, RGB.

        Raises:
            ReadError: the file cannot be decoded at these frames.
        """
        ...


class DecordReader:
    """decord: fast, steady in memory, nothing to install beside it."""

    def __init__(self) -> None:
        self._decord: Any = import_module("decord")
        self._errors = (self._decord.DECORDError, RuntimeError, OSError, IndexError, StopIteration)

    def header(self, path: Path) -> VideoHeader:
        """See `VideoReader`."""
        try:
            reader = self._decord.VideoReader(str(path), num_threads=1)
            if len(reader) == 0:
                return VideoHeader(num_frames=0, fps=None, height=1, width=1)
            height, width = reader[0].shape[:2]
            return VideoHeader(num_frames=len(reader), fps=float(reader.get_avg_fps()), height=height, width=width)
        except self._errors as error:
            raise ReadError(_first_line(error)) from error

    def frames(self, path: Path, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `VideoReader`."""
        try:
            reader = self._decord.VideoReader(str(path), num_threads=1)
            return reader.get_batch(list(indices)).asnumpy()
        except self._errors as error:
            raise ReadError(_first_line(error)) from error


class TorchcodecReader:
    """torchcodec: needs the system's FFmpeg libraries."""

    def __init__(self) -> None:
        self._decoders: Any = import_module("torchcodec.decoders")

    def _open(self, path: Path) -> Any:
        # Threads of its own slow it down many times; exact seeking counts frames instead of believing the header.
        return self._decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")

    def header(self, path: Path) -> VideoHeader:
        """See `VideoReader`."""
        try:
            told = self._open(path).metadata
        except (RuntimeError, ValueError, OSError) as error:
            raise ReadError(_first_line(error)) from error
        # The container's rate, as the other readers take it; that of the frames found differs where a file is cut short.
        rate = told.average_fps_from_header or told.average_fps
        fps = float(rate) if rate else None
        return VideoHeader(num_frames=int(told.num_frames or 0), fps=fps, height=told.height, width=told.width)

    def frames(self, path: Path, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `VideoReader`."""
        try:
            return self._open(path).get_frames_at(list(indices)).data.numpy()
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise ReadError(_first_line(error)) from error


class PyavReader:
    """PyAV: ships FFmpeg with it, decodes from the beginning, and leaves turning a frame as the file says to us."""

    def __init__(self) -> None:
        self._av: Any = import_module("av")

    def header(self, path: Path) -> VideoHeader:
        """See `VideoReader`."""
        try:
            with self._av.open(str(path)) as container:
                if not container.streams.video:
                    raise ReadError("it holds no video stream")
                stream = container.streams.video[0]
                num_frames = stream.frames or sum(1 for _ in container.decode(stream))
                fps = float(stream.average_rate) if stream.average_rate else None
                height, width = stream.height, stream.width
                container.seek(0)
                first = next(container.decode(stream), None)
                if first is not None and first.rotation % 180:
                    height, width = width, height
                return VideoHeader(num_frames=num_frames, fps=fps, height=height, width=width)
        except (self._av.FFmpegError, OSError) as error:
            raise ReadError(_first_line(error)) from error

    def frames(self, path: Path, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `VideoReader`."""
        wanted, found = set(indices), dict[int, NDArray[np.uint8]]()
        try:
            with self._av.open(str(path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                        found[number] = np.ascontiguousarray(upright)
                    if len(found) == len(wanted):
                        break
        except (self._av.FFmpegError, OSError, IndexError) as error:
            raise ReadError(_first_line(error)) from error
        if missing := sorted(wanted - found.keys()):
            raise ReadError(f"it ends before frame {missing[0]}")
        return np.stack([found[index] for index in indices])


class AnimationReader:
    """Pillow: reads animated images, which not every library of videos does, with transparency over white."""

    name = "pillow"

    def header(self, path: Path) -> VideoHeader:
        """See `VideoReader`; the rate is the mean one, since every frame of an animation has a duration of its own."""
        try:
            with open_image(path) as image:
                num_frames, milliseconds = int(getattr(image, "n_frames", 1)), 0.0
                for number in range(num_frames):
                    image.seek(number)
                    image.load()  # a WebP's duration is known only then
                    milliseconds += float(image.info.get("duration") or _FRAME_MILLISECONDS)
                return VideoHeader(
                    num_frames=num_frames, fps=1000 * num_frames / milliseconds, height=image.height, width=image.width
                )
        except Exception as error:  # of a damaged file Pillow raises anything
            raise ReadError(_first_line(error)) from error

    def frames(self, path: Path, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `VideoReader`."""
        found: list[NDArray[np.uint8]] = []
        try:
            with open_image(path) as image:
                for index in indices:
                    image.seek(index)
                    found.append(np.array(to_rgb(image)))
            return np.stack(found)
        except Exception as error:
            raise ReadError(_first_line(error)) from error


READERS: Mapping[str, type[VideoReader]] = {
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
    "pyav": PyavReader,
}
"""By name, in the order in which `auto` tries them."""

ANIMATIONS = frozenset({".gif", ".apng", ".webp"})
"""Suffixes of files that Pillow reads as videos."""
_FRAME_MILLISECONDS = 100
"""Of a frame without a duration, as browsers have it."""


def make_reader(name: str) -> VideoReader:
    """The reader of a name, also that of animations."""
    return AnimationReader() if name == AnimationReader.name else READERS[name]()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


__all__ = [
    "ANIMATIONS",
    "READERS",
    "AnimationReader",
    "DecordReader",
    "PyavReader",
    "ReadError",
    "TorchcodecReader",
    "VideoHeader",
    "VideoReader",
    "make_reader",
]
