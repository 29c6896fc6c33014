"""Sizes of images from their headers, and pixels as PIL has them, however they are decoded."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile, PngInfo
from torchvision.transforms.v2.functional import pil_to_tensor

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


def by_pil(path: Path) -> torch.Tensor:
    """What PIL makes of a file: the reference."""
    with Image.open(path) as image:
        return pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))


def detailed(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Colours, edges and grain: what subsampling and rounding show on."""
    generator = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    grain = generator.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("size", [(640, 427), (33, 57), (17, 16), (1, 3), (200, 1)], ids=str)
def test_a_jpeg_is_decoded_to_the_pixels_of_pil(tmp_path, size, progressive, subsampling):
    path = tmp_path / "a.jpg"
    detailed(*size).save(path, quality=88, subsampling=subsampling, progressive=progressive)
    assert torch.equal(load_image(ImagePart(path)), by_pil(path))
    assert torch.equal(load_image(ImagePart(path.read_bytes())), by_pil(path))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_and_colour_space_is_as_pil_has_it(tmp_path, orientation, mode):
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = orientation
    detailed(45, 31, mode).save(path, quality=92, exif=exif)
    image = load_image(ImagePart(path))
    assert torch.equal(image, by_pil(path))
    assert tuple(image.shape[1:]) == image_size(ImagePart(path))


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "L", "RGB"])
def test_other_kinds_are_left_to_pil(tmp_path, mode):
    path = tmp_path / "a.png"
    detailed(40, 30).convert(mode).save(path)
    assert torch.equal(load_image(ImagePart(path)), by_pil(path))


def test_photographs_are_decoded_to_the_pixels_of_pil():
    folder = Path(os.environ.get("VLMKIT_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "images"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder} (VLMKIT_SHARED)")
    files = sorted(folder.glob("*.jp*g"))
    assert files
    for path in files:
        assert torch.equal(load_image(ImagePart(path)), by_pil(path)), path


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_jpeg_that_is_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "cut.jpg"
    detailed(300, 200).save(path, quality=90)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"cut\.jpg' cannot be decoded .*truncated") as caught:
        load_image(ImagePart(path))
    assert caught.value.reason == "unreadable_media"


def test_a_worker_has_one_thread():
    from vlmkit.data.workers import settle_worker

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        settle_worker(3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
