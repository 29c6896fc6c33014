"""The page of several runs against the best of them: differences with their intervals."""

from __future__ import annotations

from pathlib import Path

from vlmkit.pages.document import make_document, write_document
from vlmkit.sweeps.result import lower_is_better
from vlmkit.sweeps.standing import Standings, notes, verdict


def write_standings(path: Path, found: Standings, *, title: str) -> Path:
    """Write the page; it needs no other file."""
    rows = [
        {
            "name": row.name,
            "score": row.score,
            "difference": row.difference,
            "interval": row.interval,
            "n": row.paired.n,
            "better": row.paired.better,
            "worse": row.paired.worse,
            "p": row.paired.p,
            "p_holm": row.paired.p_holm,
            "clear": row.paired.significant,
            "verdict": verdict(row),
        }
        for row in found.rows
    ]
    told = {
        "title": title,
        "metric": found.metric,
        "lower": lower_is_better(found.metric),
        "best": found.best,
        "score": found.best_score,
        "notes": notes(found),
    }
    page = make_document(name="standings", title=title, heading="Against the best", data={"told": told, "rows": rows})
    return write_document(path, page)
