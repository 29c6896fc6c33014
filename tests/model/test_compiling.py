"""Compiled blocks on bucketed shapes give what eager ones give, and few shapes are compiled."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.attention import Segments
from vlmkit.model.compiling import SMALLEST, bucket, filled
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import set_checkpointing
from vlmkit.processing.encode import encode_example

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of dynamo itself

INFO = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=1)
compiler = pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++ on a CPU, and there is no g++")


@pytest.fixture(scope="module")
def packs(processor, pictures, clip):
    def pack(*media, words=3):
        said = (*media, TextPart("word " * words))
        told = Conversation((Turn("user", said), Turn("assistant", (TextPart("an answer of some tokens"),))))
        return encode_example(told, processor, pixels="uint8")

    one, two = (ImagePart(pictures[number]) for number in (0, 1))
    samples = [[pack(one), pack(words=20)], [pack(one, two), pack(VideoPart(clip))], [pack(words=9)], [pack(two)]]
    return [pack_samples(each, processor, INFO) for each in samples]


@pytest.fixture(scope="module")
def stock(tiny):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny.vision_language, dtype=torch.float64).train()


def model(stock, processor, **settings):
    return PackedVLM(
        copy.deepcopy(stock), pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std, **settings
    ).train()


def losses_and_gradients(made, packs):
    found = []
    for batch in packs:
        made.zero_grad()
        out = made(batch)
        out.loss_sum.backward()
        found.append((out.loss_sum.detach(), {name: p.grad.clone() for name, p in made.named_parameters()}))
    return found


@pytest.mark.parametrize("how", ["eager", pytest.param("inductor", marks=[compiler, pytest.mark.slow])])
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "recomputed"])
def test_compiled_equals_eager(stock, processor, packs, how, recompute):
    torch._dynamo.reset()
    wanted = losses_and_gradients(model(stock, processor), packs)
    made = model(stock, processor, compiled=True, compiler=how)
    set_checkpointing(made.hf, vision_encoder=recompute, language_model=recompute)
    # The stock model computes its rotary angles in fp32 whatever the weights; generated code rounds their cosines otherwise.
    near = {"rtol": 1e-5, "atol": 1e-5} if how == "inductor" else {"rtol": 0, "atol": 1e-10}
    for (loss, grads), (expected, reference) in zip(losses_and_gradients(made, packs), wanted, strict=True):
        torch.testing.assert_close(loss, expected, **near)
        for name, grad in reference.items():
            torch.testing.assert_close(grads[name], grad, **near, msg=name)


def test_packs_of_one_bucket_are_compiled_once(stock, processor, packs):
    """Other segments and other lengths in the same bucket: nothing new to compile."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    made = model(stock, processor, compiled=True, compiler=count)
    same = [packs[2], packs[3]]
    assert len({bucket(batch["input_ids"].shape[1]) for batch in same}) == 1
    with torch.no_grad():
        made(packs[3])
        first = len(graphs)
        made(packs[3])
        made(pack_of_other_segments(packs[3]))
    assert len(graphs) == first > 0


def pack_of_other_segments(batch):
    """The same tokens, cut into two samples."""
    length = batch["input_ids"].shape[1]
    return {
        **batch,
        "cu_seqlens": torch.tensor([0, length // 2, length], dtype=torch.int32),
        "seqlens": [length // 2, length - length // 2],
    }


def test_buckets_waste_little_and_are_few():
    lengths = range(1, 20_000)
    buckets = {bucket(length) for length in lengths}
    assert all(length <= bucket(length) for length in lengths)
    assert all(size % 4 == 0 for size in buckets)
    assert max(bucket(n) / n for n in lengths if n > SMALLEST) <= 1.125
    assert len(buckets) < 80


def test_filler_is_a_segment_of_its_own():
    filler, segments = filled(Segments(torch.tensor([0, 40, 70], dtype=torch.int32), [40, 30]))
    assert (filler, segments.starts.tolist(), list(segments)) == (2, [0, 40, 70, 72], [40, 30, 2])
    assert segments.starts.dtype == torch.int32
    assert filled(Segments(torch.tensor([0, 64]), [64]))[0] == 0
