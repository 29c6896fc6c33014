"""mRoPE under packing: positions restart with every sample, and without its segments a row would leak."""

from __future__ import annotations

import torch

from tests.families.fixtures import checkpoint, family
from tests.families.fixtures import family_processor as processor
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example

__all__ = ["checkpoint", "family", "processor"]  # fixtures: for every family
INFO = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=4)


def test_a_packed_sample_stands_where_it_stands_alone(checkpoint, processor, pictures, clip):
    asked = [(ImagePart(pictures[0]),), (), (VideoPart(clip), ImagePart(pictures[1]))]
    samples = [
        encode_example(
            Conversation((Turn("user", (*media, TextPart("what?"))), Turn("assistant", (TextPart("that"),)))),
            processor,
            pixels="uint8",
        )
        for media in asked
    ]
    batch = pack_samples(samples, processor, INFO)
    hf = WholeCheckpoint(path=checkpoint, processor=None).build(dtype=torch.float64).model
    model = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    with torch.no_grad():
        packed = model.logits(batch)[0].split(batch["seqlens"])
        for sample, found, start in zip(samples, packed, batch["cu_seqlens"].tolist(), strict=False):
            place = slice(start, start + len(found))
            assert torch.equal(batch["position_ids"][:, 0, place], sample["position_ids"])
            alone = model.logits(pack_samples([sample], processor, INFO))[0]
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-12)
        one_segment = {**batch, "cu_seqlens": batch["cu_seqlens"][[0, -1]], "seqlens": [sum(batch["seqlens"])]}
        leaking = model.logits(one_segment)[0].split(batch["seqlens"])
    torch.testing.assert_close(leaking[0], packed[0], rtol=0, atol=1e-12)
    assert (leaking[1] - packed[1]).abs().max() > 1e-3, "a row that leaks is seen here"
