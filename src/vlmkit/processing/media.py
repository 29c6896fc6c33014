"""Open images and videos as RGB under a pixel budget; learn their size without decoding a pixel."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vlmkit.conversation import ImagePart, VideoPart
from vlmkit.errors import DataError, VlmkitError
from vlmkit.processing.absence import check_file
from vlmkit.processing.images import check_mode, open_image, to_rgb
from vlmkit.processing.retries import NUM_READS, may_pass, try_again
from vlmkit.processing.video import VideoHeader, VideoReading

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile
    from torch import Tensor

T = TypeVar("T")
MAX_ASPECT_RATIO = 200
"""Longest over shortest side that Qwen's resize rule accepts."""
MAX_DECODED_PIXELS = 178_956_970
"""Refused before decoding (PIL's own limit for decompression bombs: a quarter of a gigabyte of RGB)."""
_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_CHUNKS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
_LONGEST_REASON = 300


@dataclass(frozen=True, kw_only=True)
class PixelBudget:
    """Least and most pixels an item may keep, and how densely a video is sampled.

    Attributes:
        image_min_pixels: Smaller images are scaled up to it. None: what the checkpoint's processor says.
        image_max_pixels: Larger images are scaled down to it. None: as above.
        video_min_pixels: The same over all sampled frames of a video together. None: as above.
        video_max_pixels: As above.
        video_fps: Frames per second to sample. None: as above.
        video_max_frames: Most frames to sample from one video. None: as above.
    """

    image_min_pixels: int | None = None
    image_max_pixels: int | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_fps: float | None = None
    video_max_frames: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for kind in ("image", "video"):
            least, most = getattr(self, f"{kind}_min_pixels"), getattr(self, f"{kind}_max_pixels")
            if least is not None and most is not None and least > most:
                raise ValueError(f"{kind}_min_pixels ({least}) must not exceed {kind}_max_pixels ({most})")


def read_medium(part: ImagePart | VideoPart, read: Callable[[], T], *, verb: str = "read") -> T:
    """Call `read`, which reads a medium: the one place where a failure becomes an error that names the medium.

    Pillow and its plugins raise anything on a damaged file (struct.error, KeyError, RuntimeError, MemoryError, ...), so
    every exception is taken. Errors of a network disk that may pass are tried again first. Warnings are not shown: what
    matters is refused, and a library's remark without a file's name helps nobody.

    Args:
        part: The medium.
        read: Called without arguments; more than once where the disk fails for a moment.
        verb: What cannot be done with the medium where `read` fails: `read` or `decoded`.

    Raises:
        DataError: the medium cannot be read.
        VlmkitError: as `read` raises it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return try_again(read)
    except VlmkitError:
        raise
    except Exception as error:
        raise _data_error(part, error, verb) from error


def _data_error(part: ImagePart | VideoPart, error: Exception, verb: str) -> DataError:
    from PIL import Image

    kind = "image" if isinstance(part, ImagePart) else "video"
    if isinstance(error, Image.DecompressionBombError):
        return DataError(
            f"{kind} {_name(part)!r} is refused undecoded: {error} Scale it down on disk.", reason="too_many_pixels"
        )
    if isinstance(error, OSError) and error.strerror:
        times = f", in {NUM_READS} attempts" if may_pass(error) else ""
        finding = f"cannot be read ({error.strerror}{times}). Check the file and its disk, or drop the row."
    else:
        kept = f" as {'an image' if kind == 'image' else 'a video'}" if verb == "read" else ""
        finding = f"cannot be {verb}{kept} ({_reason(error)}). Replace the file or drop the row."
    return DataError(f"{kind} {_name(part)!r} {finding}", reason="unreadable_media")


def _reason(error: Exception) -> str:
    """The first line of an error; its type where the text alone says little."""
    text = (str(error).strip().splitlines() or [""])[0][:_LONGEST_REASON]
    if isinstance(error, (OSError, SyntaxError, ValueError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def image_size(part: ImagePart) -> tuple[int, int]:
    """Height and width of an image as it will be seen (EXIF orientation applied), from its header.

    Raises:
        DataError: missing, no image, too many pixels, or an aspect ratio over 200.
    """
    return read_medium(part, lambda: _image_size(part))


def _image_size(part: ImagePart) -> tuple[int, int]:
    with opened(part) as image:
        width, height = image.size
        turned = orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def image_orientation(part: ImagePart) -> int:
    """How EXIF says an image is turned, 1 (upright) to 8.

    Raises:
        DataError: as `image_size`.
    """

    def read() -> int:
        with opened(part) as image:
            return orientation(image)

    return read_medium(part, read)


def orientation(image: Image.Image) -> int:
    """How EXIF says an image is turned, 1 (upright) to 8.

    PIL decodes a whole PNG to look for EXIF behind its pixels; that is done only where its chunks say there may be some.

    Raises:
        ValueError: the EXIF data cannot be parsed, so which way is up is not known.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    if isinstance(image, PngImageFile) and _may_hold_late_exif(image):
        image.load()
    try:
        return Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"its EXIF data, which say which way is up, are broken: {_reason(error)}") from error


