"""Small things that the benchmarks share: media and text as a case, and the forms in which questions are put."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit.conversation import Conversation, ImagePart, Part, TextPart, Turn, VideoPart
from vlmkit.errors import Origin
from vlmkit.evaluation.benchmark import Case

PROTOCOLS = ("lmms-eval", "vlmevalkit")
SINGLE_WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."
LETTER_DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
SELECT_FROM_ABOVE = "Please select the correct answer from the options above. \n"
"""The instruction of VLMEvalKit's multiple choice, blank before the line's end included."""

Content = str | bytes | Path | VideoPart
"""Text, an encoded image, an image's path, a video."""


def ask(
    identifier: str,
    content: Sequence[Content],
    expected: Any,
    *,
    origin: Origin | None = None,
    category: str = "",
    options: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    cluster: str | None = None,
    extra: Mapping[str, Any] | None = None,
    system: str = "",
) -> Case:
    """A case whose user turn is `content`, in this order.

    Args:
        identifier: Unique within the benchmark.
        content: Media and texts.
        expected: The right answer (or answers).
        origin: Where the row stands.
        category: For the table by category.
        options: Text of each option by its letter.
        labels: Further groups for tables.
        cluster: What questions on one image share; None: the hash of the media.
        extra: What else the scorer reads.
        system: Text of a system turn before it.
    """
    parts = tuple(map(_part, content))
    turns = (*([Turn("system", (TextPart(system),))] if system else []), Turn("user", parts))
    media = [part for part in parts if not isinstance(part, TextPart)]
    digests = [_digest(part) for part in media]  # each image is hashed once
    return Case(
        id=identifier,
        conversation=Conversation(turns, origin),
        prompt="".join(part.text for part in parts if isinstance(part, TextPart)),
        expected=expected,
        category=category,
        media=tuple(map(_told, media, digests)),
        options=options or {},
        labels={name: value for name, value in (labels or {}).items() if value},
        cluster=_cluster(digests) if cluster is None else cluster,
        extra=extra or {},
    )


def _part(content: Content) -> Part:
    if isinstance(content, str):
        return TextPart(content)
    return content if isinstance(content, VideoPart) else ImagePart(content)


def _digest(part: ImagePart | VideoPart) -> str:
    """The hash of an image's bytes, or the path of a file (of a video in frames: of its first)."""
    if isinstance(part.source, bytes):
        return hashlib.sha256(part.source).hexdigest()
    return str(part.source if isinstance(part.source, Path) else part.source[0])


def _told(part: ImagePart | VideoPart, digest: str) -> str:
    return f"sha256:{digest[:16]} ({len(part.source)} bytes)" if isinstance(part.source, bytes) else digest


def _cluster(digests: Sequence[str]) -> str:
    """A hash of the media; "" where there are none."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16] if digests else ""


def listed(options: Mapping[str, str]) -> str:
    r"""`A. first\nB. second`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def choose(question: str, options: Mapping[str, str], *, hint: str = "", instruction: str | None = None) -> str:
    """Multiple choice as VLMEvalKit puts it: hint, question, options, instruction.

    Args:
        question: The question.
        options: Text of each option by its letter; empty: neither options nor instruction.
        hint: Before the question; "" where there is none.
        instruction: After the options; None: VLMEvalKit's.
    """
    text = f"Hint: {hint}\n" if hint else ""
    text += f"Question: {question}\n"
    if options:
        text += f"Options:\n{listed(options)}\n{SELECT_FROM_ABOVE if instruction is None else instruction}"
    return text


_PLACEHOLDER = re.compile(r"<image ([1-9])>")


def interleave(text: str, images: Mapping[int, bytes]) -> list[str | bytes]:
    """Put each image where its `<image N>` stands; images that no placeholder names come first.

    A placeholder that names no image stays as text.
    """
    named = {int(number) for number in _PLACEHOLDER.findall(text)}
    content: list[str | bytes] = [image for number, image in sorted(images.items()) if number not in named]
    place = 0
    for found in _PLACEHOLDER.finditer(text):
        if (image := images.get(int(found[1]))) is None:
            continue
        content += [text[place : found.start()], image]
        place = found.end()
    content.append(text[place:])
    return [part for part in content if part]
