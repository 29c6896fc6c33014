"""What a checkpoint says beyond weights: random states of every rank, and what a resume draws."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from tests.training.two_ranks import start_two
from vlmkit.errors import CheckpointError
from vlmkit.training.callbacks.checkpointer import Checkpointer
from vlmkit.training.state import KEY, RunState, find_checkpoint, read_state, restore_rng, rng_state, set_rng_state


@pytest.fixture(autouse=True)
def _same_states_after():
    kept = rng_state()
    yield
    restore_rng({KEY: {"rng": [kept], "step": 0}}, rank=0, num_ranks=1)


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Draw(Callback):
    """Draws at every step, as dropout would."""

    def __init__(self):
        self.drawn = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.drawn.append(draw())


def checkpointer(data, out: Path, **changes):
    def state_at(step):
        return RunState(step=step, consumed_packs=step, plan_key=data.plan.key, freeze={}, contract=None)

    given = {"every_n_steps": 1, "every_minutes": None, "keep": 0} | changes
    done = given.pop("done", lambda: data.start_step)
    return Checkpointer(run_dir=out, state_at=state_at, done_batches=done, **given)


def test_a_resumed_run_draws_what_the_whole_one_would_have_drawn(tiny, cache, tmp_path, tmp_path_factory):
    rows = write_manifest(tmp_path_factory.mktemp("rows"), 8)
    data, whole = prepared(rows, tiny.vision_language, cache), Draw()
    fit(data, tiny.vision_language, tmp_path, callbacks=[whole, checkpointer(data, tmp_path)])
    found = tmp_path / "checkpoints" / "step-000002.ckpt"
    state = read_state(found)
    again, rest = prepared(rows, tiny.vision_language, cache), Draw()
    again.start_pack, again.start_step = state.consumed_packs, state.step
    draw()
    fit(again, tiny.vision_language, tmp_path, callbacks=[rest, checkpointer(again, tmp_path)], ckpt_path=found)
    assert rest.drawn == whole.drawn[2:]


def test_each_rank_goes_on_with_its_own_states():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(rng_state())
    expected = float(torch.rand(()))
    restore_rng({KEY: {"rng": states, "step": 4}}, rank=1, num_ranks=2)
    assert float(torch.rand(())) == expected


def test_on_another_number_of_ranks_each_draws_its_own_and_a_repetition_the_same():
    def drawn(rank, num_ranks):
        restore_rng({KEY: {"rng": [rng_state()], "step": 4}}, rank=rank, num_ranks=num_ranks)
        return draw()

    assert drawn(0, 2) == drawn(0, 2)
    assert len({drawn(0, 2), drawn(1, 2), drawn(0, 3)}) == 3


def test_a_checkpoint_that_is_none_or_of_another_version_is_refused(tmp_path):
    torn, old = tmp_path / "torn.ckpt", tmp_path / "old.ckpt"
    torn.write_bytes(b"PK\x03\x04 half of it")
    torch.save({KEY: {"schema": "vlmkit.state/0"}}, old)
    with pytest.raises(CheckpointError, match=r"torn\.ckpt: not a readable checkpoint"):
        read_state(torn)
    with pytest.raises(CheckpointError, match=r"its state is 'vlmkit.state/0', this version reads"):
        read_state(old)


def test_half_written_files_are_never_found(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".step-000009.ckpt.writing", "step-000007.ckpt.writing", "best.ckpt"):
        (folder / name).touch()
    assert find_checkpoint("auto", tmp_path) is None
    (folder / "step-000003.ckpt").touch()
    (folder / "step-000012.ckpt").touch()
    assert find_checkpoint("auto", tmp_path) == folder / "step-000012.ckpt"


def test_past_a_million_steps_the_newest_are_kept_by_number(tiny, cache, tmp_path, tmp_path_factory):
    """As text, step-1000000 comes before step-999999: each new checkpoint would be removed as it is written."""
    rows = write_manifest(tmp_path_factory.mktemp("rows"), 8)
    data = prepared(rows, tiny.vision_language, cache)
    fit(data, tiny.vision_language, tmp_path, callbacks=[Late(999_997), checkpointer(data, tmp_path, keep=2)])
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-1000000.ckpt", "step-1000001.ckpt"}
    assert find_checkpoint("auto", tmp_path) == tmp_path / "checkpoints" / "step-1000001.ckpt"


class Late(Callback):
    """Starts a run as if so many steps were done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer, pl_module):
        progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        progress.total.ready = progress.total.completed = self.steps


def test_what_was_just_written_is_never_pruned(tiny, cache, tmp_path, tmp_path_factory):
    """Not even by a run that goes back behind checkpoints of its own."""
    rows = write_manifest(tmp_path_factory.mktemp("rows"), 8)
    data = prepared(rows, tiny.vision_language, cache)
    (tmp_path / "checkpoints").mkdir()
    for step in (70, 80):
        (tmp_path / "checkpoints" / f"step-{step:06d}.ckpt").touch()
    fit(data, tiny.vision_language, tmp_path, callbacks=[checkpointer(data, tmp_path, keep=2, every_n_steps=None)])
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000004.ckpt", "step-000080.ckpt"}


class Counters(Callback):
    """Lightning's counters at each micro-batch and after each step."""

    def __init__(self):
        self.seen, self.ended = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self.seen.append((batch["pack"], batch_idx, trainer.global_step, vars(progress.current).copy()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self.ended.append((trainer.global_step, progress.is_last_batch, vars(progress.total).copy()))


def test_a_resumed_run_counts_micro_batches_as_the_whole_one(tiny, cache, tmp_path, tmp_path_factory):
    """Off by one, steps would end in the middle of their micro-batches, and the last one before its time."""
    rows = write_manifest(tmp_path_factory.mktemp("rows"), 8)
    settings = {"accumulate_grad_batches": 2}
    data, whole = prepared(rows, tiny.vision_language, cache, batch_size=1), Counters()
    fit(data, tiny.vision_language, tmp_path, callbacks=[whole, checkpointer(data, tmp_path)], **settings)
    assert len(whole.seen) == 8
    again, rest = prepared(rows, tiny.vision_language, cache, batch_size=1), Counters()
    again.start_pack, again.start_step = 4, 2
    saver = checkpointer(again, tmp_path, every_n_steps=None, done=lambda: 2 * 2)
    found = tmp_path / "checkpoints" / "step-000002.ckpt"
    fit(again, tiny.vision_language, tmp_path, callbacks=[rest, saver], ckpt_path=found, **settings)
    assert rest.seen == whole.seen[4:]
    assert rest.ended == whole.ended[4:]


def test_a_checkpoint_holds_the_random_states_of_every_rank(tmp_path):
    """Not those of rank 0 alone: its ranks would all go on drawing what rank 0 drew."""
    start_two("tests.training.rank_states", str(tmp_path), timeout=120)
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    assert len(content["rng"]) == 2
    for rank, states in enumerate(content["rng"]):
        set_rng_state(states)
        assert list(draw()) == content["next"][rank]
    assert content["next"][0] != content["next"][1]
