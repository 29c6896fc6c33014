"""Put rows into packs under a budget of tokens and one of patches: pure functions of counts, in one pass.

The streaming best fit keeps some hundred packs open and puts each row, in the order given, into the open pack that it
fills best; so packs are full and hold neighbours of the shuffle, not rows of one kind.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPEN_PACKS = 512
"""Packs that a best fit keeps open. More fill better and take longer to find."""
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a pack may hold. Either a number of rows, or tokens and, as wanted, patches.

    Attributes:
        rows: Rows in every pack (the last of an epoch may hold fewer).
        tokens: Most tokens.
        patches: Most vision patches; None leaves them to the tokens.
    """

    rows: int | None = None
    tokens: int | None = None
    patches: int | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError(
                "a pack is made of data.batch_size rows or of data.tokens_per_batch tokens: give one of the two"
            )
        if self.rows is not None and self.patches is not None:
            raise ValueError(
                "data.patches_per_batch goes with one of tokens, data.tokens_per_batch, not with a number of rows"
            )
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"the {name} of a pack must be positive, got {value}")


def split_evenly(num_rows: int, size: int) -> IntArray:
    """Where packs of `size` rows begin, and the end: (num_packs + 1,)."""
    return np.append(np.arange(0, num_rows, size, dtype=np.int64), num_rows)


def next_fit(tokens: IntArray, patches: IntArray, budget: Budget) -> IntArray:
    """Fill packs strictly in order, each until the next row does not fit.

    Returns:
        Where each pack begins, and the end: (num_packs + 1,).
    """
    limit, patch_limit = _limits(budget)
    starts = [0]
    used = used_patches = 0
    for place, (more, more_patches) in enumerate(zip(tokens.tolist(), patches.tolist(), strict=True)):
        if used + more > limit or used_patches + more_patches > patch_limit:
            starts.append(place)
            used = used_patches = 0
        used, used_patches = used + more, used_patches + more_patches
    return np.asarray([*starts, len(tokens)], dtype=np.int64)


def best_fit(
    tokens: IntArray, patches: IntArray, budget: Budget, *, open_packs: int = OPEN_PACKS
) -> tuple[IntArray, IntArray]:
    """Put each row into the open pack that has the least room left for it; see the module.

    Args:
        tokens, patches: (num_rows,) what each row takes, none more than the budget.
        budget: Of tokens, perhaps of patches.
        open_packs: Packs kept open; the fullest is closed where there would be more.

    Returns:
        Order of the rows, pack after pack, and where each pack begins in it with the end: (num_rows,) and
        (num_packs + 1,). Packs stand in the order in which they were closed.
    """
    packs = _OpenPacks(budget, smallest=int(tokens.min(initial=1)), capacity=open_packs)
    for place, (need, need_patches) in enumerate(zip(tokens.tolist(), patches.tolist(), strict=True)):
        packs.put(place, need, need_patches)
    rest = sorted((place for pack in packs.contents for place in pack), key=lambda place: (-int(tokens[place]), place))
    last = _OpenPacks(budget, smallest=1, capacity=len(rest))  # what is open at the end, once more, longest first
    for place in rest:
        last.put(place, int(tokens[place]), int(patches[place]))
    return _joined(packs.closed + last.closed + last.contents)


class _OpenPacks:
    """Packs that are still being filled, by the tokens they have room for.

    Attributes:
        closed: Packs that are full, in the order in which they became so: places of rows.
        contents: Packs that are open.
    """

    def __init__(self, budget: Budget, *, smallest: int, capacity: int) -> None:
        self._limit, self._patch_limit = _limits(budget)
        self._smallest = smallest
        self._capacity = capacity
        self._room: list[int] = []  # ascending; the two lists beside it run along
        self._patch_room: list[int] = []
        self.contents: list[list[int]] = []
        self.closed: list[list[int]] = []

    def put(self, place: int, tokens: int, patches: int) -> None:
        """Add a row to the pack that it fills best."""
        room, patch_room, contents = self._room, self._patch_room, self.contents
        at = bisect_left(room, tokens)
        while at < len(room) and patch_room[at] < patches:
            at += 1
        if at < len(room):
            left, patches_left, pack = room.pop(at), patch_room.pop(at), contents.pop(at)
        else:
            left, patches_left, pack = self._limit, self._patch_limit, []
        pack.append(place)
        left -= tokens
        if left < self._smallest:
            self.closed.append(pack)
            return
        at = bisect_left(room, left)
        room.insert(at, left)
        patch_room.insert(at, patches_left - patches)
        contents.insert(at, pack)
        if len(room) > self._capacity:
            del room[0], patch_room[0]
            self.closed.append(contents.pop(0))


def _limits(budget: Budget) -> tuple[int, int]:
    assert budget.tokens is not None
    return budget.tokens, 1 << 62 if budget.patches is None else budget.patches


def _joined(packs: list[list[int]]) -> tuple[IntArray, IntArray]:
    order = np.fromiter((place for pack in packs for place in pack), dtype=np.int64)
    ends = np.cumsum(np.fromiter(map(len, packs), dtype=np.int64))
    return order, np.concatenate((np.zeros(1, dtype=np.int64), ends))
