"""What Lightning, logging and callbacks cost a step, over a bare loop on the same model and packs.

Both train the demo's tiny model on the same packs of drawn shapes, in turn, in one process: a bare loop (forward,
backward, clipping, AdamW, schedule) and `vlmkit-train`'s own Trainer with its log, checkpoints at the end, receipt and
group table. `python bench/overhead.py --help` for the options.

Printed, and checked (exit status 1 where it is missed): milliseconds a step over the bare loop, median over rounds of
the difference of the medians of steps; under 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vlmkit.cli.quiet import hush
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.demo import tiny_checkpoints
from vlmkit.demo.shapes import shapes_manifest
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import load_processor
from vlmkit.training.callbacks.receipt import GradientReceipt
from vlmkit.training.callbacks.steplog import StepLog
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import OptimizerPlan, make_optimizer, make_schedule, parameter_groups

MAX_MILLISECONDS = 2.0
PLAN = OptimizerPlan(
    lr=1e-4, lr_vision_encoder=None, lr_merger=None, lr_language_model=None, layer_decay=1.0, weight_decay=0.0,
    beta1=0.9, beta2=0.999, eps=1e-8, fp32_masters=True, optimizer=None, schedule="cosine", warmup_ratio=0.03,
    min_lr_ratio=0.0,
)  # fmt: skip
FREEZE = FreezePolicy(vision_encoder=True, merger=False, language_model=True)


class Ticks(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.at.append(time.perf_counter())


def main() -> int:
    """Run both in turn, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    hush()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(bare(options.steps), lightning(options.steps, Path(folder))) for _ in range(options.rounds)]
    for one, other in pairs:
        print(f"bare {one:6.2f} ms a step   Lightning, log and callbacks {other:6.2f} ms   over {other - one:5.2f} ms")
    over = statistics.median(other - one for one, other in pairs)
    good = over < MAX_MILLISECONDS
    print(f"over the bare loop: {over:.2f} ms a step, under {MAX_MILLISECONDS:.0f}{'' if good else '   MISSED'}")
    return 0 if good else 1


def datamodule(steps: int) -> PackedDataModule:
    """One row a pack, as many packs as steps."""
    data = PackedDataModule(
        name="shapes", sources=[shapes_manifest()], root=None, allow_absolute_paths=False, limit=steps,
        image_min_pixels=None, image_max_pixels=64 * 64, video_min_pixels=None, video_max_pixels=None, video_fps=None,
        video_max_frames=None, max_tokens=None, overlong="error", on_bad_row="error", video_reader="auto",
        media_timeout_seconds=60, on_bad_media="error", max_bad_media=0, batch_size=1,
        tokens_per_batch=None, patches_per_batch=None, order="sequential", heaviest_first=False, pixels="uint8",
        num_workers=0, cache_dir=Path(tempfile.gettempdir()) / "vlmkit-overhead", seed=0,
    )  # fmt: skip
    processor = load_processor(tiny_checkpoints().vision_language, budget=data.budget)
    data.prepare(processor=processor, num_epochs=None, max_packs=steps, require_media=False)
    return data


def made(data: PackedDataModule) -> PackedVLM:
    """The tiny model."""
    hf = WholeCheckpoint(path=tiny_checkpoints().vision_language, processor=None).build(dtype=torch.float32).model
    return PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)


def bare(steps: int) -> float:
    """Milliseconds of the median step of a loop that does nothing else; loading is part of it, as below."""
    data = datamodule(steps)
    model = made(data)
    FREEZE.apply(model.hf)
    FREEZE.set_modes(model.hf)
    groups = parameter_groups(model.hf.named_parameters(), PLAN)
    optimizer = make_optimizer(groups, PLAN)
    schedule = make_schedule(optimizer, PLAN, num_steps=steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    at = [time.perf_counter()]
    for number in range(len(data.plan)):
        batch = data.pack_batch(number)
        (model(batch).loss_sum / batch["step_supervised_tokens"]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        at.append(time.perf_counter())
    return median_gap(at)


def lightning(steps: int, folder: Path) -> float:
    """The same through the Trainer, with what a run has around a step."""
    data, ticks = datamodule(steps), Ticks()
    module = TrainingModule(
        make_model=lambda: made(data), freeze=FREEZE, optimizer_plan=PLAN, count_steps=data.num_steps
    )
    log = StepLog(
        path=folder / "train.jsonl", every_n_steps=10, num_steps=lambda: steps, source_names=["shapes"],
        epoch_at=float, progress=False,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, gradient_clip_val=1.0, use_distributed_sampler=False,
        enable_checkpointing=False, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[GradientReceipt(steps_with_media=10), log, ticks], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return median_gap(ticks.at)


def median_gap(at: list[float]) -> float:
    """Median milliseconds between two moments, the first tenth left out."""
    gaps = [1000 * (after - before) for before, after in zip(at, at[1:], strict=False)]
    return statistics.median(gaps[len(gaps) // 10 :])


if __name__ == "__main__":
    sys.exit(main())
