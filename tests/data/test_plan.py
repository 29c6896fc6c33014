"""The plan: a pure function that shows every row as often as asked, within budgets, whoever trains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.data.packing import Budget, best_fit, next_fit, split_evenly
from vlmkit.data.plan import Plan, PlanRows, draw_rows, make_plan, pack_weights, rows_over

ORDERS = ("shuffled", "grouped", "sequential")


def plan_rows(num_tokens: Any, *, num_patches: Any = None, source: Any = None) -> PlanRows:
    """Rows 10, 13, 16, ... with as many supervised tokens as half their tokens."""
    tokens = np.asarray(num_tokens, dtype=np.int64)
    return PlanRows(
        row=10 + 3 * np.arange(len(tokens)),
        source=np.zeros(len(tokens), dtype=np.int64) if source is None else np.asarray(source, dtype=np.int64),
        num_tokens=tokens,
        num_supervised_tokens=tokens // 2,
        num_patches=tokens * 4 if num_patches is None else np.asarray(num_patches, dtype=np.int64),
    )


def epoch_rows(plan: Plan, epoch: int) -> list[int]:
    return [row for pack in map(plan.__getitem__, range(len(plan))) if pack.epoch == epoch for row in pack.rows]


@st.composite
def some_rows(draw: Callable[..., Any]) -> PlanRows:
    tokens = draw(st.lists(st.integers(1, 100), min_size=1, max_size=60))
    patches = draw(st.lists(st.integers(0, 400), min_size=len(tokens), max_size=len(tokens)))
    return plan_rows(tokens, num_patches=patches)


budgets = st.one_of(
    st.builds(Budget, rows=st.integers(1, 9)),
    st.builds(Budget, tokens=st.integers(100, 300), patches=st.none() | st.integers(400, 800)),
)


@settings(max_examples=150, deadline=None)
@given(
    rows=some_rows(),
    budget=budgets,
    seed=st.integers(0, 2**63),
    num_epochs=st.integers(1, 3),
    order=st.sampled_from(ORDERS),
    heaviest_first=st.booleans(),
)
def test_every_row_once_an_epoch_within_the_budget(
    rows: PlanRows, budget: Budget, seed: int, num_epochs: int, order: Any, heaviest_first: bool
) -> None:
    plan = make_plan(rows, budget=budget, seed=seed, num_epochs=num_epochs, order=order, heaviest_first=heaviest_first)
    assert [pack.number for pack in plan] == list(range(len(plan)))
    for epoch in range(num_epochs):
        assert sorted(epoch_rows(plan, epoch)) == rows.row.tolist()
    assert np.all(np.diff(plan.epochs) >= 0)
    place = {row: number for number, row in enumerate(rows.row.tolist())}
    for pack in plan:
        chosen = [place[row] for row in pack.rows]
        sums = [int(c[chosen].sum()) for c in (rows.num_tokens, rows.num_supervised_tokens, rows.num_patches)]
        told = [plan.num_tokens, plan.num_supervised_tokens, plan.num_patches]
        assert sums == [column[pack.number] for column in told]
        assert 1 <= len(chosen) <= (budget.rows or len(rows))
        assert sums[0] <= (budget.tokens or 1 << 40)
        assert sums[2] <= (budget.patches or 1 << 40)
    if heaviest_first:
        first_epoch = plan.epochs == 0
        weights = pack_weights(plan.num_tokens[first_epoch], plan.num_patches[first_epoch])
        assert weights[0] == pytest.approx(weights.max())


@settings(max_examples=60, deadline=None)
@given(rows=some_rows(), budget=budgets, seed=st.integers(0, 99), order=st.sampled_from(ORDERS))
def test_it_is_a_pure_function_and_a_longer_plan_begins_with_the_shorter(
    rows: PlanRows, budget: Budget, seed: int, order: Any
) -> None:
    def planned(**end: Any) -> Plan:
        return make_plan(rows, budget=budget, seed=seed, order=order, **({"num_epochs": None} | end))

    two, again = planned(num_epochs=2), planned(num_epochs=2)
    assert list(two) == list(again)
    assert two.key == again.key
    for num_packs in (1, len(two) // 2 or 1, len(two)):
        cut = planned(max_packs=num_packs)
        assert list(cut) == list(two)[:num_packs]
        assert cut.key == two.key
    assert len(planned(num_epochs=1, max_packs=10**6)) == np.count_nonzero(two.epochs == 0)
    beyond = planned(max_packs=len(two) + 1)
    assert len(beyond) == len(two) + 1
    assert beyond[len(two)].epoch == 2


def test_a_heavier_pack_of_a_later_epoch_stays_there_so_that_a_longer_plan_begins_with_the_shorter() -> None:
    """The forecast runs it before the first step; see tests/pains/test_14."""
    rows, found = plan_rows(np.random.default_rng(0).integers(1, 100, 40)), 0
    for seed in range(20):
        short, long = (make_plan(rows, budget=Budget(rows=4), seed=seed, num_epochs=number) for number in (1, 4))
        weights = pack_weights(long.num_tokens, long.num_patches)
        first = weights[long.epochs == 0]
        assert first[0] == first.max()
        assert list(long)[: len(short)] == list(short)
        found += weights.max() > first[0]
    assert found > 5, "it is no rare case"


def test_seeds_epochs_and_orders_differ() -> None:
    rows = plan_rows(np.arange(1, 101))
    budget = Budget(rows=4)
    plan = make_plan(rows, budget=budget, seed=1, num_epochs=2, heaviest_first=False)
    assert epoch_rows(plan, 0) != epoch_rows(plan, 1)
    assert epoch_rows(plan, 0) != rows.row.tolist()
    other = make_plan(rows, budget=budget, seed=2, num_epochs=2, heaviest_first=False)
    assert epoch_rows(other, 0) != epoch_rows(plan, 0)
    assert other.key != plan.key
    sequential = make_plan(rows, budget=budget, seed=1, num_epochs=2, order="sequential", heaviest_first=False)
    assert epoch_rows(sequential, 0) == epoch_rows(sequential, 1) == rows.row.tolist()
    assert sequential.key != plan.key
    grouped = make_plan(rows, budget=budget, seed=1, num_epochs=1, order="grouped")
    assert max(np.ptp(pack.rows) for pack in grouped) == 3 * 3  # four neighbours in length
    assert np.any(np.diff([pack.rows[0] for pack in grouped]) < 0)


def test_the_key_follows_all_that_decides_the_packs() -> None:
    rows = plan_rows([5, 6, 7, 8])
    settings_: dict[str, Any] = {"budget": Budget(rows=2), "seed": 1, "num_epochs": 1}
    key = make_plan(rows, **settings_).key
    changes: list[dict[str, Any]] = [
        {"budget": Budget(rows=3)},
        {"seed": 2},
        {"order": "grouped"},
        {"heaviest_first": False},
        {"weights": [2.0]},
        {"contents": ["other"]},
    ]
    keys = {make_plan(rows, **(settings_ | change)).key for change in changes}
    keys.add(make_plan(replace(rows, num_patches=rows.num_patches + 1), **settings_).key)
    keys.add(make_plan(replace(rows, row=rows.row + 1), **settings_).key)
    assert len(keys) == 8
    assert key not in keys
    assert make_plan(rows, **(settings_ | {"num_epochs": 5})).key == key


def test_the_sequence_never_changes_by_itself() -> None:
    """A checkpoint counts packs: another order of them would train the wrong rows after a resume."""
    plan = make_plan(plan_rows([9, 4, 7, 5, 3, 8, 6, 2]), budget=Budget(tokens=12), seed=3, num_epochs=1)
    assert [pack.rows for pack in plan] == [(22, 10), (28, 31), (16, 19), (25, 13)]
    assert plan.fill == 44 / 48


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    weights=st.tuples(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 2.5]), st.sampled_from([0.5, 1.0, 3.0])),
    seed=st.integers(0, 99),
)
def test_weights_take_that_share_and_no_row_twice_before_all_once(
    sizes: tuple[int, int], weights: tuple[float, float], seed: int
) -> None:
    rows = plan_rows(np.ones(sum(sizes)), source=[0] * sizes[0] + [1] * sizes[1])
    seen: Counter[int] = Counter()
    for epoch in range(8):
        drawn = Counter(draw_rows(rows, weights, seed=seed, epoch=epoch).tolist())
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            counts = [drawn[place] for place in np.flatnonzero(rows.source == number).tolist()]
            assert abs(sum(counts) - weight * size) < 1
            assert max(counts, default=0) - min(counts, default=0) <= 1
        seen += drawn
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        places = np.flatnonzero(rows.source == number).tolist()
        assert [seen[place] for place in places] == pytest.approx([8 * weight] * size)


def test_weights_in_a_plan() -> None:
    rows = plan_rows(np.full(12, 7), source=[0] * 8 + [1] * 4)
    plan = make_plan(rows, budget=Budget(rows=3), seed=0, num_epochs=2, weights=[0.5, 2.0])
    halves = [Counter(epoch_rows(plan, epoch)) for epoch in (0, 1)]
    first = set(rows.row[:8].tolist())
    for half in halves:
        assert sum(half[row] for row in first) == 4
        assert [half[row] for row in rows.row[8:].tolist()] == [2] * 4
    assert first & set(halves[0]) | first & set(halves[1]) == first
    whole = make_plan(rows, budget=Budget(rows=3), seed=0, num_epochs=1, weights=[1.0, 1.0])
    plain = make_plan(rows, budget=Budget(rows=3), seed=0, num_epochs=1)
    assert list(whole) == list(plain)


def test_what_a_share_takes_is_drawn() -> None:
    rows = plan_rows(np.ones(40))
    halves = {tuple(sorted(draw_rows(rows, [0.5], seed=seed, epoch=0).tolist())) for seed in range(4)}
    assert len(halves) == 4
    assert tuple(range(20)) not in halves


def test_small_weights_may_leave_an_epoch_empty() -> None:
    rows = plan_rows([3, 4])
    plan = make_plan(rows, budget=Budget(rows=1), seed=0, num_epochs=None, max_packs=3, weights=[0.25])
    assert len(plan) == 3
    assert plan.epochs.tolist() == [1, 3, 5]
    with pytest.raises(ValueError, match="the weights are too small: 1 epochs hold no row"):
        make_plan(rows, budget=Budget(rows=1), seed=0, num_epochs=1, weights=[0.25])


def mixed_lengths(size: int, seed: int) -> np.ndarray:
    """A quarter short texts, three fifths with one image, the rest long and cut at 2,000."""
    random = np.random.default_rng(seed)
    kind = random.random(size)
    long = np.minimum(random.lognormal(7.4, 0.5, size), 2000).astype(np.int64)
    return np.where(
        kind < 0.25, random.integers(50, 401, size), np.where(kind < 0.85, random.integers(300, 1601, size), long)
    )


def test_packs_are_full_and_stay_shuffled() -> None:
    rows = plan_rows(mixed_lengths(12_000, seed=0))
    plan = make_plan(rows, budget=Budget(tokens=4096), seed=0, num_epochs=1)
    assert plan.fill is not None
    assert plan.fill >= 0.995
    lengths = dict(zip(rows.row.tolist(), rows.num_tokens.tolist(), strict=True))
    short = np.array([sum(lengths[row] <= 400 for row in pack.rows) / len(pack.rows) for pack in plan])
    halves = np.array_split(short, 4)
    assert np.ptp([half.mean() for half in halves]) < 0.05  # no stretch of the epoch is all short
    assert make_plan(rows, budget=Budget(rows=4), seed=0, num_epochs=1).fill is None


def test_heavy_patches_fill_their_budget_too() -> None:
    tokens = mixed_lengths(4000, seed=1)
    rows = plan_rows(tokens, num_patches=np.where(tokens > 400, 4 * (tokens - 100), 0))
    plan = make_plan(rows, budget=Budget(tokens=4096, patches=12_000), seed=0, num_epochs=1)
    assert plan.num_patches.max() <= 12_000
    assert plan.num_patches.sum() / (len(plan) * 12_000) > 0.95


def test_refusals() -> None:
    rows = plan_rows([5, 50, 7, 60], num_patches=[10, 10, 90, 10])
    with pytest.raises(ValueError, match="no row to train on"):
        make_plan(plan_rows([]), budget=Budget(rows=1), seed=0, num_epochs=1)
    with pytest.raises(ValueError, match="needs an end"):
        make_plan(rows, budget=Budget(rows=1), seed=0, num_epochs=None)
    with pytest.raises(ValueError, match="3 rows exceed the budget of a pack by themselves, the first is row 13"):
        make_plan(rows, budget=Budget(tokens=40, patches=80), seed=0, num_epochs=1)
    assert rows_over(rows, Budget(tokens=55)).tolist() == [19]
    with pytest.raises(IndexError):
        make_plan(rows, budget=Budget(rows=2), seed=0, num_epochs=1)[2]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({}, "give one of the two"),
        ({"rows": 1, "tokens": 1}, "give one of the two"),
        ({"rows": 1, "patches": 1}, "goes with one of tokens"),
        ({"rows": 0}, "the rows of a pack must be positive, got 0"),
        ({"tokens": 9, "patches": -1}, "the patches of a pack must be positive, got -1"),
    ],
)
def test_budgets_that_cannot_be(settings_: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**settings_)


def test_packing_by_hand() -> None:
    tokens, patches = np.array([6, 5, 4, 3, 2, 5]), np.array([0, 9, 0, 0, 0, 9])
    budget = Budget(tokens=10)
    assert next_fit(tokens, patches, budget).tolist() == [0, 1, 3, 6]
    assert next_fit(tokens, patches, replace(budget, patches=9)).tolist() == [0, 1, 3, 6]
    order, starts = best_fit(tokens, patches, budget)
    assert [order[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)] == [[0, 2], [1, 3, 4], [5]]
    order, starts = best_fit(tokens[[1, 5]], patches[[1, 5]], replace(budget, patches=17))
    assert starts.tolist() == [0, 1, 2]
    assert split_evenly(7, 3).tolist() == [0, 3, 6, 7]
    assert split_evenly(6, 3).tolist() == [0, 3, 6]
