"""Video readers behind two functions: what a container says, and some of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What a container says about its video stream.

    Attributes:
        num_frames: Frames in the stream.
        fps: Frames per second; None for a list of frames, which are taken as sampled already.
        height: Pixels.
        width: Pixels.
    """

    num_frames: int
    fps: float | None
    height: int
    width: int


def read_header(path: Path) -> VideoHeader:
    """Open the container and describe its first video stream.

    Raises:
        DataError: the file is no video, or holds no frame.
    """
    header = _decord_header(path) if _has("decord") else _av_header(path)
    if header.num_frames < 1:
        raise DataError(f"video {str(path)!r} holds no frame. Replace the file or drop the row.", reason="empty_media")
    return header


def read_frames(path: Path, indices: list[int]) -> Tensor:
    """Decode the frames at `indices` (ascending).

    Returns:
        (len(indices), 3, height, width) uint8.

    Raises:
        DataError: the file cannot be decoded at these frames.
    """
    return _decord_frames(path, indices) if _has("decord") else _av_frames(path, indices)


def _has(module: str) -> bool:
    return find_spec(module) is not None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"video {str(path)!r} cannot be read ({_first_line(error)}). Replace the file or drop the row.",
        reason="unreadable_media",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _decord_reader(path: Path) -> Any:
    import decord

    try:
        return decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError, OSError) as error:
        raise _unreadable(path, error) from error


def _decord_header(path: Path) -> VideoHeader:
    reader = _decord_reader(path)
    if len(reader) == 0:
        return VideoHeader(num_frames=0, fps=None, height=1, width=1)
    height, width = reader[0].shape[:2]
    return VideoHeader(num_frames=len(reader), fps=float(reader.get_avg_fps()), height=height, width=width)


def _decord_frames(path: Path, indices: list[int]) -> Tensor:
    import decord
    import torch

    reader = _decord_reader(path)
    try:
        frames = reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise _unreadable(path, error) from error
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError("Reading videos needs decord or PyAV, and neither is installed: pip install av.") from error
    return av


def _av_header(path: Path) -> VideoHeader:
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _unreadable(path, ValueError("no video stream"))
            stream = container.streams.video[0]
            num_frames = stream.frames or sum(1 for _ in container.decode(stream))
            return VideoHeader(
                num_frames=num_frames, fps=float(stream.average_rate), height=stream.height, width=stream.width
            )
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error


def _av_frames(path: Path, indices: list[int]) -> Tensor:
    import torch

    av = _av()
    wanted, frames = set(indices), {}
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames[number] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                if len(frames) == len(wanted):
                    break
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    if missing := sorted(wanted - frames.keys()):
        raise _unreadable(path, ValueError(f"it ends before frame {missing[0]}"))
    return torch.stack([frames[index] for index in indices])
