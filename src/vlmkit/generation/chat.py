"""A conversation that goes on: media and questions in, answers out, everything said so far in front of the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from vlmkit.conversation import Conversation, ImagePart, Part, TextPart, Turn, VideoPart
from vlmkit.errors import DataError
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.generation.streaming import Told, stream_answer
from vlmkit.processing.encode import layout


class Chat:
    """What was said so far.

    Args:
        backend: Who answers.
        max_new_tokens: Most tokens of an answer.
        system: What the model is told before everything; None: nothing.
    """

    def __init__(self, *, backend: HFBackend, max_new_tokens: int, system: str | None = None) -> None:
        self.backend = backend
        self.max_new_tokens = max_new_tokens
        self._system = (Turn("system", (TextPart(system),)),) if system else ()
        self.clear()

    def clear(self) -> None:
        """Forget what was said, media too."""
        self.turns: tuple[Turn, ...] = self._system
        self.pending: tuple[ImagePart | VideoPart, ...] = ()

    def attach(self, part: ImagePart | VideoPart) -> int:
        """Put an image or a video before the next question.

        Returns:
            How many visual tokens it will be.

        Raises:
            DataError: it cannot be read; it is not attached.
        """
        place = layout(part, self.backend.processor)
        self.pending = (*self.pending, part)
        return place.num_patches // self.backend.processor.geometry.merge_size**2

    def ask(self, text: str, *, stop: threading.Event | None = None) -> Iterator[str | Told]:
        """Ask, and stream the answer as `stream_answer` does. An answer that was stopped counts as said.

        Raises:
            DataError: a medium cannot be read; nothing counts as said then.
        """
        parts: tuple[Part, ...] = (*self.pending, TextPart(text))
        asked = (*self.turns, Turn("user", parts))
        for item in stream_answer(self.backend, Conversation(asked), max_new_tokens=self.max_new_tokens, stop=stop):
            if isinstance(item, Told):
                self.turns, self.pending = (*asked, Turn("assistant", (TextPart(item.text),))), ()
            yield item


def medium(path: Path) -> ImagePart | VideoPart:
    """An image where the file's name says so or nothing else, a video where it says that.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r}: there is no such file. Check the path.", reason="missing_media")
    return VideoPart(path) if path.suffix.lower() in VIDEO_SUFFIXES else ImagePart(path)


VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""Names of files that are read as videos."""
