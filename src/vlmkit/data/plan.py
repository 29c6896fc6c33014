"""Which rows are trained together, and in what order: one sequence of packs over all epochs, a pure function.

The sequence depends on the counts of the rows, the seed and the budgets; not on the number of ranks or workers, nor on
the machine. `dealing.py` gives its packs to ranks. An epoch shuffles anew; it draws from a random bit stream whose
values are guaranteed (PCG64) by a stable sort, so another version of numpy gives the same plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.packing import Budget, IntArray, best_fit, next_fit, split_evenly

Order = Literal["shuffled", "grouped", "sequential"]
_VERSION = 1
_GROUPED_ROWS = 2048
"""Rows among which `grouped` puts like to like: wide enough for even packs, narrow enough to stay a shuffle."""


@dataclass(frozen=True, kw_only=True)
class PlanRows:
    """The rows that can be trained on: one entry each, in the order of the index.

    Attributes:
        row: (n,) their rows in the index.
        source: (n,) which manifest each is from.
        num_tokens, num_supervised_tokens, num_patches: (n,) what each costs.
    """

    row: IntArray
    source: IntArray
    num_tokens: IntArray
    num_supervised_tokens: IntArray
    num_patches: IntArray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows that are trained in one micro-batch.

    Attributes:
        number: Its place in the plan.
        rows: Rows of the index, in the order in which they are joined.
        epoch: Which pass over the data it belongs to, from 0.
    """

    number: int
    rows: tuple[int, ...]
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sequence of packs over all epochs.

    Attributes:
        key: Hash of all that determines the packs, but not of how many epochs there are: a longer plan begins with the
            packs of a shorter one.
        rows: (num_rows,) rows of the index, pack after pack.
        starts: (num_packs + 1,) where each pack begins in `rows`.
        epochs: (num_packs,) the epoch of each pack, ascending.
        num_tokens, num_supervised_tokens, num_patches: (num_packs,) what each pack costs.
        budget: What a pack may hold.
    """

    key: str
    rows: NDArray[np.int32]
    starts: IntArray
    epochs: NDArray[np.int32]
    num_tokens: IntArray
    num_supervised_tokens: IntArray
    num_patches: IntArray
    budget: Budget

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, number: int) -> Pack:
        if not 0 <= number < len(self):
            raise IndexError(number)
        rows = self.rows[self.starts[number] : self.starts[number + 1]]
        return Pack(number=number, rows=tuple(rows.tolist()), epoch=int(self.epochs[number]))

    @property
    def fill(self) -> float | None:
        """Share of the token budget that is used, 0 to 1; None where packs are numbers of rows."""
        if self.budget.tokens is None or not len(self):
            return None
        return float(self.num_tokens.sum() / (len(self) * self.budget.tokens))


def make_plan(
    rows: PlanRows,
    *,
    budget: Budget,
    seed: int,
    num_epochs: int | None,
    max_packs: int | None = None,
    order: Order = "shuffled",
    heaviest_first: bool = True,
    weights: Sequence[float] | None = None,
    contents: Sequence[str] = (),
) -> Plan:
    """Plan the packs of all epochs.

    Args:
        rows: What can be trained on.
        budget: What a pack may hold.
        seed: Of all that is random.
        num_epochs: Passes over the data; None: as many as `max_packs` asks for.
        max_packs: Cut the plan after so many packs.
        order: `shuffled`; `grouped` (shuffled, but with rows of like length in a pack); `sequential` (as the
            manifests have them, every epoch the same).
        heaviest_first: Change places between the first pack and the heaviest of its epoch, so that memory that
            does not suffice is found out at once. Not the heaviest of all epochs: each epoch has its own rows once, and a
            longer plan must begin with the packs of a shorter one, or a run could not be resumed with more epochs, nor
            with `max_packs` on another number of ranks. That one is run by the forecast, before the first step of every
            start of a run.
        weights: How often the rows of each source are seen in an epoch; None: once.
        contents: What else the rows depend on, such as hashes of the manifests; goes into the key.

    Raises:
        ValueError: no rows, no end (neither epochs nor packs), weights that leave all epochs empty, or a row that alone
            exceeds the budget (`rows_over` names them).
    """
    if not len(rows):
        raise ValueError("there is no row to train on; give at least one")
    if num_epochs is None and max_packs is None:
        raise ValueError("the plan needs an end: a number of epochs or of packs")
    if len(over := rows_over(rows, budget)):
        raise ValueError(
            f"{len(over)} rows exceed the budget of a pack by themselves, the first is row {over[0]}; raise it or leave them out"
        )
    parts: dict[int, tuple[IntArray, IntArray]] = {}
    num_packs = epoch = 0
    while (num_epochs is None or epoch < num_epochs) and (max_packs is None or num_packs < max_packs):
        chosen = draw_rows(rows, weights, seed=seed, epoch=epoch)
        packed = _pack_epoch(rows, chosen, budget, order, seed=seed, epoch=epoch) if len(chosen) else None
        if packed is not None:
            parts[epoch] = packed if parts or not heaviest_first else _heaviest_to_front(rows, *packed)
            num_packs += len(packed[1]) - 1
        epoch += 1
        if not num_packs and epoch > 1_000_000:
            raise ValueError("the weights are too small: a million epochs hold no row; raise them")
    if not parts:
        raise ValueError(f"the weights are too small: {num_epochs} epochs hold no row; raise them")
    settings: dict[str, object] = {
        "version": _VERSION,
        "seed": seed,
        "budget": asdict(budget),
        "order": order,
        "heaviest_first": heaviest_first,
        "weights": weights and list(weights),
        "contents": list(contents),
    }
    return _assembled(rows, parts, max_packs, budget, key=_plan_key(rows, settings))


def rows_over(rows: PlanRows, budget: Budget) -> IntArray:
    """Rows of the index that exceed the budget of a pack by themselves."""
    over = np.zeros(len(rows), dtype=np.bool_)
    if budget.tokens is not None:
        over |= rows.num_tokens > budget.tokens
    if budget.patches is not None:
        over |= rows.num_patches > budget.patches
    return rows.row[over]


def draw_rows(rows: PlanRows, weights: Sequence[float] | None, *, seed: int, epoch: int) -> IntArray:
    """Places (in `rows`) of what an epoch sees, in the order of the sources.

    A weight w takes w times the rows of its source: they lie in a circle, in an order drawn once, and each epoch takes
    the next w circles' worth. So no row comes twice in an epoch before all have come once, and over the epochs all
    rows come equally often.
    """
    if weights is None or all(weight == 1 for weight in weights):
        return np.arange(len(rows), dtype=np.int64)
    drawn: list[IntArray] = []
    for source, weight in enumerate(weights):
        places = np.flatnonzero(rows.source == source)
        first, end = int(epoch * weight * len(places)), int((epoch + 1) * weight * len(places))
        if weight != int(weight):
            places = places[_permutation(len(places), seed, 1, source)]
        if len(places):
            drawn.append(places[np.arange(first, end) % len(places)])
    return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)


def _pack_epoch(
    rows: PlanRows, chosen: IntArray, budget: Budget, order: Order, *, seed: int, epoch: int
) -> tuple[IntArray, IntArray]:
    """Places of the epoch's rows, pack after pack, and where each pack begins."""
    if order == "sequential":
        chosen = np.sort(chosen, kind="stable")
        return chosen, _in_order(rows, chosen, budget)
    chosen = chosen[_permutation(len(chosen), seed, 2, epoch)]
    if order == "grouped":
        chosen = _grouped(rows, chosen)
        starts = _in_order(rows, chosen, budget)
    elif budget.rows is not None:
        return chosen, split_evenly(len(chosen), budget.rows)
    else:
        inner, starts = best_fit(rows.num_tokens[chosen], rows.num_patches[chosen], budget)
        chosen = chosen[inner]
    return _reordered(chosen, starts, _permutation(len(starts) - 1, seed, 3, epoch))


