"""What becomes of every row: trained, skipped and why, or over-long; nothing is left unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.index import OK, Index
from vlmkit.data.overlong import WHOLE, Fits, Overlong, fit_rows
from vlmkit.data.plan import PlanRows
from vlmkit.errors import DataError
from vlmkit.processing.processor import Processor

OnBadRow = Literal["error", "skip"]
MAX_FAULTS_SHOWN = 5
MAX_OVERLONG_LISTED = 1000
TRAINED, TEXT_ONLY, OVER_LONG, NOT_DRAWN, NOT_REACHED = "trained", "text_only", "overlong", "not_drawn", "not_reached"
MASKED = "masked"
_FINDINGS = {
    TEXT_ONLY: "no image or video, so it trains nothing where only the merger learns.",
    MASKED: "a medium of it could not be read while training; `masked` says which and why.",
    NOT_DRAWN: "the plan ends before it, or its source's weight leaves it out.",
    NOT_REACHED: "it stands in the plan, and the run ended before it.",
}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict for every row of an index.

    Attributes:
        index: The rows.
        words: What a verdict can be; the first is `trained`.
        verdict: (num_rows,) place in `words`.
        max_tokens: Longest row; None: any.
        policy: What was done about longer ones.
        fits: The over-long rows that were made to fit; they are trained.
        overlong: Rows longer than `max_tokens`, fitted or not.
    """

    index: Index
    words: tuple[str, ...]
    verdict: NDArray[np.uint8]
    max_tokens: int | None
    policy: Overlong
    fits: Fits
    overlong: NDArray[np.int64] = field(repr=False)

    def rows(self, word: str) -> NDArray[np.int64]:
        """The rows with a verdict."""
        return np.flatnonzero(self.verdict == self.words.index(word))

    def plan_rows(self) -> PlanRows:
        """The rows that can be trained on, with what they cost as they are trained."""
        index, fits = self.index, self.fits
        chosen = self.rows(TRAINED)
        fitted = np.flatnonzero(np.isin(fits.row, chosen))
        places = np.searchsorted(chosen, fits.row[fitted])

        def column(name: str) -> NDArray[np.int64]:
            values = getattr(index, name)[chosen].astype(np.int64)
            values[places] = getattr(fits, name)[fitted]
            return values

        return PlanRows(
            row=chosen,
            source=index.source[chosen].astype(np.int64),
            num_tokens=column("num_tokens"),
            num_supervised_tokens=column("num_supervised_tokens"),
            num_patches=column("num_patches"),
        )

    def counts(self) -> dict[str, int]:
        """Rows of each verdict, most frequent first."""
        return _counted(self.verdict, self.words)

    def finding(self, row: int) -> str:
        """Why a row is not trained, in words."""
        word = self.words[self.verdict[row]]
        if word == OVER_LONG:
            return f"{self.index.num_tokens[row]} tokens, more than data.max_tokens={self.max_tokens}."
        known = next((fault.finding for fault in self.index.faults if fault.row == row), None)
        return _FINDINGS.get(word) or known or f"{word}."

    def with_masked(self, rows: Iterable[int]) -> Judgement:
        """The verdicts after training, where the media of some rows could not be read.

        A row that was masked once is masked, even where another epoch could read it.
        """
        verdict = self.verdict.copy()
        verdict[list(rows)] = len(self.words)
        return replace(self, words=(*self.words, MASKED), verdict=verdict)

    def accounting(self, planned: NDArray[np.int32], *, num_reached: int) -> dict[str, Any]:
        """For `report.json`: what became of every row, by source and reason, with the first of each.

        A row is counted once, however often it was seen: under `trained` if it was trained on at all, else under the one
        reason why not. So `read = trained + skipped + masked + overlong` for every source.

        Args:
            planned: Rows of the plan, in its order. A row that could be trained and is not among them is skipped as
                `not_drawn`.
            num_reached: How many of them were trained on; a row that stands only behind these is skipped as
                `not_reached`.
        """
        drawn, reached = np.zeros((2, len(self.index)), dtype=np.bool_)
        drawn[planned] = True
        reached[planned[:num_reached]] = True
        words = (*self.words, NOT_DRAWN, NOT_REACHED)
        usable = self.verdict == OK
        verdict = np.where(usable & ~drawn, words.index(NOT_DRAWN), self.verdict)
        verdict = np.where(usable & drawn & ~reached, words.index(NOT_REACHED), verdict)
        final = replace(self, words=words, verdict=verdict.astype(np.uint8))
        first: dict[str, dict[str, str]] = {}
        for word in words[1:]:
            if len(rows := final.rows(word)):
                first[word] = {"where": str(self.index.origin(int(rows[0]))), "finding": final.finding(int(rows[0]))}
        sources = final.by_source()
        for told in sources.values():
            assert told["read"] == told["trained"] + told["skipped"] + told["masked"] + told["overlong"], told
        return {
            "samples": num_reached,
            "sources": sources,
            "first_of_each": first,
            "overlong": self.overlong_cases(),
        }

    def by_source(self) -> dict[str, dict[str, Any]]:
        """Counts of each source, under its name."""
        told: dict[str, dict[str, Any]] = {}
        for number, source in enumerate(self.index.sources):
            verdicts = self.verdict[self.index.source == number]
            skipped = _counted(verdicts, self.words)
            trained, overlong = skipped.pop(TRAINED, 0), skipped.pop(OVER_LONG, 0)
            masked = skipped.pop(MASKED, 0)
            told[source.name] = {
                "path": str(source.path),
                "read": len(verdicts),
                "trained": trained,
                "skipped": sum(skipped.values()),
                "masked": masked,
                "overlong": overlong,
                "skipped_by_reason": skipped,
            }
        return told

    def overlong_cases(self) -> dict[str, Any]:
        """Every over-long row, and what was done about it."""
        cases = [self._case(row) for row in self.overlong[:MAX_OVERLONG_LISTED].tolist()]
        fitted = int(np.count_nonzero(self.verdict[self.overlong] == OK))
        return {
            "policy": self.policy,
            "max_tokens": self.max_tokens,
            "fitted": fitted,
            "dropped": len(self.overlong) - fitted,
            "rows": cases,
            "not_listed": len(self.overlong) - len(cases),
        }

    def _case(self, row: int) -> dict[str, Any]:
        told: dict[str, Any] = {"where": str(self.index.origin(row)), "tokens": int(self.index.num_tokens[row])}
        place = self.fits.place(row)
        if place is None or self.verdict[row] != OK:
            return told | {"done": "dropped"}
        told["trained_tokens"] = int(self.fits.num_tokens[place])
        if self.fits.num_turns[place] != WHOLE:
            return told | {"done": f"turns after the first {self.fits.num_turns[place]} dropped"}
        return told | {"done": f"media shrunk to at most {self.fits.max_visual_tokens[place]} visual tokens an image"}


