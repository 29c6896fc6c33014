"""Proof that a model collected from the ranks that share it is the one they train, adapters merged or not."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmkit.batch import Batch
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.errors import CheckpointError
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example
from vlmkit.processing.processor import Processor
from vlmkit.training.callbacks.validator import unnoticed
from vlmkit.training.module import TrainingModule
from vlmkit.training.shards import reshard


def probe_pack(processor: Processor) -> Batch:
    """A small pack of a text and an image with their answers, the same on every rank."""
    drawn = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(drawn, "PNG")
    told = (
        ((TextPart("What is 2 + 3?"),), "It is five, as everybody knows."),
        ((ImagePart(drawn.getvalue()), TextPart("What is this?")), "A slope from black to white."),
    )
    samples = [
        encode_example(
            Conversation((Turn("user", asked), Turn("assistant", (TextPart(answer),)))), processor, pixels="uint8"
        )
        for asked, answer in told
    ]
    supervised = sum(int((sample["labels"] >= 0).sum()) for sample in samples)
    info = PackInfo(pack=0, rows=(0, 1), sources=(0, 0), step_supervised_tokens=supervised)
    return pack_samples(samples, processor, info)


def probe_losses(module: TrainingModule, processor: Processor, context: AbstractContextManager[Any]) -> Tensor:
    """(supervised tokens,) losses of the probe by the model as it is trained; the ranks that share it must all call.

    Args:
        module: Has the model.
        processor: What it is trained with.
        context: In which its forward runs; of the Trainer's precision.
    """
    batch: Batch = module.transfer_batch_to_device(probe_pack(processor), module.device, 0)
    with unnoticed(module), context:
        losses = module.packed(batch).token_losses
    reshard(module)
    return losses.float().cpu()


def prove_collected(model: Any, losses: Tensor, processor: Processor, *, rounded: bool) -> float:
    """Compare what the collected model loses on the probe with what the shared one did. The model is patched afterwards.

    Args:
        model: A stock model, whole on this process.
        losses: Of `probe_losses`.
        processor: As there.
        rounded: The shared model computed in 16 bits, whatever its weights are kept in.

    Returns:
        The largest difference.

    Raises:
        CheckpointError: it is more than rounding.
    """
    packed = PackedVLM(model, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std).eval()
    with torch.no_grad():
        found = packed(probe_pack(processor)).token_losses.float()
    worst = float((found - losses).abs().max())
    tolerance = 0.1 if rounded else 1e-4
    if not worst <= tolerance * max(1.0, float(losses.abs().max())):
        raise CheckpointError(
            f"The model collected from all ranks is not the one they trained: losses of a probe differ by {worst:g}. This is "
            "a fault of vlmkit: please report it. The checkpoints stand."
        )
    return worst
