"""The page of a sweep: its runs ranked, each setting's effect as a strip, curves, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlmkit.pages.document import make_document, write_document
from vlmkit.sweeps.job import OUTPUT
from vlmkit.sweeps.result import lower_is_better
from vlmkit.sweeps.table import Row, Table, notes

_FILES = {
    "curves": "curves.png",
    "evaluation": "eval/report.html",
    "report": "report.json",
    "settings": "config.yaml",
    "output": OUTPUT,
}


def write_sweep_page(table: Table, path: Path) -> Path:
    """Write the page; it needs no other file, and leads to those of the runs by relative links."""
    page = make_document(
        name="sweep",
        title=f"Sweep {table.directory.name}",
        heading="Sweep",
        data={
            "told": {
                "directory": str(table.directory),
                "metric": table.metric,
                "lower": lower_is_better(table.metric),
                "keys": [{"key": key, "label": label} for key, label in table.keys.items()],
                "notes": notes(table),
            },
            "runs": [_run(row, table) for row in table.rows],
        },
    )
    return write_document(path, page)


def _run(row: Row, table: Table) -> Mapping[str, Any]:
    """A run as the script reads it; figures that are not finite are left out."""
    place = table.directory / row.name
    href = quote(row.name)
    return {
        "name": row.name,
        "href": f"{href}/",
        "rank": row.rank,
        "settings": dict(row.settings),
        "state": row.outcome.state,
        "error": row.outcome.error,
        "scores": {
            name: {"value": score.value, "interval": score.interval, "step": score.step}
            for name, score in row.result.scores.items()
            if score.value == score.value and abs(score.value) != float("inf")
        },
        "steps": row.result.steps,
        "seconds": row.outcome.seconds,
        "curves": {name: list(points) for name, points in row.result.curves.items()},
        "links": [[name, f"{href}/{file}"] for name, file in _FILES.items() if (place / file).is_file()],
    }
