"""The image that stands in for no image: loss, gradients and positions of a text are those without it, bit for bit."""

from __future__ import annotations

import torch

from vlmkit.conversation import Conversation, TextPart, Turn
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example


def test_loss_and_gradients_with_and_without_it_are_the_same_bits(tiny, processor):
    told = Conversation(
        (Turn("user", (TextPart("what is two and two?"),)), Turn("assistant", (TextPart("it is four"),)))
    )
    info = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=4)
    batch = pack_samples([encode_example(told, processor, pixels="uint8")], processor, info)
    assert batch["dummy_visual"]
    assert batch["num_media"] == 0
    assert batch["position_ids"][1:].unique(dim=0).shape[0] == 1, "a text counts alike on all three axes"
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model
    model = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std).train()
    loss = model(batch).loss_sum
    loss.backward()
    with_it = {name: p.grad.clone() for name, p in hf.named_parameters()}

    model.zero_grad(set_to_none=True)
    model._see = lambda batch: (torch.zeros(1), [])  # no image at all, no call into the vision encoder
    without = model(batch).loss_sum
    without.backward()
    assert torch.equal(loss, without)
    for name, parameter in hf.named_parameters():
        if parameter.grad is None:
            assert ".visual." in name
            assert not with_it[name].count_nonzero()
        else:
            assert torch.equal(with_it[name], parameter.grad), name
