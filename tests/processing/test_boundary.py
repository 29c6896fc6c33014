"""Whatever is wrong with a medium becomes a DataError that names it; a disk that fails for a moment is asked again."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vlmkit.conversation import ImagePart, VideoPart
from vlmkit.errors import DataError
from vlmkit.generation.messages import encoded_image
from vlmkit.pages.pictures import thumbnail
from vlmkit.processing.images import FORMATS
from vlmkit.processing.media import image_orientation, image_size, load_frames, load_image, video_header
from vlmkit.processing.readers import AnimationReader, PyavReader, ReadError
from vlmkit.processing.retries import NUM_READS
from vlmkit.processing.video import VideoReading

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"


def refused(part: ImagePart, read: Callable[[ImagePart], object] = image_size) -> DataError:
    with pytest.raises(DataError) as caught:
        read(part)
    assert caught.value.reason in ("unreadable_media", "too_many_pixels")
    return caught.value


def drawn(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **settings: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **settings)
    return buffer.getvalue()


def test_postscript_under_the_name_of_a_jpeg_starts_no_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr(subprocess, "check_call", lambda *arguments, **_: started.append(arguments))
    path = tmp_path / "a.jpg"
    path.write_bytes(POSTSCRIPT)
    with Image.open(path) as image:  # Pillow by itself would hand it on
        assert image.format == "EPS"
    for read in (image_size, image_orientation, load_image, encoded_image):
        assert "a.jpg' cannot be" in str(refused(ImagePart(path), read))
        assert "it holds PostScript; the formats read are AVIF, BMP, " in str(refused(ImagePart(path), read))
    assert thumbnail(path, side_pixels=20) is None
    assert not started


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b'  <svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "an MP4 video"),
        (b"", "the file is empty"),
        (bytes(4096), "zeros"),
        (b"hello there", r"no known format (first bytes b'hello there')"),
    ],
)
def test_another_format_is_named(content, found):
    assert found in str(refused(ImagePart(content)))


@pytest.mark.parametrize("kind", ["ICO", "PCX", "SGI", "TGA", "DDS"])
def test_a_format_that_is_not_listed_is_refused(kind):
    refused(ImagePart(drawn(kind)))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_listed_format_is_read(kind):
    content = drawn(kind)
    assert image_size(ImagePart(content)) == (30, 40)
    assert load_image(ImagePart(content)).shape == (3, 30, 40)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@cache
def odd_files() -> dict[str, bytes]:
    """Files that Pillow answers with another kind of exception each."""
    png = drawn()
    pixels = png.index(b"IDAT")
    head, tail = png[: pixels + 30], png[-12:]
    jpeg = drawn("JPEG", dpi=(72, 72), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    return {
        "broken EXIF": jpeg.replace(b"Exif\0\0MM\0*", b"Exif\0\0XX\0*"),
        "cut within, text behind": head + chunk(b"tEXt", b"note\0hello") + tail,
        "late zTXt bomb": png[:-12] + chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 27))) + tail,
        "damaged AVIF": drawn("AVIF")[:150] + os.urandom(200),
        "cut AVIF": drawn("AVIF")[:-100],
    }


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_are_refused_by_name(tmp_path, name):
    path = tmp_path / "odd.img"
    path.write_bytes(odd_files()[name])
    assert "odd.img' cannot be decoded (" in str(refused(ImagePart(path), load_image))
    assert thumbnail(path, side_pixels=20) is None


def test_broken_exif_is_said_to_be_that():
    error = refused(ImagePart(odd_files()["broken EXIF"]))
    assert "its EXIF data, which say which way is up, are broken: not a TIFF file" in str(error)


def test_a_name_too_long_for_the_file_system(tmp_path):
    part = ImagePart(tmp_path / ("long" * 80 + ".jpg"))
    assert "cannot be read (File name too long). Check" in str(refused(part))
    with pytest.raises(DataError, match=r"video .*cannot be read \(File name too long\)"):
        video_header(VideoPart(part.source), VideoReading(timeout_seconds=None))


def test_a_directory_that_may_not_be_read(tmp_path, monkeypatch):
    part, stat = ImagePart(tmp_path / "closed" / "a.png"), os.stat

    def denied(path, *arguments, **settings):
        if "closed" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **settings)

    monkeypatch.setattr(os, "stat", denied)  # the superuser is denied nothing, so it is not asked for real
    assert "closed/a.png' cannot be read (Permission denied). Check" in str(refused(part))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("read", [image_size, load_image, encoded_image])
def test_a_disk_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch, number, read):
    path = tmp_path / "a.png"
    path.write_bytes(drawn())
    failing, opens, pauses = [2], builtins.open, []

    def fails(file, *arguments, **settings):
        if str(file) == str(path) and failing[0]:
            failing[0] -= 1
            raise OSError(number, os.strerror(number), str(file))
        return opens(file, *arguments, **settings)

    monkeypatch.setattr(builtins, "open", fails)
    monkeypatch.setattr("vlmkit.processing.retries.time.sleep", pauses.append)
    read(ImagePart(path))
    assert pauses == [0.1, 0.5]
    failing[0] = 99
    error = refused(ImagePart(path), read)
    assert (
        f"a.png' cannot be read ({os.strerror(number)}, in {NUM_READS} attempts). Check the file and its disk"
        in str(error)
    )
    assert failing[0] == 99 - NUM_READS


def test_another_error_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmkit.processing.retries.time.sleep", lambda _: pytest.fail("asked again"))
    (tmp_path / "a.png").write_bytes(drawn()[:100])
    refused(ImagePart(tmp_path / "a.png"), load_image)


def test_a_video_on_a_disk_that_fails_for_a_moment_is_asked_again(clip, monkeypatch):
    failing, header, pauses = [1], PyavReader.header, []

    def fails(self, path):
        if failing[0]:
            failing[0] -= 1
            raise ReadError("[Errno 5] Input/output error: 'drawn.mp4'")
        return header(self, path)

    monkeypatch.setattr(PyavReader, "header", fails)
    monkeypatch.setattr("vlmkit.processing.retries.time.sleep", pauses.append)
    reading = VideoReading(reader="pyav", timeout_seconds=None)
    assert video_header(VideoPart(clip), reading).num_frames == 24
    assert pauses == [0.1]


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), KeyError(5), MemoryError()])
def test_whatever_a_library_of_videos_raises_is_a_bad_video(clip, monkeypatch, error):
    def fails(self, path):
        raise error

    monkeypatch.setattr(PyavReader, "header", fails)
    with pytest.raises(DataError, match=rf"drawn\.mp4' cannot be read as a video \({type(error).__name__}"):
        video_header(VideoPart(clip), VideoReading(reader="pyav", timeout_seconds=None))


def clip_bytes(container: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(8):
            picture = np.full((48, 64, 3), 25 * number, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Sound files of every format, in the variants whose decoders differ; videos by their suffix."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9286: b"comment"}
    png = drawn(exif=exif)
    late = chunk(b"tEXt", b"note\0hello") + chunk(b"zTXt", b"more\0\0" + zlib.compress(b"hello" * 50))
    frames = [Image.new("RGB", (40, 30), (90 * number, 0, 200)) for number in range(3)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:], duration=80)
    return {
        **{kind: drawn(kind) for kind in FORMATS},
        "JPEG exif": drawn("JPEG", exif=exif),
        "JPEG progressive": drawn("JPEG", progressive=True),
        "JPEG CMYK": drawn("JPEG", "CMYK"),
        "PNG exif": png,
        "PNG late text": png[:-12] + late + png[-12:],
        "PNG palette": drawn("PNG", "P", transparency=3),
        "PNG RGBA": drawn("PNG", "RGBA"),
        "TIFF LZW": drawn("TIFF", compression="tiff_lzw"),
        "TIFF deflate": drawn("TIFF", "RGBA", compression="tiff_adobe_deflate"),
        "TIFF JPEG": drawn("TIFF", compression="jpeg"),
        "WEBP lossless": drawn("WEBP", "RGBA", lossless=True, exif=exif),
        "AVIF RGBA": drawn("AVIF", "RGBA", exif=exif),
        "GIF animated": animated.getvalue(),
        "video.gif": animated.getvalue(),
        "video.mp4": clip_bytes("mp4"),
        "video.mkv": clip_bytes("matroska"),
    }


def mutated(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A file damaged as disks, downloads and attackers do."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = min(int(rng.expovariate(1 / 150)), len(data) - 1) if rng.random() < 0.6 else rng.randrange(len(data))
        kind = rng.randrange(8)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x01"])
        elif kind == 2:
            data[place : place + rng.randrange(1, 64)] = b""
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 4:
            del data[max(place, 1) :]
        elif kind == 5:
            data[place : place + 64] = data[place : place + 64][::-1]
        elif kind == 6:
            other = rng.choice(others)
            data[place:] = other[place:]
        else:
            data[place : place + 256] = bytes(256)
        if len(data) < 2:
            break
    return bytes(data)


def read_all(name: str, content: bytes, folder: Path) -> None:
    """Everything that is ever read of a medium."""
    if name.startswith("video"):
        path, reading = folder / name, VideoReading(reader="pyav", timeout_seconds=30.0)
        path.write_bytes(content)
        header = video_header(VideoPart(path), reading)
        assert load_frames(VideoPart(path), [header.num_frames - 1], reading).shape[:2] == (1, 3)
        return
    thumbnail(content, side_pixels=16)
    size = image_size(ImagePart(content))
    encoded_image(ImagePart(content))
    assert tuple(load_image(ImagePart(content)).shape) == (3, *size)


NUM_MUTATED = 5_400


@pytest.mark.parametrize(
    "number", [8, pytest.param(NUM_MUTATED // 27, marks=pytest.mark.slow)], ids=["a quick share", "all"]
)
def test_no_other_exception_leaves_the_boundary(tmp_path, number):
    """What is read is consistent, what is not is a DataError: of thousands of damaged files of every format."""
    files = seeds()
    assert number == 8 or number * len(files) >= 5_000
    rng, fates = random.Random(number), dict.fromkeys(files, 0)
    for name, content in files.items():
        for _ in range(number):
            damaged = mutated(content, rng, list(files.values()))
            try:
                read_all(name, damaged, tmp_path)
            except DataError as caught:
                error = caught
            else:
                continue
            assert error.reason in ("unreadable_media", "too_many_pixels", "aspect_ratio", "empty_media")
            assert str(error).endswith((".", ".)"))
            fates[name] += 1
    assert number == 8 or all(0 < refused < number for refused in fates.values()), fates


def test_an_animation_is_read_as_its_frames(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(seeds()["video.gif"])
    header = AnimationReader().header(path)
    assert (header.num_frames, header.fps, header.height, header.width) == (3, 12.5, 30, 40)
    for bad in (b"", POSTSCRIPT):
        path.write_bytes(bad)
        with pytest.raises(ReadError, match="it holds "):
            AnimationReader().header(path)
