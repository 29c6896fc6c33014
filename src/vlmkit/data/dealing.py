"""Give the packs of a plan to ranks and micro-batches: a pure function, so every rank computes the same.

An optimiser step takes the next `num_ranks * accumulate` packs of the plan. Within it, packs of like weight are
trained at the same time, and heavy ones go to the ranks that had light ones before, so that ranks finish together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.plan import IntArray, Plan, pack_weights

IDLE = -1
"""Number of the pack that a rank without one has, at the end of the plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One micro-batch of one rank.

    Attributes:
        pack: Number of the pack in the plan; `IDLE` where there is none left for this rank.
        rows: Rows of the index in it.
        step: Optimiser step it belongs to, from 0 where the dealing begins.
        step_supervised_tokens: Supervised tokens of that step, over all ranks and micro-batches.
        epoch: Pass over the data, from 0.
    """

    pack: int
    rows: tuple[int, ...]
    step: int
    step_supervised_tokens: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The packs from `start_pack` on, dealt out.

    Attributes:
        plan: What was dealt.
        start_pack: The first pack that is dealt; those before it are done.
        accumulate: Micro-batches of a step; the last step may have fewer, but as many on every rank.
        packs: (num_micro_batches, num_ranks) number of the pack in each slot, or `IDLE`.
        step_supervised_tokens: (num_steps,) supervised tokens of each step.
    """

    plan: Plan
    start_pack: int
    accumulate: int
    packs: IntArray
    step_supervised_tokens: IntArray

    def __len__(self) -> int:
        return len(self.step_supervised_tokens)

    @property
    def num_ranks(self) -> int:
        """Ranks that the packs are dealt to."""
        return self.packs.shape[1]

    def slots(self, rank: int) -> Sequence[Slot]:
        """The micro-batches of one rank, in order."""
        return _Slots(self, rank)

    def num_consumed(self, num_steps: int) -> int:
        """Packs of the plan that are done after so many steps of this dealing: where a resume starts."""
        return min(len(self.plan), self.start_pack + num_steps * self.num_ranks * self.accumulate)

    def rank_loads(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(num_steps, num_ranks) tokens, and patches, of each rank in each step."""
        step = np.arange(len(self.packs)) // self.accumulate
        loads: list[NDArray[np.float64]] = []
        for counts in (self.plan.num_tokens, self.plan.num_patches):
            of_slots = np.where(self.packs == IDLE, 0, counts[self.packs])
            sums = np.zeros((len(self), self.num_ranks))
            np.add.at(sums, step, of_slots)
            loads.append(sums)
        return loads[0], loads[1]


class _Slots(Sequence[Slot]):
    """The column of one rank; slots are made as they are asked for."""

    def __init__(self, steps: Steps, rank: int) -> None:
        self._steps = steps
        self._rank = rank

    def __len__(self) -> int:
        return len(self._steps.packs)

    @overload
    def __getitem__(self, place: int) -> Slot: ...
    @overload
    def __getitem__(self, place: slice) -> list[Slot]: ...
    def __getitem__(self, place: int | slice) -> Slot | list[Slot]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        steps, place = self._steps, range(len(self))[place]
        number, step = int(steps.packs[place, self._rank]), place // steps.accumulate
        last = int(steps.packs[place].max())
        return Slot(
            pack=number,
            rows=() if number == IDLE else steps.plan[number].rows,
            step=step,
            step_supervised_tokens=int(steps.step_supervised_tokens[step]),
            epoch=int(steps.plan.epochs[last if number == IDLE else number]),
        )


def deal(plan: Plan, *, num_ranks: int, accumulate: int, start_pack: int = 0) -> Steps:
    """Deal the packs from `start_pack` on to ranks and micro-batches, each exactly once.

    Args:
        plan: The packs.
        num_ranks: Ranks that train at the same time.
        accumulate: Micro-batches of each rank in an optimiser step.
        start_pack: Packs that are done.

    Raises:
        ValueError: no rank, no micro-batch, or a start beyond the plan.
    """
    if num_ranks < 1 or accumulate < 1 or not 0 <= start_pack <= len(plan):
        raise ValueError(
            f"cannot deal {len(plan)} packs from {start_pack} on to {num_ranks} ranks, {accumulate} micro-batches each"
        )
    numbers = np.arange(start_pack, len(plan), dtype=np.int64)
    group = num_ranks * accumulate
    full, rest = np.split(numbers, [len(numbers) // group * group])
    weights = pack_weights(plan.num_tokens, plan.num_patches) if len(plan) else np.empty(0)
    dealt = [_balanced(full.reshape(-1, accumulate * num_ranks), weights, num_ranks).reshape(-1, num_ranks)]
    if len(rest):
        idle = np.full(-len(rest) % num_ranks, IDLE, dtype=np.int64)
        dealt.append(_balanced(np.concatenate((rest, idle))[None], weights, num_ranks).reshape(-1, num_ranks))
    supervised = (
        np.add.reduceat(plan.num_supervised_tokens, np.arange(start_pack, len(plan), group))
        if len(numbers)
        else np.empty(0, dtype=np.int64)
    )
    return Steps(
        plan=plan,
        start_pack=start_pack,
        accumulate=accumulate,
        packs=np.concatenate(dealt),
        step_supervised_tokens=supervised,
    )


def _balanced(packs: IntArray, weights: NDArray[np.float64], num_ranks: int) -> IntArray:
    """Arrange the packs of each step: (num_steps, group) to (num_steps, group / num_ranks, num_ranks)."""
    weight = np.where(packs == IDLE, -1.0, weights[packs] if len(weights) else 0.0)
    order = np.argsort(-weight, axis=1, kind="stable")
    groups = np.take_along_axis(packs, order, axis=1).reshape(len(packs), packs.shape[1] // num_ranks, num_ranks)
    loads = np.take_along_axis(weight, order, axis=1).reshape(groups.shape)
    arranged = np.empty_like(groups)
    total = np.zeros((len(packs), num_ranks))
    for micro in range(groups.shape[1]):
        lightest = np.argsort(total, axis=1, kind="stable")
        np.put_along_axis(arranged[:, micro], lightest, groups[:, micro], axis=1)
        added = np.empty_like(total)
        np.put_along_axis(added, lightest, loads[:, micro], axis=1)
        total += added
    return arranged
