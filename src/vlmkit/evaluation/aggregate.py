"""Records to figures: score, standard error, parse rate, by category. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.records import Record


def aggregate(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """The figures of one benchmark, as they stand in `summary.json`.

    Scores are means over all cases in percent, failed and unparsed ones counted as 0. `stderr` is the standard error of
    that mean, s / sqrt(n) with the sample deviation s, in the same unit; None for fewer than two cases. `parsed` is the
    share of cases whose answer was understood.
    """
    figures = _figures(records)
    categories = sorted({str(record.get("category", "")) for record in records} - {""})
    told = {
        **figures,
        "unit": "percent",
        "metric": benchmark.metric,
        "protocol": benchmark.protocol,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "by_category": {name: _figures([one for one in records if one.get("category") == name]) for name in categories},
        "outcomes": _outcomes(records),
    }
    return told | ({"baselines": baselines} if (baselines := benchmark.baselines()) else {})


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    scores = [float(record["score"]) for record in records]
    n = len(scores)
    mean = sum(scores) / n if n else 0.0
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1)) if n > 1 else None
    parsed = sum(record["outcome"] not in ("unparsed", "failed") for record in records) / n if n else 0.0
    return {
        "score": round(100 * mean, 4),
        "n": n,
        "stderr": None if deviation is None else round(100 * deviation / math.sqrt(n), 4),
        "parsed": round(parsed, 4),
    }


def _outcomes(records: Sequence[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record["outcome"]] = counts.get(record["outcome"], 0) + 1
    return dict(sorted(counts.items()))
