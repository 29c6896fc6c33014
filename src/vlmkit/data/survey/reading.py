"""One pass over the rows' texts: which rows repeat others, where boxes are, what was typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from vlmkit.conversation import Conversation, ImagePart, TextPart
from vlmkit.data.fields import unread_fields
from vlmkit.data.index import Index
from vlmkit.data.manifest import parse_row
from vlmkit.data.survey.boxes import HINTS, Box, find_boxes, frame_of
from vlmkit.errors import DataError
from vlmkit.processing.media import image_size
from vlmkit.processing.processor import Processor

MAX_LISTED = 5
"""Rows of each kind that are named."""
_MAX_FRAMED_ROWS = 200
_NOTHING = 0
"""Hash of what a row does not have."""
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Rows that repeat an earlier one in some way.

    Attributes:
        num_rows: How many.
        first: The first few: the row, and the earlier one.
    """

    num_rows: int
    first: tuple[tuple[int, int], ...]


@dataclass(kw_only=True)
class BoxTally:
    """Boxes met in the rows.

    Attributes:
        num_rows: Rows with boxes.
        num_boxes: Boxes in them.
        num_wrong_rows: Rows with a box that is wrong in Qwen3-VL's frame, or with a place for one that holds none.
        first: The first few of these: the row, and what is wrong.
        framed: Some rows with boxes and one image, from which the frame is told.
    """

    num_rows: int = 0
    num_boxes: int = 0
    num_wrong_rows: int = 0
    first: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    framed: list[tuple[int, ImagePart, list[Box]]] = field(default_factory=list[tuple[int, ImagePart, list[Box]]])

    def add(self, row: int, conversation: Conversation) -> None:
        """Look at the boxes of a row."""
        found: list[Box] = []
        fault: str | None = None
        for text in _texts(conversation):
            boxes, broken = find_boxes(text)
            found += boxes
            fault = fault or (f"{broken!r} holds no four numbers" if broken else None)
        if not found and fault is None:
            return
        self.num_rows += 1
        self.num_boxes += len(found)
        fault = fault or next((box.fault for box in found if box.fault), None)
        if fault:
            self.num_wrong_rows += 1
            if len(self.first) < MAX_LISTED:
                self.first.append((row, fault))
        media = conversation.media
        if found and len(media) == 1 and isinstance(media[0], ImagePart) and len(self.framed) < _MAX_FRAMED_ROWS:
            self.framed.append((row, media[0], found))

    def frame(self) -> str | None:
        """In what frame the coordinates seem to be; see `frame_of`. Reads headers of images."""
        sized: list[tuple[Box, int, int]] = []
        for _, image, boxes in self.framed:
            try:
                height, width = image_size(image)
            except DataError:  # told where the row was counted
                continue
            sized += [(box, height, width) for box in boxes]
        return frame_of(sized)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the texts of some rows tell.

    Attributes:
        same_content: Rows that say and show what an earlier row does; the id aside.
        same_question: Rows with media that ask what an earlier row asks of the same media, and answer otherwise.
        same_id: Rows whose id an earlier row of the same source has.
        boxes: Grounding boxes.
        num_typed: Rows in whose text somebody typed a special token; it is trained as plain text.
        first_typed: The first few of them: the row, and the token.
        unread: Rows by fields that are not read, most frequent first.
    """

    same_content: Repeats
    same_question: Repeats
    same_id: Repeats
    boxes: BoxTally
    num_typed: int
    first_typed: tuple[tuple[int, str], ...]
    unread: dict[str, int]


def read_rows(
    index: Index, rows: NDArray[np.int64], processor: Processor, seen: Iterable[int] | None = None
) -> Reading:
    """Read the texts of rows that can be used.

    Args:
        index: Where they are.
        rows: Which, ascending.
        processor: Whose special tokens are looked for.
        seen: The same rows as an iterable that shows how far it is.
    """
    content, question, ident = (np.zeros(len(rows), dtype=np.uint64) for _ in range(3))
    boxes, typed = BoxTally(), list[tuple[int, str]]()
    num_typed, unread = 0, Counter[str]()
    special = processor.special_tokens
    for place, row in enumerate(seen if seen is not None else rows.tolist()):
        text = index.read(row)
        source = int(index.source[row])
        raw: Any = orjson.loads(text)
        conversation = parse_row(
            raw,
            origin=index.origin(row),
            root=index.sources[source].root,
            allow_absolute_paths=index.allow_absolute_paths,
        )
        unread.update(unread_fields(raw))
        content[place], question[place] = _hashes(conversation)
        ident[place] = _hash_of_id(cast("dict[str, object]", raw).get("id"), source)
        if any(hint in text for hint in HINTS):
            boxes.add(row, conversation)
        if b"<|" in text and (match := special.search("\n".join(_texts(conversation)))):
            num_typed += 1
            if len(typed) < MAX_LISTED:
                typed.append((row, match[0]))
    same_content, earlier = repeats(content)
    fresh = np.ones(len(rows), dtype=np.bool_)
    fresh[same_content] = False
    question[~fresh] = _NOTHING
    return Reading(
        same_content=_told(rows, same_content, earlier),
        same_question=_told(rows, *repeats(question)),
        same_id=_told(rows, *repeats(ident)),
        boxes=boxes,
        num_typed=num_typed,
        first_typed=tuple(typed),
        unread=dict(sorted(unread.items(), key=lambda item: (-item[1], item[0]))),
    )


def repeats(hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places whose hash an earlier place has, ascending, and the first place that has it; 0 is no hash."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.concatenate(([False], ordered[1:] == ordered[:-1])) & (ordered != _NOTHING)
    leaders = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    places, first = order[same], order[leaders[same]]
    ascending = np.argsort(places, kind="stable")
    return places[ascending].astype(np.int64), first[ascending].astype(np.int64)


def _told(rows: NDArray[np.int64], places: NDArray[np.int64], first: NDArray[np.int64]) -> Repeats:
    pairs = zip(rows[places[:MAX_LISTED]].tolist(), rows[first[:MAX_LISTED]].tolist(), strict=True)
    return Repeats(num_rows=len(places), first=tuple(pairs))


def _texts(conversation: Conversation) -> list[str]:
    return [part.text for turn in conversation.turns for part in turn.parts if isinstance(part, TextPart)]


def _hashes(conversation: Conversation) -> tuple[int, int]:
    """Of all that is said and shown, and of what comes before the first answer (0 where nothing is shown)."""
    digest = xxhash.xxh3_64()
    question = _NOTHING
    shown = bool(conversation.media)
    for turn in conversation.turns:
        if turn.role == "assistant" and shown and question == _NOTHING:
            question = digest.intdigest()
        digest.update(f"\x00{turn.role}".encode())
        for part in turn.parts:
            said = part.text if isinstance(part, TextPart) else f"\x02{part.source}"
            digest.update(f"\x01{said}".encode("utf-8", "surrogatepass"))
    return digest.intdigest(), question


def _hash_of_id(ident: object, source: int) -> int:
    if ident is None or ident == "":
        return _NOTHING
    return xxhash.xxh3_64_intdigest(f"{source}\x00{ident}".encode("utf-8", "surrogatepass"))
