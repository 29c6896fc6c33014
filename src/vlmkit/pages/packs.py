"""The packs of a plan as bars: what each holds, how full it is, and how much of it is supervised."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlmkit.data.index import Index
from vlmkit.data.plan import Plan, PlanRows


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One sample of a pack: its row of the index and what it costs."""

    row: int
    where: str
    tokens: int
    supervised: int
    visual: int


@dataclass(frozen=True, kw_only=True)
class PackBar:
    """One pack: its number in the plan, its epoch (from 0), its samples in the order in which they are joined."""

    number: int
    epoch: int
    segments: list[Segment]


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """The first packs of a plan, and figures of all.

    Attributes:
        bars: The first packs.
        num_packs, num_samples, num_epochs: Of the whole plan.
        num_tokens, num_supervised_tokens, num_patches: As above.
        capacity: Most tokens of a pack; None where packs are numbers of rows.
        most_tokens: Of the pack with most.
        fill: Share of the token budget that is used; None where there is no budget.
        places: For each row that is looked at, the first packs that it is in.
    """

    bars: list[PackBar]
    num_packs: int
    num_samples: int
    num_epochs: int
    num_tokens: int
    num_supervised_tokens: int
    num_patches: int
    capacity: int | None
    most_tokens: int
    fill: float | None
    places: dict[int, list[int]]

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return asdict(self)


def view_plan(
    plan: Plan, rows: PlanRows, index: Index, *, num_packs: int, merge_size: int, looked_at: list[int]
) -> PlanView:
    """Describe a plan.

    Args:
        plan: The packs.
        rows: What each row costs as it is trained.
        index: Where the rows are.
        num_packs: Packs that become bars.
        merge_size: Patches along each side of a visual token.
        looked_at: Rows whose packs are to be told.
    """
    bars = [_bar(plan, number, rows, index, merge_size) for number in range(min(num_packs, len(plan)))]
    return PlanView(
        bars=bars,
        num_packs=len(plan),
        num_samples=len(plan.rows),
        num_epochs=len(np.unique(plan.epochs)),
        num_tokens=int(plan.num_tokens.sum()),
        num_supervised_tokens=int(plan.num_supervised_tokens.sum()),
        num_patches=int(plan.num_patches.sum()),
        capacity=plan.budget.tokens,
        most_tokens=int(plan.num_tokens.max()),
        fill=plan.fill,
        places={row: _packs_of(plan, row) for row in looked_at},
    )


def _bar(plan: Plan, number: int, rows: PlanRows, index: Index, merge_size: int) -> PackBar:
    pack = plan[number]
    places = np.searchsorted(rows.row, pack.rows)
    segments = [
        Segment(
            row=row,
            where=str(index.origin(row)),
            tokens=int(rows.num_tokens[place]),
            supervised=int(rows.num_supervised_tokens[place]),
            visual=int(rows.num_patches[place]) // merge_size**2,
        )
        for row, place in zip(pack.rows, places.tolist(), strict=True)
    ]
    return PackBar(number=number, epoch=pack.epoch, segments=segments)


def _packs_of(plan: Plan, row: int, most: int = 8) -> list[int]:
    places = np.flatnonzero(plan.rows == row)[:most]
    return [int(number) for number in np.searchsorted(plan.starts, places, side="right") - 1]