def _may_hold_late_exif(image: PngImageFile) -> bool:
    """Whether a PNG has chunks behind its pixels that can hold EXIF (PNG specification, 3rd edition, section 5.6)."""
    file: Any = image.fp
    place = file.tell()
    try:
        file.seek(len(_PNG_SIGNATURE))
        pixels_seen = False
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if pixels_seen and kind in _EXIF_CHUNKS:
                return True
            pixels_seen = pixels_seen or kind == b"IDAT"
            file.seek(length + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(place)


def load_image(part: ImagePart) -> Tensor:
    """Decode an image upright.

    Returns:
        (3, height, width) uint8.

    Raises:
        DataError: as `image_size`, or the pixels cannot be decoded.
    """
    return read_medium(part, lambda: _load_image(part), verb="decoded")


def _load_image(part: ImagePart) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    with opened(part) as image:
        turned = orientation(image)
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            decoded = _decode_jpeg(part)
            if decoded is not None:
                return _upright(decoded, turned)
        return _upright(pil_to_tensor(to_rgb(image)), turned)


def _decode_jpeg(part: ImagePart) -> Tensor | None:
    """(3, height, width) uint8 by libjpeg, without PIL's copies between; None where that does not work.

    The same pixels as PIL's, which the tests hold us to. A file that is cut short is left to PIL, whose message says so.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    try:
        source = part.source
        content = (
            read_file(str(source))
            if isinstance(source, Path)
            else torch.frombuffer(bytearray(source), dtype=torch.uint8)
        )
        return cast("Tensor", decode_jpeg(content, mode=ImageReadMode.RGB))  # one file in, one tensor out
    except RuntimeError:
        return None


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Turn an image as EXIF says (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(-2, -1)
    flips = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}.get(orientation, ())
    return image.flip(flips) if flips else image


def video_header(part: VideoPart, reading: VideoReading) -> VideoHeader:
    """Number of frames, frame rate and size of a video, from its container (or its first frame's header).

    Raises:
        DataError: missing, no video, or no frames.
    """
    return read_medium(part, lambda: _video_header(part, reading))


def _video_header(part: VideoPart, reading: VideoReading) -> VideoHeader:
    if isinstance(part.source, Path):
        check_file(part.source, "video")
        header = reading.header(part.source)
    else:
        if not part.source:
            raise DataError("a video lists no frames. Name its frames or drop the row.", reason="empty_media")
        sizes = {image_size(ImagePart(frame)) for frame in part.source}
        if len(sizes) > 1:
            raise DataError(
                f"the frames of a video differ in size: {sorted(sizes)}. All must be equal.", reason="frame_sizes"
            )
        height, width = sizes.pop()
        header = VideoHeader(num_frames=len(part.source), fps=None, height=height, width=width)
    _check_size(header.height, header.width, _name(part))
    return header


def load_frames(part: VideoPart, indices: list[int], reading: VideoReading) -> Tensor:
    """Decode some frames of a video.

    Returns:
        (num_frames, 3, height, width) uint8.

    Raises:
        DataError: the video cannot be read.
    """
    return read_medium(part, lambda: _load_frames(part, indices, reading), verb="decoded")


def _load_frames(part: VideoPart, indices: list[int], reading: VideoReading) -> Tensor:
    import torch

    if isinstance(part.source, Path):
        return reading.frames(part.source, indices)
    return torch.stack([load_image(ImagePart(part.source[index])) for index in indices])


@contextmanager
def opened(part: ImagePart) -> Generator[Image.Image]:
    """An image whose file is there and whose size and pixels are not refused; within `read_medium`.

    Raises:
        DataError: missing, too many pixels, or an aspect ratio over 200.
        Exception: whatever Pillow raises.
    """
    if isinstance(part.source, Path):
        check_file(part.source, "image")
    with open_image(part.source) as image:
        _check_size(image.height, image.width, _name(part))  # before anything that may decode
        check_mode(image)
        yield image


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > MAX_DECODED_PIXELS:
        raise DataError(
            f"image {name!r} has {width} x {height} pixels, more than {MAX_DECODED_PIXELS}. Scale it down on disk.",
            reason="too_many_pixels",
        )
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DataError(
            f"image {name!r} is {width} x {height}: its aspect ratio exceeds {MAX_ASPECT_RATIO}. Crop it or drop the row.",
            reason="aspect_ratio",
        )


def media_name(part: ImagePart | VideoPart) -> str:
    """What messages call an image or video."""
    return _name(part)


def _name(part: ImagePart | VideoPart) -> str:
    if isinstance(part.source, bytes):
        return f"<{len(part.source)} bytes>"
    return str(part.source) if isinstance(part.source, Path) else f"{len(part.source)} frames from {part.source[0]}"
