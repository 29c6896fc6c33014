"""A step that is not logged never waits for the device: copy, forward, backward, clipping and optimiser, of every family."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import AdamW

from tests.families.fixtures import checkpoint, family, of_every_family
from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from tests.training.waits import Waits
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.model.families import FAMILIES
from vlmkit.model.freeze import FreezePolicy
from vlmkit.training.callbacks.guard import GuardSettings, LossGuard
from vlmkit.training.callbacks.steplog import StepLog
from vlmkit.training.callbacks.summary import AttentionReport

__all__ = ["checkpoint", "family"]
WATCHED = 2
"""Micro-batch that is watched: not the first, whose state is made, and not one whose step is logged."""
STAGES = {
    "stage1": FreezePolicy(vision_encoder=True, merger=False, language_model=True),
    "stage2": FreezePolicy(vision_encoder=True, merger=False, language_model=False),
    "full": FreezePolicy(vision_encoder=False, merger=False, language_model=False),
}
ALLOWED = {
    "Tensor.cpu at guard.py:send": "on a GPU the branch beside it runs: a copy to pinned memory without waiting",
    "aten::_local_scalar_dense at guard.py:receive": "the loss of the step before, in host memory since that step ended",
    "Tensor.to(device) at module.py:configure_gradient_clipping": "PyTorch moves the factor to where the gradients, and so it, are",
    **{
        f"Tensor.to(device) at modeling_{name}.py:forward": "rotary frequencies, a buffer that is on the device already"
        for name in FAMILIES
    },
}
"""What looks like a wait in a step that is not logged, and why it may stay. Lightning adds none."""


class Begin(Callback):
    """Before all other callbacks."""

    def __init__(self, waits):
        self.waits, self.context = waits, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == WATCHED:
            self.context = self.waits.watching()
            self.context.__enter__()


class End(Callback):
    """After all other callbacks."""

    def __init__(self, begin):
        self.begin = begin

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.begin.context is not None:
            self.begin.context.__exit__(None, None, None)
            self.begin.context = None


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@of_every_family("stage", list(STAGES), quick=["full"])
def test_a_step_that_is_not_logged_never_waits(stage, family, checkpoint, cache, tmp_path, monkeypatch):
    waits = Waits()
    transfer = PackedDataModule.transfer_batch_to_device

    def watched(self, batch, device, index):
        if self.trainer.fit_loop.epoch_loop.batch_idx != WATCHED - 1:
            return transfer(self, batch, device, index)
        with waits.watching():
            return transfer(self, batch, device, index)

    monkeypatch.setattr(PackedDataModule, "transfer_batch_to_device", watched)
    data = prepared(write_manifest(tmp_path, 8), checkpoint, cache, batch_size=2)
    begin = Begin(waits)
    guard = LossGuard(
        run_dir=tmp_path,
        settings=GuardSettings(on_nonfinite="error", max_skipped=10, spike_window=100, spike_threshold=10.0),
        origin_of=str,
    )
    log = StepLog(
        path=tmp_path / "train.jsonl", every_n_steps=100, num_steps=lambda: 4, source_names=["rows"], epoch_at=float,
        progress=False,
    )  # fmt: skip
    fit(
        data,
        checkpoint,
        tmp_path,
        callbacks=[begin, AttentionReport(), guard, log, End(begin)],
        precision="bf16-mixed",
        freeze=STAGES[stage],
        optimizer=partial(AdamW, fused=True),
        gradient_clip_val=1.0,
    )
    assert waits.num_operations > 500
    assert begin.context is None
    assert sorted(set(waits.found) - set(ALLOWED)) == []


def test_what_waits_is_found():
    """Each of these stops the host on a GPU, the last two without an operation that a CPU would show."""
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    waiting = {
        "aten::_local_scalar_dense": lambda: values.sum().item(),
        "aten::nonzero": lambda: mask.nonzero(),
        "aten::masked_select": lambda: values.masked_select(mask),
        "aten::repeat_interleave.Tensor": lambda: torch.repeat_interleave(torch.tensor([1, 2])),
        "aten::index.Tensor": lambda: values[mask],
        "Tensor.tolist": lambda: values.tolist(),
        "Tensor.to(device)": lambda: values.to("cpu"),
        "torch.tensor(device=...)": lambda: torch.tensor([1.0], device="cpu"),
    }
    for name, call in waiting.items():
        waits = Waits()
        with waits.watching():
            call()
        assert any(found.startswith(f"{name} at test_29") for found in waits.found), (name, waits.found)
    waits = Waits()
    with waits.watching():
        bool(mask.any())
        values[torch.tensor([0, 2])].sum().to(torch.float64)
        values.to("cpu", non_blocking=True)
    assert [found.partition(" at ")[0] for found in waits.found] == ["aten::_local_scalar_dense"]