def _in_order(rows: PlanRows, chosen: IntArray, budget: Budget) -> IntArray:
    if budget.rows is not None:
        return split_evenly(len(chosen), budget.rows)
    return next_fit(rows.num_tokens[chosen], rows.num_patches[chosen], budget)


def _grouped(rows: PlanRows, chosen: IntArray) -> IntArray:
    """Sorted by length within stretches of the shuffle."""
    stretch = np.arange(len(chosen)) // _GROUPED_ROWS
    return chosen[np.lexsort((rows.num_patches[chosen], rows.num_tokens[chosen], stretch))]


def _heaviest_to_front(rows: PlanRows, chosen: IntArray, starts: IntArray) -> tuple[IntArray, IntArray]:
    weight = pack_weights(_sums(rows.num_tokens[chosen], starts), _sums(rows.num_patches[chosen], starts))
    order = np.arange(len(starts) - 1)
    heaviest = int(np.argmax(weight))
    order[[0, heaviest]] = order[[heaviest, 0]]
    return _reordered(chosen, starts, order)


def pack_weights(num_tokens: IntArray, num_patches: IntArray) -> NDArray[np.float64]:
    """How heavy each pack is: tokens and patches, each in units of their mean."""
    return num_tokens / max(num_tokens.mean(), 1.0) + num_patches / max(num_patches.mean(), 1.0)


def _reordered(chosen: IntArray, starts: IntArray, order: IntArray) -> tuple[IntArray, IntArray]:
    """Packs in another order."""
    sizes = np.diff(starts)[order]
    ends = np.cumsum(sizes)
    places = np.repeat(starts[:-1][order] - (ends - sizes), sizes) + np.arange(len(chosen))
    return chosen[places], np.concatenate((np.zeros(1, dtype=np.int64), ends))


def _sums(values: IntArray, starts: IntArray) -> IntArray:
    """Sum of each pack; no pack is empty."""
    return np.add.reduceat(values, starts[:-1], dtype=np.int64)


def _assembled(
    rows: PlanRows, parts: dict[int, tuple[IntArray, IntArray]], max_packs: int | None, budget: Budget, *, key: str
) -> Plan:
    chosen = np.concatenate([part for part, _ in parts.values()])
    sizes = np.concatenate([np.diff(starts) for _, starts in parts.values()])[:max_packs]
    epochs = np.concatenate([np.full(len(starts) - 1, epoch) for epoch, (_, starts) in parts.items()])[:max_packs]
    starts = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes)))
    chosen = chosen[: starts[-1]]
    return Plan(
        key=key,
        rows=rows.row[chosen].astype(np.int32),
        starts=starts,
        epochs=epochs.astype(np.int32),
        num_tokens=_sums(rows.num_tokens[chosen], starts),
        num_supervised_tokens=_sums(rows.num_supervised_tokens[chosen], starts),
        num_patches=_sums(rows.num_patches[chosen], starts),
        budget=budget,
    )


def _plan_key(rows: PlanRows, settings: dict[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for column in (rows.row, rows.source, rows.num_tokens, rows.num_supervised_tokens, rows.num_patches):
        digest.update(np.ascontiguousarray(column, dtype="<i8").data)
    return digest.hexdigest()


def _permutation(size: int, seed: int, *stream: int) -> IntArray:
    """A random order that depends on nothing but its arguments."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, *stream])).random_raw(size)
    return np.argsort(bits, kind="stable")
