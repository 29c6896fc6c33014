"""What all ranks must have planned alike before they train together: rows, verdicts, costs, packs; and where two differ."""

from __future__ import annotations

import io
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from vlmkit.data.index import Index
from vlmkit.data.judging import Judgement
from vlmkit.data.plan import Plan

_MAX_BLOCKS = 20_000
"""Stretches of rows whose costs are compared: single rows up to here, so that millions of rows stay below a megabyte."""
_COSTS = ("num_tokens", "num_supervised_tokens", "num_patches", "num_media")
_PLAN = ("rows", "starts", "epochs", "num_tokens", "num_supervised_tokens", "num_patches")


@dataclass(frozen=True, kw_only=True)
class DataDigest:
    """What a rank has made of the data, small enough to send.

    Attributes:
        place: The rank's machine and cache, for messages.
        index: Hash of the index.
        processor: What the rows were counted with.
        contents: Hash of each manifest's contents.
        words: What a verdict can be.
        verdict: (num_rows,) place in `words`.
        costs: (4, num_blocks) tokens, supervised tokens, patches and media, summed over blocks of rows.
        plans: Key, contents and number of packs of the training plan and, where rows are held out, of theirs.
        start: Optimiser steps and packs that are done where the run is resumed.
    """

    place: str
    index: str
    processor: str
    contents: tuple[str, ...]
    words: tuple[str, ...]
    verdict: NDArray[np.uint8]
    costs: NDArray[np.int64]
    plans: tuple[str, ...]
    start: tuple[int, int]

    def to_bytes(self) -> bytes:
        """As an `.npz` archive."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            texts=np.array([self.place, self.index, self.processor]),
            contents=np.array(self.contents),
            words=np.array(self.words),
            verdict=self.verdict,
            costs=self.costs,
            plans=np.array(self.plans),
            start=np.array(self.start),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> DataDigest:
        """Read what `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            place, index, processor = arrays["texts"].tolist()
            steps, packs = arrays["start"].tolist()
            return cls(
                place=place,
                index=index,
                processor=processor,
                contents=tuple(arrays["contents"].tolist()),
                words=tuple(arrays["words"].tolist()),
                verdict=arrays["verdict"],
                costs=arrays["costs"],
                plans=tuple(arrays["plans"].tolist()),
                start=(steps, packs),
            )


def digest_data(
    judgement: Judgement, plans: Sequence[Plan], *, processor: str, cache_dir: Path, start: tuple[int, int]
) -> DataDigest:
    """The digest of this rank's index, verdicts and plans."""
    index = judgement.index
    firsts = _block_starts(len(index))
    columns: list[NDArray[np.int64]] = [getattr(index, name).astype(np.int64) for name in _COSTS]
    return DataDigest(
        place=f"{socket.gethostname()}, data.cache_dir={cache_dir}",
        index=index.digest,
        processor=processor,
        contents=index.contents,
        words=judgement.words,
        verdict=judgement.verdict,
        costs=np.stack([np.add.reduceat(column, firsts) for column in columns]),
        plans=tuple(_plan_digest(plan) for plan in plans),
        start=start,
    )


def find_difference(mine: DataDigest, other: DataDigest, index: Index, *, names: tuple[str, str]) -> str | None:
    """Where two ranks differ, in a sentence that names both; None where they do not.

    Args:
        mine: This rank's.
        other: Another's.
        index: This rank's.
        names: This rank and the other, as messages call them.
    """
    here, there = names
    if mine.start != other.start:
        return (
            f"{here} begins after step {mine.start[0]} ({mine.start[1]} packs) and {there} after step {other.start[0]} "
            f"({other.start[1]} packs): run_dir and resume_from must lead all ranks to the same checkpoint."
        )
    if mine.processor != other.processor:
        return f"the processor (tokenizer, template, pixel limits) of {here} is {mine.processor}, of {there} {other.processor}."
    for number, source in enumerate(index.sources):
        pair = [digest.contents[number : number + 1] for digest in (mine, other)]
        if pair[0] != pair[1]:
            hashes = [content[0][:12] if content else "missing" for content in pair]
            return (
                f"{source.path} has other contents on {here} (hash {hashes[0]}, {len(mine.verdict)} rows in all) than on "
                f"{there} (hash {hashes[1]}, {len(other.verdict)} rows in all)."
            )
    if len(mine.verdict) != len(other.verdict):
        return f"{here} has {len(mine.verdict)} rows and {there} has {len(other.verdict)}."
    ours, theirs = (np.array(digest.words)[digest.verdict] for digest in (mine, other))
    if len(rows := np.flatnonzero(ours != theirs)):
        row = int(rows[0])
        return (
            f"{index.origin(row)} is {ours[row]} on {here} and {theirs[row]} on {there}; {len(rows)} of {len(ours)} rows "
            "have another verdict."
        )
    if not np.array_equal(mine.costs, other.costs):
        return _cost_difference(mine, other, index, names=names)
    if mine.plans != other.plans:
        return (
            f"the rows are the same, the packs are not: plan {'; '.join(mine.plans)} on {here}, {'; '.join(other.plans)} on "
            f"{there}. Start all ranks with the same settings of data, trainer and seed, and the same versions of vlmkit and numpy."
        )
    return None


def _cost_difference(mine: DataDigest, other: DataDigest, index: Index, *, names: tuple[str, str]) -> str:
    block = int(np.flatnonzero((mine.costs != other.costs).any(axis=0))[0])
    starts = _block_starts(len(index))
    first = int(starts[block])
    last = int(starts[block + 1]) - 1 if block + 1 < len(starts) else len(index) - 1
    rows = str(index.origin(first)) + (f" to {index.origin(last)}" if last > first else "")
    costs: list[str] = []
    for digest, name in zip((mine, other), names, strict=True):
        tokens, supervised, patches, media = digest.costs[:, block].tolist()
        costs.append(f"{tokens} tokens ({supervised} supervised), {patches} patches and {media} media on {name}")
    return f"{rows} has {costs[0]}, {costs[1]}: its media are not the same."


def _block_starts(num_rows: int) -> NDArray[np.int64]:
    return np.arange(0, num_rows, max(1, -(-num_rows // _MAX_BLOCKS)))


def _plan_digest(plan: Plan) -> str:
    hasher = xxhash.xxh3_64()
    for name in _PLAN:
        column: NDArray[Any] = getattr(plan, name)
        hasher.update(np.ascontiguousarray(column, dtype="<i8").data)
    return f"{plan.key[:12]} {hasher.hexdigest()} of {len(plan)} packs"
