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
    notes += [judged_by(name, figures) for name, figures in benchmarks.items() if figures.get("judge")]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *notes])


def markdown(benchmarks: Mapping[str, Figures], checkpoint: Mapping[str, str]) -> str:
    """`summary.md`: the same table, then one by category."""
    lines = ["# Evaluation", "", *(f"- {name}: `{value}`" for name, value in checkpoint.items()), ""]
    lines += _markdown_table([_HEAD, *(_row(name, figures) for name, figures in benchmarks.items())])
    for name, figures in benchmarks.items():
        if figures.get("baselines"):
            lines += ["", _baseline(name, figures)]
        if figures.get("judge"):
            prompts = ", ".join(f"{label} `{mark}`" for label, mark in figures["judge"]["prompts"].items())
            lines += ["", f"{judged_by(name, figures)}; prompts {prompts}"]
        if figures.get("figures"):
            told = ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in figures["figures"].items())
            lines += ["", f"{name}: {told}"]
        for group, of in {"category": figures["by_category"], **figures.get("tables", {})}.items():
            if of:
                lines += ["", f"## {name} by {group.replace('_', ' ')}", "", *_markdown_table(_group_rows(group, of))]
    return "\n".join(lines) + "\n"


_HEAD = ("benchmark", "score", "n", "parsed", "metric", "protocol", "seconds")


def _group_rows(group: str, figures: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    rows = [(group.replace("_", " "), "score", "n", "parsed")]
    return rows + [(name, _score(of), str(of["n"]), f"{of['parsed']:.1%}") for name, of in figures.items()]


def _row(name: str, figures: Figures) -> tuple[str, ...]:
    parsed, seconds = f"{figures['parsed']:.1%}", f"{figures['seconds']:.1f}"
    return name, _score(figures), str(figures["n"]), parsed, figures["metric"], figures["protocol"], seconds


def _score(figures: Figures) -> str:
    spread = "" if figures["stderr"] is None else f" ± {figures['stderr']:.1f}"
    return f"{figures['score']:.1f}{spread}"


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
