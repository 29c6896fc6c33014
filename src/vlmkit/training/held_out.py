"""What a model makes of the rows that are held out, one by one: the mean loss, and how far chance moves it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmkit.storage import written_aside


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Losses of held-out samples.

    Attributes:
        rows: Of the index, in ascending order.
        losses: Cross-entropy of each, summed over its supervised tokens.
        tokens: Supervised tokens of each, at least one.
    """

    rows: tuple[int, ...]
    losses: tuple[float, ...]
    tokens: tuple[int, ...]

    @classmethod
    def joined(cls, parts: Sequence[tuple[list[int], list[float], list[float]]]) -> HeldOut:
        """Of what each rank saw; samples that train nothing (their media could not be read) are left out."""
        found = sorted(one for part in parts for one in zip(*part, strict=True) if one[2])
        return cls(
            rows=tuple(row for row, _, _ in found),
            losses=tuple(loss for _, loss, _ in found),
            tokens=tuple(int(count) for _, _, count in found),
        )

    @property
    def mean(self) -> float:
        """Loss per supervised token; NaN where there is none."""
        return math.fsum(self.losses) / sum(self.tokens) if self.tokens else float("nan")

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean if the samples, not their tokens, were drawn at random; None for fewer than two.

        The mean is a ratio of two sums over samples: residuals against it, squared and summed (W. G. Cochran, Sampling
        Techniques, 1977, section 6.4).
        """
        n, mean = len(self.rows), self.mean
        if n < 2:
            return None
        squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(self.losses, self.tokens, strict=True))
        return math.sqrt(squares * n / (n - 1)) / sum(self.tokens)


def write_held_out(path: Path, held_out: HeldOut, where: Callable[[int], str]) -> None:
    """Write a line per sample: where it stands in its manifest, summed loss, supervised tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for row, loss, count in zip(held_out.rows, held_out.losses, held_out.tokens, strict=True):
            finite = loss if math.isfinite(loss) else None
            file.write(json.dumps({"schema": SCHEMA, "id": where(row), "loss": finite, "tokens": count}) + "\n")


SCHEMA = "vlmkit.held_out/1"
