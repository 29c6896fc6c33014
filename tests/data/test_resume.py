"""A run may stop after any step and go on with other ranks, micro-batches and workers: what is left is trained, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.conftest import Corpus, said

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.dealing import IDLE, Slot
from vlmkit.processing.processor import Processor

MakeData = Callable[..., PackedDataModule]
EPOCHS = 3
LEGS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 6)), min_size=1, max_size=4
)
"""Ranks, workers, micro-batches, and steps until the run is stopped."""
PACKS = st.sampled_from([{"batch_size": 1}, {"batch_size": 3}, {"batch_size": None, "tokens_per_batch": 90}])
WEIGHTS = st.sampled_from([(1.0, 1.0), (0.5, 1.0), (0.4, 2.5)])


@pytest.fixture
def manifests(tmp_path: Path) -> tuple[Path, Path]:
    """Two sources of rows of different length, no media."""
    corpus = Corpus(tmp_path / "media")
    corpus.root.mkdir()
    one = [said(f"what is {number}?", "so " * (1 + number % 7)) for number in range(13)]
    other = [said(f"and {number}?", "no " * (1 + number % 4)) for number in range(6)]
    return corpus.write(one, "one.jsonl"), corpus.write(other, "other.json")


def prepared(data: PackedDataModule, processor: Processor, max_packs: int | None = None) -> PackedDataModule:
    data.prepare(processor=processor, num_epochs=EPOCHS, max_packs=max_packs, require_media=False)
    return data


def resumes_exactly(
    make: Callable[..., PackedDataModule], processor: Processor, legs: list[tuple[int, int, int, int]], cut: bool
) -> None:
    """Train the legs one after the other, each in a datamodule of its own, and the rest on one rank."""
    whole = prepared(make(num_workers=0), processor)
    consumed = step = 0
    trained: list[Slot] = []
    for num_ranks, num_workers, accumulate, num_steps in [*legs, (1, 0, 1, 10**6)]:
        group = num_ranks * accumulate
        end = max(1, consumed + num_steps * group) if cut and num_steps < 10**6 else None  # `trainer.max_steps`
        data = prepared(make(num_workers=num_workers), processor, end)
        assert data.plan.key == whole.plan.key
        data.start_pack, data.start_step = min(consumed, len(data.plan)), step
        steps = data.steps(num_ranks, accumulate)
        for rank in range(num_ranks):
            trained += [slot for slot in steps.slots(rank) if slot.step < num_steps and slot.pack != IDLE]
        consumed = steps.num_consumed(num_steps)
        step += min(num_steps, len(steps))
        assert sorted(slot.pack for slot in trained) == list(range(consumed))
    assert consumed == len(whole.plan)
    by_pack = sorted(trained, key=lambda slot: slot.pack)
    assert [(slot.rows, slot.epoch) for slot in by_pack] == [(pack.rows, pack.epoch) for pack in whole.plan]


def check_all(make: MakeData, manifests: tuple[Path, Path], processor: Processor, drawn: Any) -> None:
    legs, packs, weights, order, cut = drawn
    sources = [{"path": path, "weight": weight} for path, weight in zip(manifests, weights, strict=True)]
    resumes_exactly(lambda **changed: make(*sources, order=order, **packs, **changed), processor, legs, cut)


RUNS = st.tuples(LEGS, PACKS, WEIGHTS, st.sampled_from(["shuffled", "grouped", "sequential"]), st.booleans())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=RUNS)
def test_a_few_resumes(datamodule: MakeData, manifests: Any, processor: Processor, drawn: Any) -> None:
    check_all(datamodule, manifests, processor, drawn)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=RUNS)
def test_many_resumes(datamodule: MakeData, manifests: Any, processor: Processor, drawn: Any) -> None:
    check_all(datamodule, manifests, processor, drawn)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 3)])
def test_epochs_of_different_length(before: int, after: int, datamodule: MakeData, manifests: Any, processor: Processor) -> None:  # fmt: skip
    """Stopped at every step in turn, in whatever epoch that is."""
    sources = [{"path": manifests[0], "weight": 0.5}, {"path": manifests[1], "weight": 1.0}]

    def make(**changed: Any) -> PackedDataModule:
        return datamodule(*sources, batch_size=1, **changed)

    plan = prepared(make(), processor).plan
    lengths = np.bincount(plan.epochs).tolist()
    assert len(set(lengths)) > 1, lengths
    for stop in range(-(-len(plan) // before) + 1):
        resumes_exactly(make, processor, [(before, 0, 1, stop), (after, 0, 2, 10**6)], cut=False)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 1), (1, 0)])
def test_workers_hand_over_what_the_plan_says(
    before: int, after: int, datamodule: MakeData, manifests: Any, processor: Processor
) -> None:
    """Real loader processes before and after the stop."""
    from lightning import Trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet)

    def rows(num_workers: int, start: int, stop: int | None) -> list[list[int]]:
        data = prepared(datamodule(*manifests, batch_size=3, num_workers=num_workers), processor)
        data.trainer, data.start_pack, data.start_step = trainer, start, start
        seen: list[list[int]] = []
        for batch in data.train_dataloader():
            seen.append(batch["rows"])
            if stop is not None and len(seen) == stop:
                break
        return seen

    found = rows(before, 0, 4) + rows(after, 4, None)
    plan = prepared(datamodule(*manifests, batch_size=3), processor).plan
    assert found == [list(pack.rows) for pack in plan]
    assert set(Counter(row for batch in found for row in batch).values()) == {EPOCHS}
