"""Records of one benchmark in several files: each rank appends to its own, the first joins them.

Nothing is agreed upon between ranks while they answer: which cases are whose follows from their places in the data, and
what is answered already is read from all files. So a run may be continued by any number of ranks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlmkit.evaluation.records import Record, read_records, replace_records, set_aside, whole_records

_PART = re.compile(r"records\.rank-(\d+)\.jsonl")
_POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which cases a process answers.

    Attributes:
        rank: Of this process, from 0.
        num_ranks: Processes that answer together.
    """

    rank: int
    num_ranks: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_ranks:
            raise ValueError(f"rank {self.rank} of {self.num_ranks} does not exist. Set RANK and WORLD_SIZE to match.")

    def holds(self, place: int) -> bool:
        """Whether the case at a place of the data is this process's."""
        return place % self.num_ranks == self.rank

    def own(self, path: Path) -> Path:
        """The file that this process appends to.

        Args:
            path: `records.jsonl` of the benchmark.
        """
        return path if self.num_ranks == 1 else path.with_name(f"records.rank-{self.rank}.jsonl")


ALONE = Share(rank=0, num_ranks=1)


def parts_of(path: Path) -> dict[int, Path]:
    """The files of ranks beside `records.jsonl`, by rank."""
    found = {int(match[1]): one for one in path.parent.glob("records.rank-*") if (match := _PART.fullmatch(one.name))}
    return dict(sorted(found.items()))


def answered_already(path: Path, key: str, share: Share) -> tuple[set[str], list[Path]]:
    """Ids of the cases that have a record of this key in any file.

    Files that this process appends to, and on the first rank those of ranks that are no more, are made good first: torn
    lines are cut off, and records of another key are set aside.

    Args:
        path: `records.jsonl` of the benchmark.
        key: Of the records that count.
        share: Of this process.

    Returns:
        The ids, and where records of other keys lie now.
    """
    parts = parts_of(path)
    mine = {share.own(path)}
    if share.rank == 0:
        mine |= {path, *(part for rank, part in parts.items() if rank >= share.num_ranks or share.num_ranks == 1)}
    aside: list[Path] = []
    for own in sorted(mine):
        if any(record["key"] != key for record in read_records(own)):
            aside.append(set_aside(own))
    kept = (record for record in _all_records(path) if record["key"] == key and not record.get("transient"))
    return {record["id"] for record in kept}, aside


def await_all(path: Path, key: str, identifiers: Iterable[str]) -> None:
    """Wait until every case has a record, from whatever rank. Who fails is another's concern: it ends this process.

    Args:
        path: `records.jsonl` of the benchmark.
        key: Of the records that count.
        identifiers: Of the cases.
    """
    wanted = set(identifiers)
    seen: list[tuple[Path, int]] | None = None
    while wanted:
        sizes = [(one, one.stat().st_size) for one in [path, *parts_of(path).values()] if one.is_file()]
        if sizes != seen:
            seen = sizes
            wanted -= {record["id"] for record in _all_records(path) if record["key"] == key}
        else:
            time.sleep(_POLL_SECONDS)


def join_parts(path: Path) -> None:
    """Put the records of all ranks into `records.jsonl`, and remove their files."""
    if not (parts := parts_of(path)):
        return
    found = [record for one in (path, *parts.values()) for record in read_records(one)]
    found.sort(key=lambda record: not record.get("transient"))  # what may be asked again gives way to an answer
    replace_records(path, {record["id"]: record for record in found}.values())
    for part in parts.values():
        part.unlink()


def _all_records(path: Path) -> list[Record]:
    return [record for one in (path, *parts_of(path).values()) for record in whole_records(one)]
