"""What a row says, free of tensors and libraries: turns of text, images and videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlmkit.errors import Origin

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text, exactly as written; special tokens typed in it stay plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One still image.

    Attributes:
        source: Path of an image file, or the bytes of one.
    """

    source: Path | bytes


@dataclass(frozen=True, slots=True)
class VideoPart:
    """One video.

    Attributes:
        source: Path of a video file, or the paths of its frames in order.
    """

    source: Path | tuple[Path, ...]


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said, in parts."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one row, and where the row stands."""

    turns: tuple[Turn, ...]
    origin: Origin | None = None

    @property
    def media(self) -> tuple[ImagePart | VideoPart, ...]:
        """Images and videos in the order in which they are said."""
        return tuple(part for turn in self.turns for part in turn.parts if not isinstance(part, TextPart))


__all__ = ["Conversation", "ImagePart", "Origin", "Part", "Role", "TextPart", "Turn", "VideoPart"]
