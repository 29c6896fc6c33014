"""The runs of a sweep, best first: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.storage import written_aside
from vlmkit.sweeps.job import Job, Outcome
from vlmkit.sweeps.naming import differing, labels
from vlmkit.sweeps.result import HELD_OUT_LOSS, TRAIN_LOSS, Result, Score, choose_metric, lower_is_better, read_result

SCHEMA = "vlmkit.sweep/1"
JSON_FILE, MARKDOWN_FILE, HTML_FILE = "sweep.json", "sweep.md", "sweep.html"
_ORDER = ("finished", "pruned", "running", "interrupted", "waiting", "failed")
_HOW = {
    TRAIN_LOSS: "training loss, mean of the last tenth of the log; its interval tells of the steps' spread alone",
    HELD_OUT_LOSS: "loss on held-out data; intervals treat samples as drawn at random",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run in the table.

    Attributes:
        rank: Place among the finished runs that were measured, 1 for the best; equal scores share one.
        name: Of its directory in the sweep's.
        settings: What differs, by key.
        outcome: How it stands.
        result: What it came to so far.
        score: By the sweep's metric; None where it was not measured.
    """

    rank: int | None
    name: str
    settings: Mapping[str, str]
    outcome: Outcome
    result: Result
    score: Score | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A sweep.

    Attributes:
        directory: Of the sweep; each run has a directory in it.
        metric: What runs are ranked by.
        keys: What differs, with a short word for each.
        rows: Best first; runs without a score last.
    """

    directory: Path
    metric: str
    keys: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def best(self) -> Row | None:
        """The first of the ranked runs."""
        return self.rows[0] if self.rows and self.rows[0].rank is not None else None

    def count(self, *states: str) -> int:
        """How many runs are in one of these states."""
        return sum(row.outcome.state in states for row in self.rows)


def make_table(directory: Path, runs: Sequence[tuple[Job, Outcome]], *, metric: str | None) -> Table:
    """Read every run's directory and rank them.

    Args:
        directory: Of the sweep.
        runs: Jobs with how they stand.
        metric: What to rank by; None: the best that all finished runs measured, see `choose_metric`.
    """
    results = [read_result(job.run_dir) for job, _ in runs]
    finished = [result for result, (_, outcome) in zip(results, runs, strict=True) if outcome.state == "finished"]
    metric = metric or choose_metric(_in_all([result.scores for result in finished or results]))
    lower = lower_is_better(metric)

    def place(number: int) -> tuple[int, int, float]:
        value = _value(results[number], metric)
        return (
            _ORDER.index(runs[number][1].state),
            value is None,
            0.0 if value is None else value if lower else -value,
        )

    order = sorted(range(len(runs)), key=place)
    rows = [
        Row(
            rank=_rank(number, runs, results, metric),
            name=runs[number][0].name,
            settings=runs[number][0].settings,
            outcome=runs[number][1],
            result=results[number],
            score=results[number].scores.get(metric),
        )
        for number in order
    ]
    keys = differing([job.settings for job, _ in runs]) or list(
        dict.fromkeys(key for job, _ in runs for key in job.settings)
    )
    return Table(directory=directory, metric=metric, keys=labels(keys), rows=rows)


def text(table: Table) -> str:
    """For a terminal."""
    shown = _columns(table)
    rows = [[name for name, _ in shown], *([cell(row) for _, cell in shown] for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(shown))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *_errors(table), "", *notes(table)])


def markdown(table: Table) -> str:
    """`sweep.md`."""
    shown = _columns(table, linked=True)
    rows = [[name for name, _ in shown], *([_cell(cell(row)) for _, cell in shown] for row in table.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    errors = [f"- {line}" for line in _errors(table)]
    return "\n".join([
        f"# Sweep {table.directory.name}", "", *notes(table), "", lines[0], "|" + " --- |" * len(shown), *lines[1:],
        *(["", "## Runs without a result", "", *errors] if errors else []), "",
    ])  # fmt: skip


def notes(table: Table) -> list[str]:
    """How the table is to be read."""
    states = Counter(row.outcome.state for row in table.rows)
    told = ", ".join(f"{states[state]} {state}" for state in _ORDER if states[state])
    direction = "lower" if lower_is_better(table.metric) else "higher"
    how = _HOW.get(table.metric, "score of a benchmark, in its unit; intervals as in its report")
    found = [
        f"{len(table.rows)} runs: {told}. Ranked by {table.metric} ({direction} is better): {how}. Intervals are 95 %: 1.96 standard errors to each side.",
    ]
    if states["pruned"]:
        found.append("Pruned runs were ended early; their scores are of fewer steps and have no rank.")
    if states["finished"] > 1:
        found.append(
            "Overlapping intervals do not say that runs are alike: they were measured on the same cases. "
            f"vlmkit-compare sweep={table.directory} pairs these and tells what is no accident."
        )
    return found


def figure(metric: str, value: float) -> str:
    """A value of a metric, with as many digits as one reads: a benchmark's in percent, a loss."""
    return f"{value:.1f}" if metric.startswith("eval/") else f"{value:.4f}"


