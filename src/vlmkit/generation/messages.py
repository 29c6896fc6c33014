"""Conversations as messages of the OpenAI-compatible protocol: media as data URLs."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vlmkit.conversation import Conversation, ImagePart, Part, TextPart, Turn, VideoPart
from vlmkit.errors import DataError
from vlmkit.processing.media import (
    load_frames,
    load_image,
    media_name,
    opened,
    orientation,
    read_medium,
    video_header,
)
from vlmkit.processing.video import VideoReading

VideoForm = Literal["frames", "video_url"]
VIDEO_FORMS = ("frames", "video_url")
_SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_FRAME_QUALITY = 95


def to_messages(
    conversation: Conversation, *, video: VideoForm, num_frames: int, reading: VideoReading
) -> list[dict[str, Any]]:
    """The turns of a conversation, parts in their order; a turn of text alone is sent as a plain text.

    An upright RGB or grey JPEG, PNG or WebP is sent byte for byte; any other image as a PNG of the pixels that we see.

    Args:
        conversation: What was said.
        video: `frames`: so many frames as images, which any server takes, but without their times; `video_url`: the file
            itself, from which a server that knows videos (vLLM, SGLang) takes frames as it likes.
        num_frames: Frames of a video.
        reading: How videos are read.

    Raises:
        DataError: a medium cannot be read, or not be sent in this form. With the conversation's origin.
    """
    try:
        return [_message(turn, video, num_frames, reading) for turn in conversation.turns]
    except DataError as error:
        raise error.at(conversation.origin) if conversation.origin else error from error


def _message(turn: Turn, video: VideoForm, num_frames: int, reading: VideoReading) -> dict[str, Any]:
    if all(isinstance(part, TextPart) for part in turn.parts):
        return {"role": turn.role, "content": "".join(part.text for part in turn.parts if isinstance(part, TextPart))}
    content = [told for part in turn.parts for told in _told(part, video, num_frames, reading)]
    return {"role": turn.role, "content": content}


def _told(part: Part, video: VideoForm, num_frames: int, reading: VideoReading) -> Iterator[dict[str, Any]]:
    if isinstance(part, TextPart):
        yield {"type": "text", "text": part.text}
    elif isinstance(part, ImagePart):
        yield _image(*encoded_image(part))
    elif video == "video_url":
        yield {"type": "video_url", "video_url": {"url": _data_url(*_encoded_video(part))}}
    else:
        for frame in _encoded_frames(part, num_frames, reading):
            yield _image("image/jpeg", frame)


def encoded_image(part: ImagePart) -> tuple[str, bytes]:
    """MIME type and bytes of an image as it is sent.

    Raises:
        DataError: it cannot be read.
    """
    from torchvision.transforms.v2.functional import to_pil_image

    content, kind = read_medium(part, lambda: _content(part))
    if kind:
        return kind, content
    buffer = io.BytesIO()
    to_pil_image(load_image(part)).save(buffer, "PNG")
    return "image/png", buffer.getvalue()


def _content(part: ImagePart) -> tuple[bytes, str | None]:
    """Bytes of an image, and its MIME type where any server must see the pixels that we see."""
    with opened(part) as image:
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data and getattr(image, "n_frames", 1) == 1
        kind = _SENT_AS_THEY_ARE.get(image.format or "") if plain and orientation(image) == 1 else None
    return part.source.read_bytes() if isinstance(part.source, Path) else part.source, kind


def _encoded_frames(part: VideoPart, num_frames: int, reading: VideoReading) -> Iterator[bytes]:
    """Frames at the middles of equal stretches, as JPEG."""
    from torchvision.transforms.v2.functional import to_pil_image

    total = video_header(part, reading).num_frames
    count = min(total, num_frames)
    indices = [int((number + 0.5) * total / count) for number in range(count)]
    for frame in load_frames(part, indices, reading):
        buffer = io.BytesIO()
        to_pil_image(frame).save(buffer, "JPEG", quality=_FRAME_QUALITY)
        yield buffer.getvalue()


def _encoded_video(part: VideoPart) -> tuple[str, bytes]:
    if not isinstance(part.source, Path):
        raise DataError(
            f"video {media_name(part)!r} is a list of frames, which video_url cannot carry. Set backend.video=frames.",
            reason="unsendable_media",
        )
    path = part.source
    return mimetypes.guess_type(path.name)[0] or "video/mp4", read_medium(part, lambda: _video_content(path))


def _video_content(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"video {str(path)!r} not found. Check the path, and data_root.", reason="missing_media")
    return path.read_bytes()


def _image(kind: str, content: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _data_url(kind, content)}}


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
