"""The log: its sums are those of the losses, and between two lines it asks nothing of plan or device."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest
from tests.training.small_run import fit, prepared
from vlmkit.data.dataset import to_device
from vlmkit.training.callbacks import steplog
from vlmkit.training.callbacks.steplog import StepLog


class Collect(Callback):
    """Token losses of every micro-batch, one of them made NaN before the log sees it."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            pl_module.token_losses[0] = torch.nan
        self.losses.append(pl_module.token_losses.clone())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("rows"), 10)


@pytest.mark.parametrize("most_kept", [1, 3, 64])
def test_sums_do_not_depend_on_when_losses_are_summed_up(manifest, tiny, cache, tmp_path, monkeypatch, most_kept):
    monkeypatch.setattr(steplog, "MOST_KEPT", most_kept)
    data = prepared(manifest, tiny.vision_language, cache, batch_size=2)
    asked: list[int] = []

    def num_steps() -> int:
        asked.append(1)
        return 5

    log = StepLog(
        path=tmp_path / "train.jsonl", every_n_steps=100, num_steps=num_steps, source_names=["rows"], epoch_at=float,
        progress=False,
    )  # fmt: skip
    collect = Collect()
    fit(data, tiny.vision_language, tmp_path, callbacks=[collect, log])
    (line,) = map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())
    losses = torch.cat(collect.losses).double()
    wanted = float(losses[losses.isfinite()].mean())
    assert int((~losses.isfinite()).sum()) == 1
    assert line["loss"] == pytest.approx(wanted, rel=1e-6)
    assert line["loss_by_source"] == {"rows": pytest.approx(wanted, rel=1e-6)}
    assert line["supervised_tokens"] == len(losses) == int(data.plan.num_supervised_tokens.sum())
    assert (line["samples"], line["step"]) == (10, 5)
    assert line["tokens"] == int(data.plan.num_tokens.sum())
    assert len(asked) == 1, "to know the last step the plan is dealt out once, not at every step"


FLOPS_PER_TOKEN, PEAK = 3e9, 2e12


class Slow(Callback):
    """Loading takes its time, after what the log has seen of a step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.2)


def test_utilisation_and_waiting_are_shares_of_the_time_of_the_steps(manifest, tiny, cache, tmp_path):
    """Time that passes between the end of a batch and the beginning of the next is waiting for data."""
    data = prepared(manifest, tiny.vision_language, cache, batch_size=2)
    log = StepLog(
        path=tmp_path / "train.jsonl", every_n_steps=5, num_steps=lambda: 5, source_names=["rows"], epoch_at=float,
        progress=False, flops_of=lambda batch: FLOPS_PER_TOKEN * sum(batch["seqlens"]), peak_flops=PEAK,
    )  # fmt: skip
    fit(data, tiny.vision_language, tmp_path, callbacks=[log, Slow()])
    (line,) = map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())
    assert line["mfu"] == pytest.approx(FLOPS_PER_TOKEN * line["tokens_per_second"] / PEAK)
    seconds = line["tokens"] / line["tokens_per_second"]
    assert 4 * 0.2 < line["data_wait"] * seconds < seconds - 0.01
    assert line["data_wait_worst"] == line["data_wait"]


def make_rank_1_wait():
    """In each of two ranks: a device of a known peak, a known count of FLOPs, and a loader that is slow on rank 1."""
    from vlmkit.cli import training
    from vlmkit.data.dataset import PackDataset

    training.peak_flops = lambda device, precision: PEAK
    training.count_flops = lambda hf: lambda batch: FLOPS_PER_TOKEN * sum(batch["seqlens"])
    load = PackDataset.__getitem__

    def slow(dataset, slot):
        time.sleep(0.25 if os.environ["LOCAL_RANK"] == "1" else 0.0)
        return load(dataset, slot)

    PackDataset.__getitem__ = slow


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_ranks_have_twice_the_peak_and_log_the_wait_of_the_slower(manifest, tmp_path):
    overrides = small(manifest, tmp_path / "run", "log.every_n_steps=3", "callbacks.forecast=null")
    forked.run_ranks("ddp", *overrides, output=tmp_path / "out", first=make_rank_1_wait)
    line = lines(tmp_path / "run")[0]
    assert line["mfu"] == pytest.approx(FLOPS_PER_TOKEN * line["tokens_per_second"] / (2 * PEAK))
    seconds = line["tokens"] / line["tokens_per_second"]
    assert line["data_wait_worst"] * seconds > 2 * 0.25
    assert line["data_wait"] < 0.5 * line["data_wait_worst"]


def test_a_batch_goes_to_the_device_without_its_lists_being_walked_through(manifest, tiny, cache):
    batch = prepared(manifest, tiny.vision_language, cache, batch_size=2).pack_batch(0)
    moved = to_device(batch, torch.device("meta"))
    assert moved.keys() == batch.keys()
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            assert moved[key].device.type == "meta"
            assert moved[key].shape == value.shape
        else:
            assert moved[key] is value