def duration(seconds: float) -> str:
    """`2 h 5 min`, `3 min 20 s`, `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def to_json(table: Table) -> dict[str, Any]:
    """For `sweep.json`."""
    return {
        "schema": SCHEMA,
        "metric": table.metric,
        "lower_is_better": lower_is_better(table.metric),
        "settings": dict(table.keys),
        "runs": [_told(row) for row in table.rows],
    }


def write_table(table: Table) -> None:
    """Write `sweep.json` and `sweep.md`."""
    contents = {JSON_FILE: json.dumps(to_json(table), indent=1) + "\n", MARKDOWN_FILE: markdown(table)}
    for name, content in contents.items():
        with written_aside(table.directory / name) as aside:
            aside.write_text(content, encoding="utf-8")


def read_sweep(directory: Path) -> dict[str, Any]:
    """What `sweep.json` says.

    Raises:
        VlmkitError: there is none, or it is of an unknown version.
    """
    path = directory / JSON_FILE
    if not path.is_file():
        raise VlmkitError(f"{directory}: no {JSON_FILE}, so it is no sweep. Name the run_dir of vlmkit-train -m ...")
    told = json.loads(path.read_text(encoding="utf-8"))
    if told.get("schema") != SCHEMA:
        raise VlmkitError(f"{path}: schema {told.get('schema')!r}, wanted {SCHEMA!r}. Run the sweep again: it goes on.")
    return told


def _columns(table: Table, *, linked: bool = False) -> list[tuple[str, Callable[[Row], str]]]:
    """Head and cell of each column."""
    measured = {name for row in table.rows for name in row.result.scores}
    others = [name for name in (*sorted(measured - {TRAIN_LOSS, HELD_OUT_LOSS}), HELD_OUT_LOSS, TRAIN_LOSS)
              if name in measured and name != table.metric]  # fmt: skip
    found: list[tuple[str, Callable[[Row], str]]] = [("#", lambda row: str(row.rank or "-"))]
    found += [(word, lambda row, key=key: row.settings.get(key, "-")) for key, word in table.keys.items()]
    found.append((table.metric, lambda row: _value_cell(table.metric, row.score)))
    found.append(("95 % interval", lambda row: interval_cell(table.metric, row.score)))
    found += [(name, lambda row, name=name: _value_cell(name, row.result.scores.get(name))) for name in others]
    found += [
        ("steps", lambda row: f"{row.result.steps:,}"),
        ("time", lambda row: duration(row.outcome.seconds) if row.outcome.seconds else "-"),
        ("state", lambda row: row.outcome.state),
        ("run", lambda row: f"[{row.name}]({row.name}/)" if linked else row.name),
    ]
    return found


def interval_cell(metric: str, score: Score | None) -> str:
    """`1.2 to 1.4`, or a hyphen."""
    if score is None or score.interval is None:
        return "-"
    return " to ".join(figure(metric, end) for end in score.interval)


def _value_cell(metric: str, score: Score | None) -> str:
    return "-" if score is None else figure(metric, score.value)


def _errors(table: Table) -> list[str]:
    return [f"{row.name}: {row.outcome.state}: {row.outcome.error}" for row in table.rows if row.outcome.error]


def _cell(content: str) -> str:
    return content.replace("|", "\\|").replace("\n", " ")


def _in_all(scores: Sequence[Mapping[str, Score]]) -> list[str]:
    """Metrics that every run has, in the order of the first."""
    return [name for name in (scores[0] if scores else ()) if all(name in one for one in scores)]


def _value(result: Result, metric: str) -> float | None:
    score = result.scores.get(metric)
    return None if score is None or not math.isfinite(score.value) else score.value


def _rank(number: int, runs: Sequence[tuple[Job, Outcome]], results: Sequence[Result], metric: str) -> int | None:
    """One more than the number of finished runs with a better score."""
    own = _value(results[number], metric)
    if own is None or runs[number][1].state != "finished":
        return None
    sign = 1 if lower_is_better(metric) else -1
    others = [
        value
        for result, (_, outcome) in zip(results, runs, strict=True)
        if outcome.state == "finished" and (value := _value(result, metric)) is not None
    ]
    return 1 + sum(sign * value < sign * own for value in others)


def _told(row: Row) -> dict[str, Any]:
    scores = {
        name: {"value": score.value, "stderr": score.stderr, "interval": score.interval, "step": score.step}
        for name, score in row.result.scores.items()
    }
    return {
        "name": row.name,
        "rank": row.rank,
        "settings": dict(row.settings),
        "state": row.outcome.state,
        "error": row.outcome.error,
        "scores": scores,
        "steps": row.result.steps,
        "seconds": row.outcome.seconds,
        "attempts": row.outcome.attempts,
    }
