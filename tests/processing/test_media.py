"""Sizes of images from their headers: the same as once decoded, without decoding."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile, PngInfo

from vlmkit.conversation import ImagePart
from vlmkit.errors import DataError
from vlmkit.processing.media import image_size, load_image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def chunks(png: bytes) -> list[bytes]:
    """The chunks of a PNG, signature first."""
    found, place = [png[:8]], 8
    while place < len(png):
        end = place + 12 + struct.unpack(">I", png[place : place + 4])[0]
        found.append(png[place:end])
        place = end
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.fixture
def pngs(tmp_path: Path) -> dict[str, Path]:
    """Images 96 wide and 64 high, plain, and with an orientation before and behind the pixels."""
    image = Image.new("RGB", (96, 64), "red")
    made = {name: tmp_path / f"{name}.png" for name in ("plain", "before", "behind", "text_behind", "xmp")}
    image.save(made["plain"])
    image.save(made["before"], exif=turned())
    first = chunks(made["plain"].read_bytes())
    told = chunk(b"eXIf", turned().tobytes().removeprefix(b"Exif\x00\x00"))
    made["behind"].write_bytes(b"".join([*first[:-1], told, first[-1]]))
    made["text_behind"].write_bytes(b"".join([*first[:-1], chunk(b"tEXt", b"note\0hello"), first[-1]]))
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    image.save(made["xmp"], pnginfo=info)
    return made


def test_a_png_is_as_large_as_once_decoded(pngs: dict[str, Path]) -> None:
    expected = {"plain": (64, 96), "before": (96, 64), "behind": (96, 64), "text_behind": (64, 96), "xmp": (96, 64)}
    for name, path in pngs.items():
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            assert (upright.height, upright.width) == expected[name], name
        assert image_size(ImagePart(path)) == expected[name], name
        assert image_size(ImagePart(path.read_bytes())) == expected[name], name
        assert load_image(ImagePart(path)).shape[1:] == expected[name], name


def test_the_size_of_a_png_decodes_nothing(pngs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    for name in ("plain", "before", "xmp"):
        image_size(ImagePart(pngs[name]))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (40_000, 5_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        DataError, match=r"bomb.png' is refused undecoded: Image size \(200000000 pixels\) exceeds limit"
    ) as caught:
        load_image(ImagePart(tmp_path / "bomb.png"))
    assert caught.value.reason == "too_many_pixels"
