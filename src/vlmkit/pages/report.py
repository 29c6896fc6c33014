"""The page of an evaluation: scores with their intervals, categories, and every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.records import Record
from vlmkit.pages.answers import OUTCOMES, Pictures, embed, told_answer, told_case
from vlmkit.pages.document import make_document, write_document


def write_report(
    output_dir: Path,
    *,
    checkpoint: Mapping[str, str],
    figures: Mapping[str, Mapping[str, Any]],
    records: Mapping[str, Sequence[Record]],
    benchmarks: Sequence[Benchmark],
    max_pictures: int,
) -> Path:
    """Write `report.html`, which needs no other file but for pictures beyond `max_pictures`.

    Args:
        output_dir: Evaluation directory.
        checkpoint: Path and hashes of what was evaluated.
        figures: Of each benchmark by name, as in `summary.json`.
        records: Answers of each benchmark by name.
        benchmarks: Their cases give the images.
        max_pictures: Most small copies of images in the page, all benchmarks together; of other images the files are
            shown, where there are files.
    """
    pictures = Pictures()
    told: list[dict[str, Any]] = []
    for left, benchmark in zip(range(len(benchmarks), 0, -1), benchmarks, strict=True):
        answered = records[benchmark.name]
        share = len(pictures) + -(-(max_pictures - len(pictures)) // left)
        shown = embed(pictures, answered, benchmark.cases() if share else (), most=share)
        cases = [told_case(one, shown.get(str(one["id"]), ())) | told_answer(one) for one in answered]
        told.append({"name": benchmark.name, "figures": figures[benchmark.name], "cases": cases})
    page = make_document(
        name="report",
        title=f"Evaluation of {checkpoint.get('path', 'a model')}",
        heading="Evaluation",
        parts=("cases",),
        data={
            "told": {"checkpoint": dict(checkpoint), "outcomes": OUTCOMES},
            "benchmarks": told,
            "pictures": pictures.uris,
        },
        files_too=True,
    )
    return write_document(output_dir / "report.html", page)
