"""The best of several runs against each of the others: which differences are no accident.

All runs answered the same questions (or were measured on the same held-out samples), so differences are paired, as
`evaluation/comparison.py` takes them. The best was picked by these very cases: each test against it stands for whichever
pair might have been picked, so p is adjusted for all pairs (S. Holm, 1979; an upper bound, since only the pairs with the
best are computed).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.evaluation.comparison import Difference, Evaluation, compare, holm, read_evaluation
from vlmkit.evaluation.records import Record
from vlmkit.sweeps.result import HELD_OUT_LOSS, TRAIN_LOSS, choose_metric, lower_is_better, read_result
from vlmkit.sweeps.table import figure, read_sweep

_EVALUATION = "eval"
"""Where `vlmkit-eval ckpt=RUN` writes, in the run directory."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A run, and what it is judged by.

    Attributes:
        name: Its directory's name, or its path where it was named by hand.
        evaluation: With one benchmark, or the held-out samples in the shape of one: higher scores are better.
    """

    name: str
    evaluation: Evaluation

    @property
    def mean(self) -> float:
        """Mean score of its cases; higher is better."""
        (records,) = self.evaluation.records.values()
        return math.fsum(float(record["score"]) for record in records.values()) / max(1, len(records))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A run against the best one, in the metric's own direction: for a loss, a positive difference is worse.

    Attributes:
        name: The run's.
        score, best_score: Over the cases that both have.
        difference, interval: Run less best, with its 95 % interval.
        paired: The comparison it is taken from; its `p_holm` is adjusted for all pairs of runs.
    """

    name: str
    score: float
    best_score: float
    difference: float
    interval: tuple[float, float] | None
    paired: Difference


@dataclass(frozen=True, kw_only=True)
class Standings:
    """All of them.

    Attributes:
        metric: What is compared.
        best: Name of the best run.
        best_score: Its score over all of its cases.
        num_pairs: Pairs of runs that p is adjusted for.
        rows: The others, best first.
    """

    metric: str
    best: str
    best_score: float
    num_pairs: int
    rows: Sequence[Standing]


def contenders_of_sweep(directory: Path, metric: str | None) -> tuple[str, list[Contender]]:
    """The finished runs of a sweep.

    Args:
        directory: Of the sweep.
        metric: What to compare; None: what the sweep was ranked by.

    Raises:
        VlmkitError: fewer than two finished runs, or one that cannot be compared by the metric.
    """
    told = read_sweep(directory)
    runs = [directory / run["name"] for run in told["runs"] if run["state"] == "finished"]
    return contenders(runs, metric or told["metric"], names=[run.name for run in runs])


def contenders(
    directories: Sequence[Path], metric: str | None, *, names: Sequence[str] | None = None
) -> tuple[str, list[Contender]]:
    """Runs or evaluations, named by their directories.

    Args:
        directories: Run directories, or evaluation directories.
        metric: What to compare: `val/loss`, `eval/<benchmark>` or `eval/<benchmark>/<metric>`; None: what all have.
        names: What to call them; None: by their paths.

    Raises:
        VlmkitError: fewer than two, or nothing that all were measured by.
    """
    if len(directories) < 2:
        raise VlmkitError(f"Nothing to compare: {len(directories)} finished runs. Name two or more.")
    if any(not directory.is_dir() for directory in directories):
        gone = next(directory for directory in directories if not directory.is_dir())
        raise VlmkitError(f"{gone}: no such directory. Name run directories or evaluation directories.")
    metric = metric or _common_metric(directories)
    if metric == TRAIN_LOSS:
        raise VlmkitError(
            "train/loss: it was not measured on the same cases, and gives no pairs. Train the runs with "
            "data.validation or validate.benchmarks, or evaluate them with vlmkit-eval."
        )
    read = _held_out if metric == HELD_OUT_LOSS else _evaluated
    found = read(directories, metric)
    told = names or [str(directory) for directory in directories]
    return metric, [Contender(name=name, evaluation=one) for name, one in zip(told, found, strict=True)]


def standings(metric: str, runs: Sequence[Contender], *, seed: int) -> Standings:
    """Compare each run with the best.

    Args:
        metric: What is compared.
        runs: At least two.
        seed: Of the signs that are drawn.

    Raises:
        VlmkitError: runs that were scored in two ways, or on other data.
    """
    best, *others = sorted(runs, key=lambda run: -run.mean)
    differences = [compare(best.evaluation, run.evaluation, seed=seed)[0] for run in others]
    num_pairs = len(runs) * (len(runs) - 1) // 2
    adjusted = holm([one.p for one in differences], num_tests=num_pairs)
    sign = -1 if lower_is_better(metric) else 1
    unit = 100 if differences[0].unit == "percent" else 1
    rows = [
        _standing(run.name, replace(one, p_holm=p), sign)
        for run, one, p in zip(others, differences, adjusted, strict=True)
    ]
    return Standings(metric=metric, best=best.name, best_score=sign * unit * best.mean, num_pairs=num_pairs, rows=rows)


def text(found: Standings) -> str:
    """For a terminal."""
    head = ("#", "run", found.metric, "from the best", "95 % interval", "n", "better", "worse", "p", "p (Holm)", "")
    rows = [head, ("1", found.best, figure(found.metric, found.best_score), *[""] * 7, "the best")]
    rows += [_cells(place, row, found.metric) for place, row in enumerate(found.rows, start=2)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *notes(found)])


