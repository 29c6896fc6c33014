"""How counts are distributed: quantiles, and a histogram as bars of text. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BAR = "#"
_WIDTH = 40
_MAX_BINS = 16


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of whole numbers in bins.

    Attributes:
        edges: (num_bins + 1,) a bin holds the values from its edge up to the next one, without it.
        counts: (num_bins,) values in each bin.
        quantiles: Least, median, 90 %, 99 %, greatest and mean value.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    quantiles: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"edges": list(self.edges), "counts": list(self.counts), **self.quantiles}

    def bars(self) -> list[str]:
        """A line for each bin that holds something: its range, a bar, how many and what share."""
        most, total = max(self.counts, default=0), sum(self.counts)
        wide = len(f"{self.edges[-1] - 1:,}")
        lines: list[str] = []
        for first, end, count in zip(self.edges, self.edges[1:], self.counts, strict=False):
            if not count:
                continue
            bar = _BAR * -(-count * _WIDTH // most)
            lines.append(f"{first:>{wide},} - {end - 1:>{wide},} | {bar:<{_WIDTH}} {count:,} ({count / total:.1%})")
        return lines

    def summary(self) -> str:
        """The quantiles in a line."""
        return ", ".join(f"{name} {value:,.0f}" for name, value in self.quantiles.items())


def histogram(values: NDArray[np.int64]) -> Histogram:
    """Count values in bins whose edges double; in even bins where the values lie within one doubling.

    Raises:
        ValueError: there are no values, or one is negative.
    """
    if not len(values) or values.min() < 0:
        raise ValueError("a histogram needs values of at least 0")
    edges = _edges(int(values.min()), int(values.max()))
    counts = np.histogram(values, bins=np.asarray(edges))[0]
    return Histogram(edges=edges, counts=tuple(counts.tolist()), quantiles=_quantiles(values))


def _edges(least: int, most: int) -> tuple[int, ...]:
    if most >= 2 * max(least, 1):
        start = 0 if least == 0 else 1 << (least.bit_length() - 1)
        edges = [start]
        while edges[-1] <= most:
            edges.append(2 * edges[-1] or 1)
        return tuple(edges)
    width = -(-(most - least + 1) // _MAX_BINS)
    return tuple(range(least, most + width + 1, width))


def _quantiles(values: NDArray[np.int64]) -> dict[str, float]:
    least, median, tenth, hundredth, most = np.quantile(values, (0, 0.5, 0.9, 0.99, 1)).tolist()
    return {
        "min": least,
        "median": median,
        "p90": tenth,
        "p99": hundredth,
        "max": most,
        "mean": float(values.mean()),
    }
