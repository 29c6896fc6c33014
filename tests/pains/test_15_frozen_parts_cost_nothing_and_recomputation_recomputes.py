"""A frozen vision encoder keeps nothing for autograd; checkpointing recomputes, frozen part or not, and trains the merger."""

from __future__ import annotations

import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import blocks_of, set_checkpointing
from vlmkit.processing.encode import encode_example

STAGE1 = FreezePolicy(vision_encoder=True, merger=False, language_model=True)
STAGE2 = FreezePolicy(vision_encoder=True, merger=False, language_model=False)


@pytest.fixture
def batch(processor, pictures):
    said = (Turn("user", (ImagePart(pictures[0]), TextPart("what?"))), Turn("assistant", (TextPart("that"),)))
    info = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=4)
    return pack_samples([encode_example(Conversation(said), processor, pixels="uint8")], processor, info)


@pytest.mark.parametrize("policy", [STAGE1, STAGE2], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize("wanted", [False, True], ids=["kept", "recomputed"])
def test_stage(tiny, processor, batch, policy, wanted):
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model
    policy.apply(hf)
    set_checkpointing(hf, vision_encoder=wanted, language_model=wanted)
    model = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    policy.set_modes(hf)
    merger = [p for name, p in hf.named_parameters() if "merger" in name]
    kept: list[int] = []
    for p in merger:
        p.requires_grad_(False)  # so that what is kept could only be the encoder's
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        model._see(batch)
    assert sum(kept) == 0, "a frozen vision encoder keeps 0 bytes"
    for p in merger:
        p.requires_grad_(True)
    seen = {"vision_encoder": 0, "language_model": 0}
    for part in seen:
        blocks_of(hf, part)[0].mlp.register_forward_pre_hook(lambda *_, p=part: seen.update({p: seen[p] + 1}))
    model(batch).loss_sum.backward()
    assert seen == {"vision_encoder": 1, "language_model": 2 if wanted else 1}
    assert all(p.grad is not None and bool(p.grad.count_nonzero()) for p in merger)
    assert all(p.grad is None for p in hf.parameters() if not p.requires_grad)
