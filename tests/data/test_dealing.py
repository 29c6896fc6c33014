"""Dealing: every pack to one rank, once; denominators that are sums; a resume that trains exactly what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.dealing import IDLE, Slot, Steps, deal
from vlmkit.data.packing import Budget
from vlmkit.data.plan import Plan, PlanRows, make_plan


def some_plan(tokens: Any, *, num_epochs: int = 1, **settings_: Any) -> Plan:
    tokens = np.asarray(tokens, dtype=np.int64)
    rows = PlanRows(
        row=np.arange(len(tokens)),
        source=np.zeros(len(tokens), dtype=np.int64),
        num_tokens=tokens,
        num_supervised_tokens=tokens // 3 + 1,
        num_patches=tokens * (np.arange(len(tokens)) % 3) * 2,
    )
    return make_plan(rows, **({"budget": Budget(rows=1), "seed": 0, "num_epochs": num_epochs} | settings_))


@st.composite
def plans(draw: Callable[..., Any]) -> Plan:
    tokens = draw(st.lists(st.integers(1, 100), min_size=1, max_size=40))
    budget = draw(st.builds(Budget, rows=st.integers(1, 4)) | st.just(Budget(tokens=120)))
    return some_plan(tokens, num_epochs=draw(st.integers(1, 3)), budget=budget)


ranks = st.integers(1, 5)
micro_batches = st.integers(1, 4)


def all_slots(steps: Steps) -> list[list[Slot]]:
    """By rank."""
    return [list(steps.slots(rank)) for rank in range(steps.num_ranks)]


@settings(max_examples=150, deadline=None)
@given(plan=plans(), num_ranks=ranks, accumulate=micro_batches, share=st.floats(0, 1))
def test_every_pack_once_and_denominators_are_sums(plan: Plan, num_ranks: int, accumulate: int, share: float) -> None:
    start = int(share * len(plan))
    steps = deal(plan, num_ranks=num_ranks, accumulate=accumulate, start_pack=start)
    by_rank = all_slots(steps)
    slots = [slot for of_rank in by_rank for slot in of_rank]
    assert sorted(slot.pack for slot in slots if slot.pack != IDLE) == list(range(start, len(plan)))
    for slot in slots:
        assert slot.rows == (() if slot.pack == IDLE else plan[slot.pack].rows)
        if slot.pack != IDLE:
            assert slot.epoch == plan[slot.pack].epoch
    group = num_ranks * accumulate
    for step in range(len(steps)):
        packs = [slot.pack for slot in slots if slot.step == step and slot.pack != IDLE]
        first = start + step * group
        assert sorted(packs) == list(range(first, min(first + group, len(plan))))
        denominators = {slot.step_supervised_tokens for slot in slots if slot.step == step}
        assert denominators == {int(plan.num_supervised_tokens[packs].sum())}
    assert len(steps) == -(-(len(plan) - start) // group)


@settings(max_examples=150, deadline=None)
@given(plan=plans(), num_ranks=ranks, accumulate=micro_batches, share=st.floats(0, 1))
def test_ranks_run_alike_and_only_the_end_is_idle(plan: Plan, num_ranks: int, accumulate: int, share: float) -> None:
    steps = deal(plan, num_ranks=num_ranks, accumulate=accumulate, start_pack=int(share * len(plan)))
    by_rank = all_slots(steps)
    assert len({tuple(slot.step for slot in of_rank) for of_rank in by_rank}) == 1  # as many micro-batches, each step
    for rank_slots in by_rank:
        idle = [place for place, slot in enumerate(rank_slots) if slot.pack == IDLE]
        assert idle in ([], [len(rank_slots) - 1])
        for step in range(len(steps) - 1):
            assert sum(slot.step == step for slot in rank_slots) == accumulate
    for together in zip(*by_rank, strict=True):
        assert any(slot.pack != IDLE for slot in together)
        assert len({slot.step_supervised_tokens for slot in together}) == 1


@settings(max_examples=150, deadline=None)
@given(
    plan=plans(),
    legs=st.lists(st.tuples(ranks, micro_batches, st.integers(0, 5)), min_size=1, max_size=4),
)
def test_a_resume_on_other_ranks_deals_exactly_what_is_left(plan: Plan, legs: list[tuple[int, int, int]]) -> None:
    done: list[int] = []
    start = 0
    for num_ranks, accumulate, num_steps in [*legs, (3, 2, 10**6)]:
        steps = deal(plan, num_ranks=num_ranks, accumulate=accumulate, start_pack=start)
        for of_rank in all_slots(steps):
            done += [slot.pack for slot in of_rank if slot.step < num_steps and slot.pack != IDLE]
        start = steps.num_consumed(num_steps)
        assert sorted(done) == list(range(start))
    assert start == len(plan)


def test_a_finished_plan_deals_nothing() -> None:
    plan = some_plan([3, 4, 5])
    steps = deal(plan, num_ranks=2, accumulate=2, start_pack=3)
    assert len(steps) == 0
    assert [list(steps.slots(rank)) for rank in (0, 1)] == [[], []]
    assert steps.num_consumed(7) == 3


def test_by_hand() -> None:
    plan = some_plan([2, 4, 6, 8, 10], order="sequential", heaviest_first=False)
    steps = deal(plan, num_ranks=2, accumulate=2)
    first, second = steps.slots(0), steps.slots(1)
    assert [slot.step for slot in first] == [0, 0, 1]
    assert {first[0].pack, second[0].pack, first[1].pack, second[1].pack} == {0, 1, 2, 3}
    assert [slot.step_supervised_tokens for slot in second] == [1 + 2 + 3 + 3] * 2 + [4]
    assert (first[2].pack, second[2].pack) == (4, IDLE)
    assert second[2] == Slot(pack=IDLE, rows=(), step=1, step_supervised_tokens=4, epoch=0)
    assert first[-1] == first[2]
    assert first[1:] == [first[1], first[2]]
    with pytest.raises(IndexError):
        first[3]


def test_ranks_are_balanced() -> None:
    random = np.random.default_rng(0)
    plan = some_plan(
        random.integers(50, 2000, 6000), budget=Budget(tokens=4096, patches=8192), order="shuffled", seed=1
    )
    for loads in deal(plan, num_ranks=4, accumulate=2).rank_loads():
        full = loads[:-1]
        assert float((full.max(axis=1) / full.mean(axis=1)).mean()) <= 1.1


def test_loads_are_sums_of_the_slots() -> None:
    plan = some_plan([5, 9, 2, 7, 1, 3, 8])
    steps = deal(plan, num_ranks=3, accumulate=2)
    tokens, patches = steps.rank_loads()
    for rank, slots in enumerate(all_slots(steps)):
        for step in range(len(steps)):
            packs = [slot.pack for slot in slots if slot.step == step and slot.pack != IDLE]
            assert tokens[step, rank] == plan.num_tokens[packs].sum()
            assert patches[step, rank] == plan.num_patches[packs].sum()


@pytest.mark.parametrize(("num_ranks", "accumulate", "start"), [(0, 1, 0), (1, 0, 0), (1, 1, -1), (1, 1, 4)])
def test_refusals(num_ranks: int, accumulate: int, start: int) -> None:
    with pytest.raises(ValueError, match=f"cannot deal 3 packs from {start} on to {num_ranks} ranks"):
        deal(some_plan([3, 4, 5]), num_ranks=num_ranks, accumulate=accumulate, start_pack=start)