def judge(
    index: Index,
    processor: Processor,
    *,
    on_bad_row: OnBadRow,
    max_bad_rows: float | None,
    max_tokens: int | None,
    overlong: Overlong,
    require_media: bool,
    num_processes: int = 0,
) -> Judgement:
    """Say of every row what becomes of it.

    Args:
        index: The rows.
        processor: What they were counted with; makes over-long rows fit.
        on_bad_row: `error`, or `skip`.
        max_bad_rows: Under `skip`, the most bad rows: a share of all rows, or a count; None: any number.
        max_tokens: Longest row; None: any.
        overlong: What is done about longer ones; see `overlong.py`.
        require_media: Leave text-only rows out.
        num_processes: Processes to fit rows with.

    Raises:
        DataError: a bad or over-long row where that is an error, or more bad rows than may be skipped, naming the first
            ones and how many there are.
    """
    words = (TRAINED, *index.reasons, TEXT_ONLY, OVER_LONG)
    verdict = np.array(index.verdict)
    bad = np.flatnonzero(verdict)
    remedy = refusal_of_bad_rows(len(bad), len(index), on_bad_row=on_bad_row, max_bad_rows=max_bad_rows)
    if remedy:
        judged = Judgement(
            index=index,
            words=words,
            verdict=verdict,
            max_tokens=max_tokens,
            policy=overlong,
            fits=Fits(None),
            overlong=np.empty(0, dtype=np.int64),
        )
        _refuse(judged, bad, remedy)
    if require_media:
        verdict[(verdict == OK) & (index.num_media == 0)] = words.index(TEXT_ONLY)
    long = np.empty(0, dtype=np.int64)
    if max_tokens is not None:
        long = np.flatnonzero((verdict == OK) & (index.num_tokens > max_tokens))
    verdict[long] = words.index(OVER_LONG)
    fits = fit_rows(index, long, processor, policy=overlong, max_tokens=max_tokens or 0, num_processes=num_processes)
    verdict[fits.row[fits.num_media > 0 if require_media else fits.num_tokens > 0]] = OK
    judged = Judgement(
        index=index,
        words=words,
        verdict=verdict,
        max_tokens=max_tokens,
        policy=overlong,
        fits=fits,
        overlong=long,
    )
    if len(long) and overlong == "error":
        _refuse(
            judged,
            long,
            "Raise data.max_tokens, lower data.image_max_pixels, or choose data.overlong=shrink_media, "
            "data.overlong=drop_turns or data.overlong=drop: these count what they do.",
        )
    return judged


def refusal_of_bad_rows(num_bad: int, num_rows: int, *, on_bad_row: OnBadRow, max_bad_rows: float | None) -> str:
    """What to do where so many bad rows stop a run; "" where they do not."""
    if on_bad_row == "error":
        return "data.on_bad_row=skip trains on the others and counts these." if num_bad else ""
    if max_bad_rows is None:
        return ""
    most = int(max_bad_rows * num_rows + 1e-9) if isinstance(max_bad_rows, float) else max_bad_rows
    if num_bad <= most:
        return ""
    rows = "row is" if num_bad == 1 else "rows are"
    return (
        f"{num_bad:,} bad {rows} more than data.max_bad_rows={max_bad_rows} allows ({most:,} of {num_rows:,}). Correct them "
        "(vlmkit-check check.bad_rows=bad.jsonl lists all), or raise data.max_bad_rows."
    )


def _refuse(judged: Judgement, rows: NDArray[np.int64], remedy: str) -> None:
    told = [f"{judged.index.origin(int(row))}: {judged.finding(int(row))}" for row in rows[:MAX_FAULTS_SHOWN]]
    more = f"\n... and {len(rows) - len(told)} more" if len(rows) > len(told) else ""
    listed = "\n".join(told)
    raise DataError(
        f"{listed}{more}\n{len(rows)} of {len(judged.index)} rows cannot be used. {remedy}", reason="bad_rows"
    )


def _counted(verdict: NDArray[np.uint8], words: tuple[str, ...]) -> dict[str, int]:
    numbers = np.bincount(verdict, minlength=len(words))
    return dict(Counter({word: int(count) for word, count in zip(words, numbers, strict=True) if count}).most_common())
