"""The gradient of one optimiser step of a real Trainer, in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn.functional import cross_entropy

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import set_checkpointing
from vlmkit.processing.encode import encode_example
from vlmkit.processing.processor import load_processor
from vlmkit.training.callbacks.steplog import StepLog
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import OptimizerPlan
from vlmkit.training.shards import whole


class Catch(Callback):
    """Keeps the gradients of the first optimiser step, before clipping."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.grads = {
            name: whole(p.grad).clone() for name, p in pl_module.packed.hf.named_parameters() if p.requires_grad
        }


def datamodule(manifest: Path, cache: Path, batch_size: int) -> PackedDataModule:
    return PackedDataModule(
        name=None, sources=[manifest], root=None, allow_absolute_paths=False, limit=None, image_min_pixels=None,
        image_max_pixels=64 * 64, video_min_pixels=None, video_max_pixels=None, video_fps=None, video_max_frames=None,
        video_reader="auto", media_timeout_seconds=None, max_tokens=None, overlong="error", on_bad_row="error", max_bad_rows=None,
        on_bad_media="error", max_bad_media=None, batch_size=batch_size, tokens_per_batch=None,
        patches_per_batch=None, order="sequential", heaviest_first=False, pixels="uint8", num_workers=0,
        cache_dir=cache / "index", seed=0,
    )  # fmt: skip


def gradients(
    manifest: Path,
    checkpoint: Path,
    cache: Path,
    *,
    batch_size: int,
    accumulate: int,
    devices: int,
    out: Path,
    strategy: Any = "ddp",
    frozen: tuple[str, ...] = (),
    checkpointing: bool = False,
) -> dict[str, Any]:
    """Train one step on all rows with a real Trainer; loss per supervised token and gradients."""
    data = datamodule(manifest, cache, batch_size)
    processor = load_processor(checkpoint, budget=data.budget)
    data.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)

    def packed(hf) -> PackedVLM:
        set_checkpointing(hf, vision_encoder=checkpointing, language_model=checkpointing)
        return PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)

    source = WholeCheckpoint(path=checkpoint, processor=None)

    def make_sketch():
        sketch = source.sketch(dtype=torch.float64)
        return packed(sketch.model), sketch.read

    plan = OptimizerPlan(
        lr=1e-3, lr_vision_encoder=None, lr_merger=None, lr_language_model=None, layer_decay=1.0, weight_decay=0.0, beta1=0.9,
        beta2=0.999, eps=1e-8, fp32_masters=True, optimizer=None, schedule="constant", warmup_ratio=0.0, min_lr_ratio=0.0,
    )  # fmt: skip
    freeze = FreezePolicy(**{part: part in frozen for part in ("vision_encoder", "merger", "language_model")})
    module = TrainingModule(
        make_model=lambda: packed(source.build(dtype=torch.float64).model),
        make_sketch=make_sketch,
        freeze=freeze,
        optimizer_plan=plan,
        count_steps=data.num_steps,
    )
    log = StepLog(
        path=out / "train.jsonl",
        every_n_steps=1,
        num_steps=lambda: 1,
        source_names=["manifest"],
        epoch_at=float,
        progress=False,
    )
    catch = Catch()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy if devices > 1 else "auto",
        precision="64-true" if strategy == "ddp" else "32-true", max_epochs=1, gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate, use_distributed_sampler=False, enable_checkpointing=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[catch, log], default_root_dir=out,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    return {
        "loss": log.last["loss"] if trainer.is_global_zero else None,
        "grads": catch.grads,
        "norms": log.last["grad_norm"],
        "after": {name: whole(p.detach()).clone() for name, p in module.packed.hf.named_parameters()},
    }


def reference_gradients(manifest: Path, checkpoint: Path, cache: Path) -> dict[str, Any]:
    """The same from the stock model, a sample at a time: logits and `F.cross_entropy` in fp64, mean over all tokens."""
    from transformers import AutoModelForImageTextToText

    data = datamodule(manifest, cache, 1)
    processor = load_processor(checkpoint, budget=data.budget)
    data.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    stock = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float64)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(data.index)):
        sample = encode_example(data.index.conversation(row), processor, pixels="float32")
        ids = sample["input_ids"][None]
        media = {}
        if len(sample["grid_thw"]):
            single = sample["still_patches"].double()
            copies = single.reshape(len(single), 3, 1, -1).expand(-1, -1, 2, -1).reshape(len(single), -1)
            media = {"pixel_values": copies, "image_grid_thw": sample["grid_thw"]}
        logits = stock(input_ids=ids, mm_token_type_ids=(ids == processor.image_token_id).long(), **media).logits[0]
        total = total + cross_entropy(logits[:-1], sample["labels"][1:], reduction="sum")
        count += int((sample["labels"] != -100).sum())
    loss = total / count
    loss.backward()
    return {"loss": loss.item(), "grads": {name: p.grad for name, p in stock.named_parameters()}}
