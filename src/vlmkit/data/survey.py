"""What a data set looks like before it is trained on: duplicates, boxes, lengths, and media that do not open."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from vlmkit.conversation import ImagePart
from vlmkit.data.dataset import PackDataset
from vlmkit.data.index import Index
from vlmkit.errors import DataError
from vlmkit.processing.media import image_orientation

MAX_SHOWN = 5
"""Rows that are named of each kind of finding."""
BOX_SCALE = 1000
"""Qwen3-VL tells places in thousandths of the image's width and height."""
_BOX = re.compile(
    rb"(?:bbox_2d|bbox|box_2d)\W{1,12}?(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)"
    rb"|<box>\s*\(?(-?[\d.]+)\s*,\s*(-?[\d.]+)\)?\s*,\s*\(?(-?[\d.]+)\s*,\s*(-?[\d.]+)\)?"
)
_MEDIA_KEYS = ("image", "images", "video", "videos")
Seen = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that share a property.

    Attributes:
        num_rows: How many rows are like an earlier one, or have the fault.
        examples: The first of them in words, each with its file and row.
    """

    num_rows: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RowSurvey:
    """What reading every row once tells beyond its counts.

    Attributes:
        same: Rows with the media and conversation of an earlier row.
        same_question: Rows with the media and first question of an earlier row, but another conversation.
        same_id: Rows whose `id` an earlier row of the same manifest has.
        boxes_off_scale: Rows with boxes beyond 0 to 1000.
        boxes_reversed: Rows with boxes that end before they begin.
        num_boxed: Rows with boxes.
    """

    same: Group
    same_question: Group
    same_id: Group
    boxes_off_scale: Group
    boxes_reversed: Group
    num_boxed: int


def survey_rows(index: Index, *, seen: Seen = lambda _: None) -> RowSurvey:
    """Read every usable row of an index once. Memory: three hashes a row.

    Args:
        index: The rows.
        seen: Told after each row how many rows were read.
    """
    rows = np.flatnonzero(index.verdict == 0)
    content, question, name = (np.zeros(len(rows), dtype=np.uint64) for _ in range(3))
    off_scale: list[int] = []
    backwards: list[int] = []
    boxed = 0
    for place, row in enumerate(rows.tolist()):
        text = index.read(row)
        parsed = cast(dict[str, Any], orjson.loads(text))
        media = [parsed.get(key) for key in _MEDIA_KEYS]
        turns = parsed.get("conversations")
        content[place] = _hash([media, turns])
        asked = next((turn["value"] for turn in cast(list[Any], turns) if turn.get("from") in ("human", "user")), None)
        question[place] = _hash([media, asked])
        if (told := parsed.get("id")) is not None:
            name[place] = _hash([int(index.source[row]), told])
        if (b"box" in text) and (boxes := _boxes(text)):
            boxed += 1
            if any(max(box) > BOX_SCALE or min(box) < 0 for box in boxes):
                off_scale.append(row)
            if any(box[2] < box[0] or box[3] < box[1] for box in boxes):
                backwards.append(row)
        seen(1)
    same = _repeats(content)
    same_question = _repeats(question, but_not=same)
    return RowSurvey(
        same=_group(index, rows, same),
        same_question=_group(index, rows, same_question),
        same_id=_group(index, rows, _repeats(name, but_zero=True)),
        boxes_off_scale=_named(index, off_scale),
        boxes_reversed=_named(index, backwards),
        num_boxed=boxed,
    )


@dataclass(frozen=True, kw_only=True)
class MediaSurvey:
    """What encoding a sample of the rows, pixels included, found.

    Attributes:
        num_rows: Rows that were encoded.
        faults: Rows that cannot be encoded though their headers are sound, or whose counts differ.
        num_turned: Images that EXIF says to turn.
        num_images: Images looked at.
    """

    num_rows: int
    faults: Group
    num_turned: int
    num_images: int


def survey_media(
    dataset: PackDataset, rows: NDArray[np.int64], *, num_rows: int | None, seen: Seen = lambda _: None
) -> MediaSurvey:
    """Encode rows as training would, spread evenly over those with media, pixels included.

    Args:
        dataset: Encodes a row and compares it with its counts.
        rows: Those that would be trained on.
        num_rows: How many to encode; None: all.
        seen: Told after each row.
    """
    index = dataset.index
    with_media = rows[index.num_media[rows] > 0]
    count = len(with_media) if num_rows is None else min(num_rows, len(with_media))
    chosen = with_media[np.linspace(0, len(with_media) - 1, count).astype(np.int64)] if count else with_media[:0]
    faults: list[str] = []
    turned = images = 0
    for row in chosen.tolist():
        try:
            dataset.sample(row)
            for part in index.conversation(row).media:
                if isinstance(part, ImagePart):
                    images += 1
                    turned += image_orientation(part) != 1
        except DataError as error:
            faults.append(str(error.at(index.origin(row))))
        seen(1)
    told = Group(num_rows=len(faults), examples=tuple(faults[:MAX_SHOWN]))
    return MediaSurvey(num_rows=len(chosen), faults=told, num_turned=turned, num_images=images)


def histogram(values: NDArray[Any], *, num_bins: int = 12) -> list[tuple[int, int, int]]:
    """Bins of equal width over the values: first and last value of each, and how many lie in it.

    The last bin is open: it takes the longest hundredth, so that one giant does not flatten the rest.
    """
    if not len(values):
        return []
    low, high = int(values.min()), int(np.percentile(values, 99))
    width = max(1, -(-(high - low + 1) // num_bins))
    edges = [low + width * step for step in range(num_bins + 1) if low + width * step <= high] + [high + 1]
    edges = sorted(set(edges))
    counts, _ = np.histogram(np.minimum(values, high), bins=np.array(edges, dtype=np.float64))
    ends = [edge - 1 for edge in edges[1:]]
    ends[-1] = int(values.max())
    return [(start, end, int(count)) for start, end, count in zip(edges[:-1], ends, counts, strict=True)]


def _hash(value: object) -> int:
    return xxhash.xxh3_64_intdigest(orjson.dumps(value)) or 1


def _boxes(text: bytes) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    for match in _BOX.finditer(text):
        try:
            found.append(tuple(float(number) for number in match.groups() if number is not None))
        except ValueError:  # such as 1.2.3: no box
            continue
    return found


def _repeats(
    hashes: NDArray[np.uint64], *, but_not: NDArray[np.int64] | None = None, but_zero: bool = False
) -> NDArray[np.int64]:
    """(n, 2) places that have the hash of an earlier place, and that earlier place."""
    if not len(hashes):
        return np.empty((0, 2), dtype=np.int64)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    places = np.flatnonzero((earlier != np.arange(len(hashes))) & ((hashes != 0) | (not but_zero)))
    if but_not is not None:
        places = places[~np.isin(places, but_not[:, 0])]
    return np.stack((places, earlier[places]), axis=1)


def _group(index: Index, rows: NDArray[np.int64], pairs: NDArray[np.int64]) -> Group:
    shown = [f"{index.origin(int(rows[one]))} as {index.origin(int(rows[other]))}" for one, other in pairs[:MAX_SHOWN]]
    return Group(num_rows=len(pairs), examples=tuple(shown))


def _named(index: Index, rows: list[int]) -> Group:
    return Group(num_rows=len(rows), examples=tuple(str(index.origin(row)) for row in rows[:MAX_SHOWN]))


__all__ = ["Group", "MediaSurvey", "RowSurvey", "histogram", "survey_media", "survey_rows"]
