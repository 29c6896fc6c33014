"""The log: its sums are those of the losses, and between two lines it asks nothing of plan or device."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.training.conftest import write_manifest
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
