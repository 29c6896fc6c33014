"""A small run in this process: real data, model, module and Trainer; what is watched is the test's business."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tests.training.gradients import datamodule
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import load_processor
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import OptimizerPlan


def prepared(manifest: Path, checkpoint: Path, cache: Path, *, batch_size: int = 2, epochs: int = 1):
    data = datamodule(manifest, cache, batch_size)
    processor = load_processor(checkpoint, budget=data.budget)
    data.prepare(processor=processor, num_epochs=epochs, max_packs=None, require_media=False)
    return data


def fit(
    data: PackedDataModule,
    checkpoint: Path,
    out: Path,
    *,
    callbacks: list[Any],
    kind: type[TrainingModule] = TrainingModule,
    lr: float = 1e-3,
    precision: str = "32-true",
    merger_only: bool = False,
    freeze: FreezePolicy | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    ckpt_path: Path | None = None,
    **trainer: Any,
) -> TrainingModule:
    """Train to the end; the module."""

    def make_model() -> PackedVLM:
        dtype = torch.float64 if precision == "64-true" else torch.float32
        hf = WholeCheckpoint(path=checkpoint, processor=None).build(dtype=dtype).model
        return PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)

    plan = OptimizerPlan(
        lr=lr, lr_vision_encoder=None, lr_merger=None, lr_language_model=None, weight_decay=0.1, beta1=0.9,
        beta2=0.999, eps=1e-8, schedule="constant", warmup_ratio=0.0, min_lr_ratio=0.0,
        layer_decay=1.0, fp32_masters=True, optimizer=optimizer,
    )  # fmt: skip
    freeze = freeze or FreezePolicy(vision_encoder=merger_only, merger=False, language_model=merger_only)
    module = kind(make_model=make_model, freeze=freeze, optimizer_plan=plan, count_steps=data.num_steps)
    L.Trainer(
        accelerator="cpu", devices=1, precision=precision, max_epochs=1, use_distributed_sampler=False,
        enable_checkpointing=False, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=callbacks, default_root_dir=out, **trainer,
    ).fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)  # fmt: skip
    return module
