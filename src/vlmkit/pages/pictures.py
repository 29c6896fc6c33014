"""Pictures for pages: what the model sees, put together again out of its patches, and small copies of files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.conversation import ImagePart
from vlmkit.errors import DataError
from vlmkit.processing.processor import VisionGeometry

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_MAX_COLORS = 256
"""A picture of so few colours is drawn, not photographed: PNG keeps it as it is, and small."""


def from_patches(patches: Tensor, grid: tuple[int, int, int], geometry: VisionGeometry) -> Tensor:
    """Undo the cutting into patches.

    Args:
        patches: (time * height * width, values) uint8 of one image or video, as in `Sample`.
        grid: Patches along time, height and width.
        geometry: How they were cut.

    Returns:
        (num_frames, height, width, 3) uint8; a still is one frame.
    """
    pairs, rows, columns = grid
    size, merge = geometry.patch_size, geometry.merge_size
    depth = patches.shape[1] // (3 * size**2)
    blocks = patches.reshape(pairs, rows // merge, columns // merge, merge, merge, 3, depth, size, size)
    frames = blocks.permute(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return frames.reshape(pairs * depth, rows * size, columns * size, 3)


def data_uri(pixels: Tensor, *, quality: int = 85) -> str:
    """A picture, (height, width, 3) uint8, as a data URI: PNG where it has few colours, else JPEG."""
    from PIL import Image

    picture = Image.fromarray(pixels.numpy())
    if picture.getcolors(_MAX_COLORS):
        return _encoded(picture, "PNG", optimize=True)
    return _encoded(picture, "JPEG", quality=quality)


def thumbnail(source: Path | bytes, *, side_pixels: int) -> str | None:
    """A small copy of an image file, upright, as a JPEG data URI; None where it cannot be read."""
    from vlmkit.processing.media import read_medium

    part = ImagePart(source)
    try:
        return read_medium(part, lambda: _thumbnail(part, side_pixels))
    except DataError:
        return None


def _thumbnail(part: ImagePart, side_pixels: int) -> str:
    from PIL import ImageOps

    from vlmkit.processing.images import to_rgb
    from vlmkit.processing.media import opened

    with opened(part) as image:
        image.draft("RGB", (2 * side_pixels, 2 * side_pixels))
        small = to_rgb(ImageOps.exif_transpose(image))
        small.thumbnail((side_pixels, side_pixels))
        return _encoded(small, "JPEG", quality=72)


def _encoded(picture: Image, kind: str, **settings: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
