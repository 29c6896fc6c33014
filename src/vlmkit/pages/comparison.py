"""The page of two evaluations side by side: differences with their intervals, and the cases that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmkit.evaluation.comparison import Difference, Evaluation
from vlmkit.pages.answers import OUTCOMES, Pictures, pictures_of_page, told_answer, told_case
from vlmkit.pages.document import make_document, write_document


def write_comparison(
    path: Path, first: Evaluation, second: Evaluation, differences: Sequence[Difference], *, max_pictures: int
) -> Path:
    """Write the page; images are copied into it as far as `max_pictures` allows, those of changed cases first.

    They come from the files that records name, and else from the evaluations' own `report.html`.
    """
    pictures = Pictures()
    told = [
        {
            **asdict(one),
            "interval": one.interval,
            "significant": one.significant,
            "cases": _cases(first, second, one.benchmark, pictures, max_pictures),
        }
        for one in differences
    ]
    page = make_document(
        name="compare",
        title=f"{first.directory} and {second.directory}",
        heading="Two evaluations",
        parts=("cases",),
        data={
            "told": {"names": _names(first, second), "outcomes": OUTCOMES},
            "differences": told,
            "pictures": pictures.uris,
        },
        files_too=True,
    )
    return write_document(path, page)


def _names(first: Evaluation, second: Evaluation) -> list[dict[str, Any]]:
    return [{"directory": str(one.directory), "checkpoint": dict(one.checkpoint)} for one in (first, second)]


def _cases(
    first: Evaluation, second: Evaluation, benchmark: str, pictures: Pictures, most: int
) -> list[dict[str, Any]]:
    """Cases of both, those whose score changed with their pictures first."""
    others = second.records[benchmark]
    pairs = [(record, others[case]) for case, record in first.records[benchmark].items() if case in others]
    copies: dict[str, list[str]] = {}
    for one in (second, first) if most else ():
        copies |= pictures_of_page(one.directory / "report.html", benchmark)
    numbers: dict[str, list[int]] = {}
    for record, _ in sorted(pairs, key=lambda pair: pair[0]["score"] == pair[1]["score"]):
        if len(pictures) >= most:
            break
        paths = [Path(str(one)) for one in record.get("media") or ()]
        found = [pictures.number(path) for path in paths if path.suffix and path.is_file()]
        numbers[str(record["id"])] = [number for number in found if number is not None]
        if not found:
            numbers[str(record["id"])] = [pictures.take(uri) for uri in copies.get(str(record["id"]), ())]
    return [
        told_case(one, numbers.get(str(one["id"]), ())) | {"answers": [told_answer(one), told_answer(other)]}
        for one, other in pairs
    ]
