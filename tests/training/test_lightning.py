"""What Lightning does by itself, and a run of ours must not depend on: counters, flags, and what a checkpoint holds."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from tests.training.test_state import checkpointer
from vlmkit.batch import Batch
from vlmkit.training.loss import scaled_loss


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("rows"), 8)


class Watch(Callback):
    """What stands while a run trains."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.handler = signal.getsignal(signal.SIGTERM)
        self.flag = trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor
        self.sampler = trainer.train_dataloader.sampler


def test_no_one_asks_for_lightnings_count_of_steps(rows, tiny, cache, tmp_path, monkeypatch):
    """Reading it makes Lightning forget the state of the data on a resume: schedules take their length from the plan."""

    def asked(trainer):
        raise AssertionError("estimated_stepping_batches was read")

    monkeypatch.setattr(L.Trainer, "estimated_stepping_batches", property(asked))
    data = prepared(rows, tiny.vision_language, cache)
    module = fit(data, tiny.vision_language, tmp_path, callbacks=[])
    assert module.trainer.global_step == data.num_steps(1, 1) == 4


def test_a_signal_sets_our_flag_and_none_is_sent_around_at_every_batch(rows, tiny, cache, tmp_path):
    """And the sampler is ours: no other deals rows to ranks."""
    data, watch = prepared(rows, tiny.vision_language, cache), Watch()
    saver = checkpointer(data, tmp_path)
    module = fit(data, tiny.vision_language, tmp_path, callbacks=[watch, saver])
    assert watch.handler == saver._on_signal
    assert watch.flag is not type(module.trainer.fit_loop.epoch_loop)._broadcast_sigterm_tensor
    assert watch.flag() is None
    assert type(watch.sampler).__name__ == "SlotSampler"


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_checkpoints_stand_at_ends_of_steps_and_hold_what_is_trained(rows, tiny, cache, tmp_path):
    """By the clock too: in the middle of accumulation partial gradients would be lost."""
    data = prepared(rows, tiny.vision_language, cache, batch_size=1)
    saver = checkpointer(data, tmp_path, every_n_steps=None, every_minutes=1e-9)
    fit(data, tiny.vision_language, tmp_path, callbacks=[saver], accumulate_grad_batches=3, merger_only=True)
    found = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in found] == [f"step-{step:06d}.ckpt" for step in (1, 2, 3)]
    for step, path in enumerate(found, 1):
        content = torch.load(path, weights_only=True)
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        assert progress["ready"] == min(8, 3 * step)
        assert {"state_dict", "optimizer_states", "lr_schedulers", "vlmkit"} <= content.keys()
        assert content["state_dict"]
        assert all("merger" in name for name in content["state_dict"]), "frozen tensors equal their source"
        assert content["vlmkit"]["rng"][0].keys() == {"python", "numpy", "torch", "cuda"}
        assert "=" not in path.name


def test_the_loss_of_a_micro_batch_is_scaled_for_what_lightning_and_ddp_divide_by():
    """Lightning divides by the micro-batches, DDP by the ranks: the sum over all of them is the mean over the tokens."""
    losses = [[1.0, 2.0], [4.0], [8.0, 16.0, 32.0], []]  # two ranks with two micro-batches each, one of them idle
    count = sum(map(len, losses))
    parts = [
        scaled_loss(torch.tensor(sum(one)), step_supervised_tokens=count, accumulate=2, world_size=2) / 2 / 2
        for one in losses
    ]
    assert float(sum(parts)) == pytest.approx(sum(map(sum, losses)) / count)


def test_a_batch_says_how_many_tokens_its_whole_step_supervises(rows, tiny, cache):
    """Rows without a supervised token are refused, so no step has none; the last step is a partial one."""
    data = prepared(rows, tiny.vision_language, cache, batch_size=3)
    slots = data.steps(2, 1).slots(1)
    batch: Batch = data.pack_dataset()[slots[-1]]
    assert [slot.step_supervised_tokens for slot in slots] == data.steps(2, 1).step_supervised_tokens.tolist()
    assert batch["step_supervised_tokens"] == slots[-1].step_supervised_tokens > 0
    assert batch["pack"] == -1