def notes(found: Standings) -> list[str]:
    """How the table is to be read."""
    lower = lower_is_better(found.metric)
    tests = ", ".join(dict.fromkeys(row.paired.test for row in found.rows))
    told = [
        f"Differences from the best run, case by case ({'above 0 is worse' if lower else 'below 0 is worse'}), with 95 % intervals; "
        f"p by {tests}.",
        f"The best was picked by the same cases, so p (Holm) allows for all {found.num_pairs} pairs of runs; clear: below "
        "0.05. For the same reason differences from the best look a little larger than they are.",
    ]
    for row in found.rows:
        one = row.paired
        if one.only_first or one.only_second:
            told.append(
                f"{row.name}: {one.only_first} cases of the best alone and {one.only_second} of its own are left out."
            )
    return told


def verdict(row: Standing) -> str:
    """In words."""
    return "clearly worse" if row.paired.significant else "no clear difference"


def _standing(name: str, one: Difference, sign: int) -> Standing:
    interval = one.interval
    if interval is not None and sign < 0:
        interval = -interval[1], -interval[0]
    return Standing(
        name=name,
        score=sign * one.second,
        best_score=sign * one.first,
        difference=sign * one.difference,
        interval=interval,
        paired=one,
    )


def _cells(place: int, row: Standing, metric: str) -> tuple[str, ...]:
    one = row.paired
    interval = "-" if row.interval is None else " to ".join(_signed(metric, end) for end in row.interval)
    return (
        str(place),
        row.name,
        figure(metric, row.score),
        _signed(metric, row.difference),
        interval,
        str(one.n),
        str(one.better),
        str(one.worse),
        f"{one.p:.4f}",
        f"{one.p_holm:.4f}",
        verdict(row),
    )


def _signed(metric: str, value: float) -> str:
    return ("+" if value >= 0 else "") + figure(metric, value)


def _common_metric(directories: Sequence[Path]) -> str:
    """What every directory was measured by.

    Raises:
        VlmkitError: nothing, or several benchmarks.
    """
    if all((directory / "summary.json").is_file() for directory in directories):
        known = [list(read_evaluation(directory).figures) for directory in directories]
        common = [name for name in known[0] if all(name in one for one in known)]
        if len(common) != 1:
            told = ", ".join(f"metric=eval/{name}" for name in common) or "no benchmark is in all of them"
            raise VlmkitError(f"Several benchmarks, or none, are in all of these. Choose one: {told}.")
        return f"eval/{common[0]}"
    measured = [read_result(directory).scores for directory in directories]
    return choose_metric(name for name in measured[0] if all(name in one for one in measured))


def _evaluated(directories: Sequence[Path], metric: str) -> list[Evaluation]:
    """Of each, the evaluation of one benchmark: its own or its run's where all have one, else that of the validation."""
    benchmark = metric.removeprefix("eval/").split("/")[0]
    for places in (directories, [directory / _EVALUATION for directory in directories]):
        if all(_has(place, benchmark) for place in places):
            return [_only(read_evaluation(place), benchmark) for place in places]
    found: list[Evaluation] = []
    for directory in directories:
        place = _validated(directory, metric)
        if place is None or not _has(place, benchmark):
            raise VlmkitError(
                f"{directory}: {benchmark} was not measured there. Evaluate every run first: vlmkit-eval ckpt={directory} "
                f"benchmarks=[{benchmark}]."
            )
        found.append(_only(read_evaluation(place), benchmark))
    return found


def _has(place: Path, benchmark: str) -> bool:
    path = place / "summary.json"
    return path.is_file() and benchmark in json.loads(path.read_text(encoding="utf-8")).get("benchmarks", {})


def _only(evaluation: Evaluation, benchmark: str) -> Evaluation:
    return replace(
        evaluation,
        figures={benchmark: evaluation.figures[benchmark]},
        records={benchmark: evaluation.records[benchmark]},
    )


def _validated(run_dir: Path, metric: str) -> Path | None:
    """Directory of the validation that a run's score is taken from."""
    scores = read_result(run_dir).scores
    score = next((score for name, score in scores.items() if name == metric or name.startswith(f"{metric}/")), None)
    return None if score is None else run_dir / "validation" / f"step-{score.step:06d}"


def _held_out(directories: Sequence[Path], metric: str) -> list[Evaluation]:
    """Held-out samples as cases: the mean of their scores is the loss per token, less for the better."""
    found: list[Evaluation] = []
    for directory in directories:
        place = _validated(directory, metric)
        path = place / "held_out.jsonl" if place is not None else None
        if path is None or not path.is_file():
            raise VlmkitError(f"{directory}: no held-out losses there. Train it with data.validation.")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found.append(_as_evaluation(directory, lines))
    cases = [{case: record["expected"] for case, record in one.records[HELD_OUT_LOSS].items()} for one in found]
    for directory, own in zip(directories, cases, strict=True):
        if own != cases[0]:
            raise VlmkitError(
                f"These runs cannot be compared: {directories[0]} and {directory} were not measured on the same held-out "
                "samples, or these have other tokens. Give both the same data.validation, processor and data settings."
            )
    return found


def _as_evaluation(directory: Path, lines: Sequence[Mapping[str, Any]]) -> Evaluation:
    total = sum(line["tokens"] for line in lines)
    records: dict[str, Record] = {}
    for line in lines:
        if line["loss"] is None:
            raise VlmkitError(
                f"{directory}: the loss of {line['id']} is not finite, and cannot be compared. Leave this run out: runs=[...]."
            )
        records[line["id"]] = {
            "id": line["id"],
            "score": -line["loss"] * len(lines) / total,
            "expected": line["tokens"],
            "media": [],
        }
    figures = {"protocol": "held-out samples", "metric": "loss", "unit": "nats"}
    return Evaluation(
        directory=directory, checkpoint={}, figures={HELD_OUT_LOSS: figures}, records={HELD_OUT_LOSS: records}
    )
