"""Files of JSON with a line per step: appended to while a run goes on, cut back to where it resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vlmkit.storage import written_aside


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a line; a number that JSON does not know (NaN, infinity) becomes null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(record)) + "\n")


def cut_back(path: Path, step: int) -> None:
    """Drop lines of steps after `step`, and a last line that a kill cut short."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    with written_aside(path) as aside:
        aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
