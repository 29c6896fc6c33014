"""Records to figures: score, standard error, parse rate, tables by group. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.records import Record

_NUM_FOLDS = 100
"""Most groups that are left out in turn to learn the spread of a figure that is no mean."""
_UNREAD = ("unparsed", "failed")


def aggregate(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """The figures of one benchmark, as they stand in `summary.json`.

    `score` is the mean over all cases in percent, failed and unparsed ones counted as 0, or the benchmark's own figure
    of the name `metric`. `stderr` is its standard error: of a mean, that of a sample of clusters (questions on one image
    are one cluster; where each is its own this is s / sqrt(n)); of another figure, a jackknife over the clusters. None
    where there are fewer than two clusters. `parsed` is the share of cases whose answer was understood, `score_parsed`
    the mean over these alone; None where there are none.
    """
    groups = sorted({name for record in records for name in record.get("labels") or {}})
    told = {
        **_figures(records),
        "unit": benchmark.unit,
        "metric": benchmark.metric,
        "protocol": benchmark.protocol,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "by_category": _by(records, [str(record.get("category", "")) for record in records]),
        "outcomes": dict(sorted(Counter(record["outcome"] for record in records).items())),
    }
    if tables := {name: _by(records, [_label(record, name) for record in records]) for name in groups}:
        told["tables"] = tables
    if (figures := benchmark.figures(records) if records else {}) and benchmark.metric in figures:
        told |= {"accuracy": told["score"], "score": round(figures[benchmark.metric], 4)}
        told["stderr"] = _jackknife(benchmark, records) if benchmark.resampled else None
    if figures:
        told["figures"] = {name: round(value, 4) for name, value in figures.items()}
        units = {name: unit for name, unit in getattr(benchmark, "figure_units", {}).items() if name in figures}
        told |= {"figure_units": units} if units else {}
    return told | ({"baselines": baselines} if (baselines := benchmark.baselines()) else {})


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    scores = [float(record["score"]) for record in records]
    parsed = [float(record["score"]) for record in records if record["outcome"] not in _UNREAD]
    n = len(scores)
    spread = _clustered_error(scores, clusters(records))
    return {
        "score": round(100 * sum(scores) / n, 4) if n else 0.0,
        "n": n,
        "stderr": None if spread is None else round(100 * spread, 4),
        "parsed": round(len(parsed) / n, 4) if n else 0.0,
        "score_parsed": round(100 * sum(parsed) / len(parsed), 4) if parsed else None,
    }


def clusters(records: Iterable[Record]) -> list[str]:
    """The cluster of each record; one without is a cluster of its own."""
    return [record.get("cluster") or f"case {place}" for place, record in enumerate(records)]


def _clustered_error(scores: Sequence[float], cluster_of: Sequence[str]) -> float | None:
    """Standard error of the mean of scores that are independent between clusters only."""
    n = len(scores)
    if not n:
        return None
    mean = sum(scores) / n
    residuals: dict[str, float] = {}
    for score, cluster in zip(scores, cluster_of, strict=True):
        residuals[cluster] = residuals.get(cluster, 0.0) + score - mean
    if len(residuals) < 2:
        return None
    return math.sqrt(sum(one**2 for one in residuals.values()) * len(residuals) / (len(residuals) - 1)) / n


def _jackknife(benchmark: Benchmark, records: Sequence[Record]) -> float | None:
    """Standard error of the headline figure, leaving out one group of clusters after the other."""
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters(records)))}
    num_folds = min(_NUM_FOLDS, len(names))
    if num_folds < 2:
        return None
    fold_of = [names[name] % num_folds for name in clusters(records)]
    values: list[float] = []
    for fold in range(num_folds):
        kept = [record for record, own in zip(records, fold_of, strict=True) if own != fold]
        values.append(benchmark.figures(kept)[benchmark.metric])
    mean = sum(values) / num_folds
    return round(math.sqrt((num_folds - 1) / num_folds * sum((value - mean) ** 2 for value in values)), 4)


def _by(records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    members: dict[str, list[Record]] = {}
    for record, name in zip(records, names, strict=True):
        members.setdefault(name, []).append(record)
    return {name: _figures(members[name]) for name in sorted(members.keys() - {""})}


def _label(record: Record, name: str) -> str:
    return str((record.get("labels") or {}).get(name, ""))
