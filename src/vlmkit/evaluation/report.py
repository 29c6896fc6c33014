"""Figures to files and to the terminal: `metrics.json`, `summary.json`, `summary.md`, a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = "vlmkit.summary/1"
Figures = Mapping[str, Any]


def write_reports(output_dir: Path, *, checkpoint: Mapping[str, str], benchmarks: Mapping[str, Figures]) -> Path:
    """Write every report of an evaluation directory.

    Args:
        output_dir: Evaluation directory.
        checkpoint: Path and hashes of what was evaluated.
        benchmarks: Figures of each benchmark by name, from `aggregate`.

    Returns:
        Path of `summary.json`.
    """
    for name, figures in benchmarks.items():
        folder = output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(_json({"schema": "vlmkit.metrics/1", "benchmark": name, **figures}))
    summary = output_dir / "summary.json"
    summary.write_text(_json({"schema": SCHEMA, "checkpoint": dict(checkpoint), "benchmarks": dict(benchmarks)}))
    (output_dir / "summary.md").write_text(markdown(benchmarks, checkpoint))
    return summary


def table(benchmarks: Mapping[str, Figures]) -> str:
    """The table for a terminal: score with its standard error, n, parse rate, metric, protocol, time."""
    rows = [_HEAD, *(_row(name, figures) for name, figures in benchmarks.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [_baseline(name, figures) for name, figures in benchmarks.items() if figures.get("baselines")]
    notes += [judged_by(name, figures) for name, figures in benchmarks.items() if figures.get("judging")]
    notes += [_further(name, figures, most=_SHOWN) for name, figures in benchmarks.items() if figures.get("figures")]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *notes])


def markdown(benchmarks: Mapping[str, Figures], checkpoint: Mapping[str, str]) -> str:
    """`summary.md`: the same table, then one by category."""
    lines = ["# Evaluation", "", *(f"- {name}: `{value}`" for name, value in checkpoint.items()), ""]
    lines += _markdown_table([_HEAD, *(_row(name, figures) for name, figures in benchmarks.items())])
    for name, figures in benchmarks.items():
        if figures.get("baselines"):
            lines += ["", _baseline(name, figures)]
        if figures.get("judging"):
            prompts = ", ".join(f"{label} `{mark}`" for label, mark in figures["judge"]["prompts"].items())
            lines += ["", f"{judged_by(name, figures)}; prompts {prompts}"]
        if figures.get("figures"):
            lines += ["", _further(name, figures)]
        for group, of in {"category": figures["by_category"], **figures.get("tables", {})}.items():
            if of:
                lines += ["", f"## {name} by {group.replace('_', ' ')}", "", *_markdown_table(_group_rows(group, of))]
    return "\n".join([*lines, *_made(benchmarks)]) + "\n"


_SHOWN = 4
"""Most further figures of a benchmark in the terminal."""
_HEAD = ("benchmark", "score", "n", "parsed", "metric", "protocol", "seconds")


def _group_rows(group: str, figures: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    rows = [(group.replace("_", " "), "score", "n", "parsed")]
    return rows + [(name, _score(of), str(of["n"]), f"{of['parsed']:.1%}") for name, of in figures.items()]


def _row(name: str, figures: Figures) -> tuple[str, ...]:
    parsed, seconds = f"{figures['parsed']:.1%}", f"{figures['seconds']:.1f}"
    protocol = figures["protocol"] + (f" ({figures['preset']})" if "preset" in figures else "")
    score = f"{_score(figures)} {_SIGNS.get(figures['unit'], figures['unit'])}"
    return name, score, str(figures["n"]), parsed, figures["metric"], protocol, seconds


_SIGNS = {"percent": "%"}


def _score(figures: Figures) -> str:
    spread = "" if figures["stderr"] is None else f" ± {figures['stderr']:.1f}"
    return f"{figures['score']:.1f}{spread}"


def _further(name: str, figures: Figures, *, most: int | None = None) -> str:
    """Figures beside the headline one, in their units."""
    units = figures.get("figure_units", {})
    told: list[str] = []
    for key, value in list(figures["figures"].items())[:most]:
        unit = units.get(key, figures["unit"])
        told.append(f"{key.replace('_', ' ')} {value:.2f} {_SIGNS.get(unit, unit)}")
    return f"{name}: {', '.join(told)}"


_MADE = (
    "benchmark",
    "preset",
    "prompt id",
    "backend",
    "template",
    "pixel limits",
    "decoding",
    "rules",
    "judge",
    "n",
    "unparsed",
)


def _made(benchmarks: Mapping[str, Figures]) -> list[str]:
    """How each score was made; nothing where that is not told."""
    rows = [_made_row(name, figures) for name, figures in benchmarks.items() if "preset" in figures]
    return ["", "## How these were made", "", *_markdown_table([_MADE, *rows])] if rows else []


def _made_row(name: str, figures: Figures) -> tuple[str, ...]:
    judge = figures.get("judge")
    told = [figures["preset"], figures["prompt_id"], figures["backend"], figures["template"]]
    told += [_pairs(figures["pixel_limits"]), _pairs(figures["decoding"]), figures["parser"]]
    told += [(judge.get("model") if isinstance(judge, Mapping) else judge) or "none", figures["n"]]
    cells = ["unknown" if one is None else str(one) for one in told]
    return name, *cells, f"{figures['parse_failures']:.1%}"


def _pairs(found: Mapping[str, Any] | None) -> str | None:
    """`fps 2, frames 8`; None for nothing known."""
    return None if found is None else ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)


def _baseline(name: str, figures: Figures) -> str:
    told = ", ".join(f"{baseline.replace('_', ' ')} {score:.1f}" for baseline, score in figures["baselines"].items())
    return f"{name}, without a model: {told}"


def judged_by(name: str, figures: Figures) -> str:
    """Who judged a benchmark, how much of it, and what it took."""
    counts = figures["judging"]
    told = f"{name}, judged by {figures['judge']['model']}: {counts['judged']:,} judged, {counts['cached']:,} of them known before"
    told += f", {counts['failed']:,} FAILED" if counts["failed"] else ", none failed"
    told += f", {counts['by_rule']:,} decided by rule" if counts["by_rule"] else ""
    told += f", {counts['unanswered']:,} without an answer" if counts["unanswered"] else ""
    told += f"; {counts['requests']:,} requests, {counts['prompt_tokens']:,} + {counts['completion_tokens']:,} tokens"
    return told + (f", cost {counts['cost']:.4f}" if "cost" in counts else "")


def _markdown_table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, default=str) + "\n"
