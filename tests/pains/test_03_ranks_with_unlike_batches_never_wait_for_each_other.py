"""Mixed text-only and image batches: every pack runs the same modules, the same number of times, and trains every tensor.

That two ranks with unlike packs meet, under DDP and under FSDP2, is run in `tests/training/test_sharding.py`.
"""

from __future__ import annotations

import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example


@pytest.mark.parametrize("kind", ["text", "still", "stills and video", "idle"])
def test_every_pack_calls_every_module_once_and_gives_every_tensor_a_gradient(tiny, processor, pictures, clip, kind):
    still, video = ImagePart(pictures[0]), VideoPart(clip)
    media = {"text": (), "still": (still,), "stills and video": (still, video, still)}.get(kind)
    samples = []
    if media is not None:
        told = Conversation((Turn("user", (*media, TextPart("what?"))), Turn("assistant", (TextPart("that"),))))
        samples = [encode_example(told, processor, pixels="uint8")]
    batch = pack_samples(samples, processor, PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=4))
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model
    model = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std).train()
    calls: list[str] = []
    blocks = [f"model.visual.blocks.{n}" for n in range(len(hf.model.visual.blocks))]
    blocks += [f"model.language_model.layers.{n}" for n in range(len(hf.model.language_model.layers))]
    mergers = ["model.visual.merger"]
    mergers += [f"model.visual.deepstack_merger_list.{n}" for n in range(len(hf.model.visual.deepstack_merger_list))]
    for name in (*blocks, *mergers):
        hf.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    model(batch).loss_sum.backward()
    assert sorted(calls) == sorted([*blocks, *mergers])
    assert all(parameter.grad is not None for parameter in model.parameters())
