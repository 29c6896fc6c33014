"""What was asked and answered, in the form the pages show: cases, and small copies of what they show."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit.conversation import ImagePart
from vlmkit.evaluation.benchmark import BadCase, Case
from vlmkit.evaluation.records import Record
from vlmkit.pages.pictures import thumbnail

OUTCOMES = ("right", "partial", "wrong", "unparsed", "failed")
THUMBNAIL_PIXELS = 288
MAX_TEXT_CHARACTERS = 6000
Source = Path | bytes


class Pictures:
    """Small copies of images, each embedded once however many cases show it.

    Attributes:
        uris: The copies as data URIs.
    """

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._numbers: dict[bytes | Path, int | None] = {}

    def __len__(self) -> int:
        return len(self.uris)

    def number(self, source: Source) -> int | None:
        """Place of an image's copy in `uris`; None where it cannot be read."""
        key = source if isinstance(source, Path) else hashlib.sha256(source).digest()
        if key not in self._numbers:
            uri = thumbnail(source, side_pixels=THUMBNAIL_PIXELS)
            self._numbers[key] = None if uri is None else len(self.uris)
            self.uris += [] if uri is None else [uri]
        return self._numbers[key]

    def take(self, uri: str) -> int:
        """Place of a copy that another page has made."""
        key = hashlib.sha256(uri.encode()).digest()
        if (number := self._numbers.get(key)) is None:
            number = self._numbers[key] = len(self.uris)
            self.uris.append(uri)
        return number


def pictures_of_page(page: Path, benchmark: str) -> dict[str, list[str]]:
    """The small copies of images in an evaluation's `report.html`, by case id; none where there is no such page."""
    try:
        text = page.read_text(encoding="utf-8")
        told, uris = (json.loads(_DATA[name].split(text, 1)[1].split("</script>", 1)[0]) for name in _DATA)
        cases: list[dict[str, Any]] = next(one["cases"] for one in told if one["name"] == benchmark)
        found = {str(case["id"]): [str(uris[number]) for number in case["pictures"]] for case in cases}
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return {}
    return {case: kept for case, copies in found.items() if (kept := [one for one in copies if one.startswith(_COPY)])}


_DATA = {name: re.compile(f'<script type="application/json" id="data-{name}">') for name in ("benchmarks", "pictures")}
_COPY = "data:image/"


def embed(
    pictures: Pictures, records: Sequence[Record], cases: Iterable[Case | BadCase], *, most: int
) -> dict[str, list[int]]:
    """Copies of the images of as many cases as `most` allows, those that are not right first.

    Args:
        pictures: Where they go; `most` counts all that are there.
        records: The answers, in the order of the data.
        cases: The benchmark's, for their images.
        most: Copies at most.

    Returns:
        Numbers of the copies, by case id.
    """
    if len(pictures) >= most:
        return {}
    wanted = sorted(records, key=lambda record: record["outcome"] == "right")
    chosen = {str(record["id"]) for record in wanted[: most - len(pictures)]}
    found: dict[str, list[int]] = {}
    for case in cases:
        if not isinstance(case, Case) or case.id not in chosen:
            continue
        sources = [part.source for part in case.conversation.media if isinstance(part, ImagePart)]
        numbers = [pictures.number(source) for source in sources if len(pictures) < most]
        found[case.id] = [number for number in numbers if number is not None]
        if len(found) == len(chosen) or len(pictures) >= most:
            break
    return found


def files_of(record: Record) -> list[str]:
    """Addresses of the images that a record names and that are files here."""
    paths = [Path(str(one)) for one in record.get("media") or ()]
    return [path.resolve().as_uri() for path in paths if path.suffix and path.is_file()]


def as_text(value: Any) -> str:
    """An expected or given answer as people read it; a list of answers one a line, each once."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _shortened(value)
    if isinstance(value, Mapping | list | tuple):
        if not isinstance(value, Mapping) and all(isinstance(one, str | int | float) for one in value):
            return _shortened("\n".join(dict.fromkeys(map(str, value))))
        return _shortened(json.dumps(value, ensure_ascii=False, default=str))
    return _shortened(str(value))


def finite(value: Any) -> float | None:
    """A number that JSON can hold."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def told_case(record: Record, pictures: Sequence[int]) -> dict[str, Any]:
    """What is shown of the question of a record."""
    return {
        "id": str(record["id"]),
        "prompt": _shortened(str(record.get("prompt") or "").strip()),
        "expected": as_text(record.get("expected")),
        "category": str(record.get("category") or ""),
        "media": [str(one) for one in record.get("media") or ()],
        "pictures": list(pictures),
        "files": [] if pictures else files_of(record),
    }


def told_answer(record: Record) -> dict[str, Any]:
    """What is shown of the answer of a record."""
    outcome = record.get("outcome")
    judgement = record.get("judgement") or {}
    return {
        "answer": _shortened(str(record.get("answer") or "")),
        "extracted": as_text(record.get("extracted")),
        "score": finite(record.get("score")),
        "outcome": outcome if outcome in OUTCOMES else "failed",
        "tokens": finite(record.get("tokens")),
        "seconds": finite(record.get("seconds")),
        "error": str(record.get("error") or judgement.get("error") or ""),
        "judged": _shortened("\n".join(map(str, judgement.get("replies") or ()))),
    }


def _shortened(text: str) -> str:
    more = len(text) - MAX_TEXT_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_TEXT_CHARACTERS]}\n... and {more} more characters"
