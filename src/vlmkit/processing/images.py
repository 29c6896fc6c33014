"""Image files of known formats, and their pixels as RGB: the same in training, in evaluation and on pages.

A format that is not in `FORMATS` is refused by its first bytes. Pillow knows many more; some of its readers hand the file
to another program (PostScript to Ghostscript), which no file that claims to be a picture may start.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by Pillow's names; JPEG includes MPO, PPM its binary and grey siblings."""
_HEAD_BYTES = 512
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF", "HDF5"),
    (b"GRIB", "GRIB"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML, perhaps SVG"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
)
"""First bytes (in lower case for markup) of what is found under the name of an image, and what to call it."""
_ISO_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}


def open_image(source: Path | bytes) -> Image:
    """Open an image of one of `FORMATS`; its pixels are read later.

    Raises:
        UnidentifiedImageError: another format; names what the file holds.
        Exception: whatever else Pillow raises; `media.read_medium` makes a DataError of it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError as error:
        content = describe_content(_head(source))
        raise UnidentifiedImageError(f"it holds {content}; the formats read are {', '.join(FORMATS)}") from error


def describe_content(head: bytes) -> str:
    """What a file holds that is no image, from its first bytes."""
    if not head:
        return "nothing: the file is empty"
    if not head.strip(b"\0"):
        return "zeros, as a file whose copying was interrupted"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in _OTHER_FORMATS:
        if head.startswith(signature) or text.lower().startswith(signature):
            return name
    if head[4:8] == b"ftyp":
        return _ISO_BRANDS.get(head[8:12], "an MP4 video or another ISO media file")
    return f"no known format (first bytes {head[:12]!r})"


def check_mode(image: Image) -> None:
    """Refuse pixels whose range is not known.

    Raises:
        ValueError: they are 32-bit integers or floating-point numbers.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, whose range is not known. Save it with 8 or 16 bits a channel")


def to_rgb(image: Image) -> Image:
    """Pixels as RGB: transparency over white, as qwen-vl-utils and vLLM do; 16-bit grey scaled to 8 bits.

    Palettes are looked up, and CMYK, YCbCr, grey and bilevel pixels converted, as Pillow does. Colour profiles are ignored.

    Raises:
        ValueError: as `check_mode`.
    """
    from PIL import Image

    check_mode(image)
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(coloured, mask=coloured.getchannel("A"))
    return white


def _from_16_bits(image: Image) -> Image:
    """Pillow's own conversion cuts every value above 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    grey = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with open(source, "rb") as file:
        return file.read(_HEAD_BYTES)
