"""What a run came to, read from its directory: scores with their standard errors, losses, curves."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.training.steplines import read_lines

TRAIN_LOSS, HELD_OUT_LOSS = "train/loss", "val/loss"
_NORMAL_95 = 1.959964
_LAST_SHARE = 0.1
"""Share of a log whose losses are the run's training loss at its end."""
_FEWEST_LINES = 5
_CURVE_POINTS = 150


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure of a run.

    Attributes:
        value: Lower is better for a loss, higher for anything else.
        stderr: Its standard error; None where it is not known.
        step: Optimiser steps after which it was measured.
    """

    value: float
    stderr: float | None
    step: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval; None without a standard error."""
        if self.stderr is None:
            return None
        return self.value - _NORMAL_95 * self.stderr, self.value + _NORMAL_95 * self.stderr


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to.

    Attributes:
        scores: By metric: `train/loss`, and what was validated. Of the last validation, or of the best one where the
            run kept the best checkpoint by that metric.
        steps: Optimiser steps done.
        tokens_per_second: Of the last logged step.
        curves: Points (step, value) by metric, at most some 150 of the training loss.
        seconds: Of the run's own process, as its report says; None where it did not come so far.
    """

    scores: Mapping[str, Score]
    steps: int
    tokens_per_second: float | None
    curves: Mapping[str, Sequence[tuple[int, float]]]
    seconds: float | None = None


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss."""
    return metric.endswith("loss")


def choose_metric(measured: Iterable[str]) -> str:
    """What to rank runs by, of what was measured: a benchmark's score, else the held-out loss, else the training loss."""
    names = list(dict.fromkeys(measured))
    benchmarks = [name for name in names if name.startswith("eval/")]
    return benchmarks[0] if benchmarks else HELD_OUT_LOSS if HELD_OUT_LOSS in names else TRAIN_LOSS


def read_result(run_dir: Path) -> Result:
    """Read what is there of a run, finished or not."""
    lines = [line for line in _whole_lines(run_dir / "train.jsonl") if line.get("loss") is not None]
    validations = _whole_lines(run_dir / "validation.jsonl")
    report = _read_json(run_dir / "report.json")
    scores: dict[str, Score] = {}
    if lines:
        scores[TRAIN_LOSS] = _last_losses(lines)
    best: Mapping[str, Any] = report.get("best") or {}
    for name in validations[-1]["metrics"] if validations else ():
        step = best["step"] if best.get("metric") == name else None
        line = next((one for one in validations if one["step"] == step), validations[-1])
        if (value := line["metrics"].get(name)) is not None:
            scores[name] = Score(value=value, stderr=_stderr(run_dir, line, name), step=line["step"])
    return Result(
        scores=scores,
        steps=max((line["step"] for line in (*lines, *validations)), default=0),
        tokens_per_second=lines[-1].get("tokens_per_second") if lines else None,
        curves={TRAIN_LOSS: _thinned([(line["step"], line["loss"]) for line in lines]), **_validated(validations)},
        seconds=report.get("seconds"),
    )


def value_of(run_dir: Path, metric: str | None) -> float | None:
    """What a run is to be judged by; None where it was not measured.

    Args:
        run_dir: Of the run.
        metric: Its name; None: `choose_metric` decides.
    """
    scores = read_result(run_dir).scores
    score = scores.get(metric or choose_metric(scores))
    return None if score is None else score.value


def model_of(run_dir: Path, metric: str) -> Path:
    """Where the model lies that a run's score is of: the run's own directory, or that of its best checkpoint."""
    best = _read_json(run_dir / "report.json").get("best") or {}
    exported = run_dir / "checkpoints" / "hf_best"
    return exported if best.get("metric") == metric and exported.is_dir() else run_dir


def validations_of(run_dir: Path) -> list[tuple[int, dict[str, float | None]]]:
    """Step and metrics of each validation so far, also while the run goes on."""
    return [(line["step"], line["metrics"]) for line in _whole_lines(run_dir / "validation.jsonl")]


def _last_losses(lines: Sequence[Mapping[str, Any]]) -> Score:
    """Mean training loss over the last tenth of the log, and how far its steps are spread."""
    last = [line["loss"] for line in lines[-max(1, round(_LAST_SHARE * len(lines))) :]]
    if len(last) < _FEWEST_LINES:
        last = [line["loss"] for line in lines[-min(_FEWEST_LINES, max(1, len(lines) // 2)) :]]
    stderr = statistics.stdev(last) / math.sqrt(len(last)) if len(last) >= _FEWEST_LINES else None
    return Score(value=statistics.fmean(last), stderr=stderr, step=lines[-1]["step"])


def _stderr(run_dir: Path, line: Mapping[str, Any], name: str) -> float | None:
    """Of a held-out loss the line says it, of a benchmark the evaluation directory of that step."""
    if name.startswith("eval/"):
        summary = _read_json(run_dir / "validation" / f"step-{line['step']:06d}" / "summary.json")
        return summary.get("benchmarks", {}).get(name.split("/")[1], {}).get("stderr")
    return line.get("stderr", {}).get(name)


def _validated(validations: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in validations:
        for name, value in line["metrics"].items():
            if value is not None:
                curves.setdefault(name, []).append((line["step"], value))
    return curves


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means over stretches of equal length: few points, none of them a whim of a single step."""
    size = -(-len(points) // _CURVE_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], statistics.fmean(value for _, value in group)) for group in groups]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a file that may be written to at this moment: a torn last one is left out."""
    try:
        return read_lines(path)
    except json.JSONDecodeError:
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
