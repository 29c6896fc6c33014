"""Seeded inputs (fifty for Qwen3-VL) and bare token rows of 1 to 600: our model gives what the unpatched one gives, as
logits, losses and generated tokens.
"""

from __future__ import annotations

import copy
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from tests.families.fixtures import checkpoint, family, load_stock, of_every_family, stock_inputs
from tests.families.fixtures import family_processor as processor
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, idle_sample, pack_samples
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import restore_rotary_buffers
from vlmkit.processing.encode import encode_example, encode_prompt

__all__ = ["checkpoint", "family", "processor"]  # fixtures: every test here runs once for each family
INFO = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=1)
KINDS = ("text", "still", "stills", "video", "mixture")
NUM_INPUTS = {"qwen3_vl": 50}
FEWER_INPUTS = 5
"""Of the other families: one of each kind."""
LENGTHS = (1, 2, 3, 5, 17, 64, 100, 257, 599, 600)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
ROUTED = 0.9
"""Where a rounding to bf16 may send a token to another MLP, so many of a row's tokens keep to the tolerance, not all."""


@pytest.fixture(scope="module")
def conversations(family, tmp_path_factory, clip):
    """As many of each kind, their texts of 1 to 600 words or so, their images of any shape."""
    folder, draw = tmp_path_factory.mktemp("drawn"), random.Random(0)
    pixels = np.random.default_rng(0)

    def still(number):
        path = folder / f"{number}-{draw.random():.6f}.png"
        shape = (draw.randint(32, 140), draw.randint(32, 140), 3)
        Image.fromarray(pixels.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return ImagePart(path)

    def words():
        most = draw.choice([1, 10, 60, 600])
        return TextPart(
            " ".join(draw.choice(["a", "red", "shape", "of", "seven", "?"]) for _ in range(draw.randint(1, most)))
        )

    made = []
    for number in range(NUM_INPUTS.get(family.name, FEWER_INPUTS)):
        kind = KINDS[number % len(KINDS)]
        media = {
            "text": [], "still": [still(number)], "stills": [still(number) for _ in range(draw.randint(2, 4))],
            "video": [VideoPart(clip)], "mixture": [VideoPart(clip), still(number), still(number)],
        }[kind]  # fmt: skip
        parts = [*media, words()]
        draw.shuffle(parts)
        made.append(Conversation((Turn("user", tuple(parts)), Turn("assistant", (words(),)))))
    return made


@pytest.fixture(scope="module")
def stock64(checkpoint):
    return load_stock(checkpoint, torch.float64).eval()


@of_every_family("dtype", TOLERANCES, quick=[torch.float64])
def test_logits_equal_the_unpatched_models(conversations, stock64, processor, family, dtype):
    counted = ROUTED if family.experts and dtype == torch.bfloat16 else 1.0
    stock = copy.deepcopy(stock64).to(dtype)
    restore_rotary_buffers(stock)
    made = copy.deepcopy(stock)
    ours = PackedVLM(made, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    for number, told in enumerate(conversations):
        batch = pack_samples([encode_example(told, processor, pixels="uint8")], processor, INFO)
        with torch.no_grad():
            wanted = stock(**stock_inputs(told, processor, dtype), use_cache=False).logits
            found = ours.logits(batch)
        scale = max(1.0, float(wanted.abs().max()))
        apart = (found - wanted).abs().amax(-1).flatten().float() / scale
        assert apart.quantile(counted) < TOLERANCES[dtype], f"input {number}: {float(apart.max()):g}"


def test_the_inputs_are_what_they_are_said_to_be(conversations, processor):
    """As many of each kind, short and long, with images of many shapes, and no two alike."""
    samples = [encode_example(told, processor, pixels="uint8") for told in conversations]
    each = len(samples) // len(KINDS)
    assert each >= 1
    kinds = Counter((int((~one["is_video"]).sum()), int(one["is_video"].sum())) for one in samples)
    assert kinds[0, 0] == kinds[1, 0] == kinds[0, 1] == kinds[2, 1] == each
    assert sum(count for (stills, videos), count in kinds.items() if stills > 1 and not videos) == each
    lengths = [len(one["input_ids"]) for one in samples]
    assert min(lengths) < 40
    assert max(lengths) > (600 if each == 10 else 200)
    assert len({tuple(one["input_ids"].tolist()) for one in samples}) == len(samples)
    assert len({tuple(grid) for one in samples for grid in one["grid_thw"].tolist()}) > each // 2


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_rows_of_1_to_600_tokens_have_the_unpatched_models_logits_and_losses(stock64, processor, dtype):
    """Bare tokens, without the template's own: the shortest rows there can be, alone and all in one pack."""
    tolerance = TOLERANCES[dtype]
    draw = torch.Generator().manual_seed(1)
    stock = copy.deepcopy(stock64).to(dtype)
    restore_rotary_buffers(stock)
    ours = PackedVLM(copy.deepcopy(stock), pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    rows = [torch.randint(10, 250, (length,), generator=draw) for length in LENGTHS]
    samples = [bare(ids, processor) for ids in rows]
    together = pack_samples(samples, processor, INFO)
    with torch.no_grad():
        wanted = [stock(input_ids=ids[None], use_cache=False).logits[0] for ids in rows]
        packed = ours.logits(together)[0].split(list(LENGTHS))
        losses = ours(together).token_losses
        for ids, expected, sample, found in zip(rows, wanted, samples, packed, strict=True):
            scale = max(1.0, float(expected.abs().max()))
            for made in (found, ours.logits(pack_samples([sample], processor, INFO))[0]):
                worst = float((made - expected).abs().max()) / scale
                assert worst < tolerance, f"{len(ids)} tokens: {worst:g}"
    exact = torch.cat(
        [
            cross_entropy(logits[:-1].double(), ids[1:], reduction="none")
            for logits, ids in zip(wanted, rows, strict=True)
        ]
    )
    assert len(losses) == len(exact) == sum(LENGTHS) - len(LENGTHS)
    near = 20 * tolerance
    torch.testing.assert_close(losses.double(), exact, rtol=near, atol=near)


def bare(ids, processor):
    """A sample of nothing but tokens, all supervised but the first."""
    empty = idle_sample(processor, "uint8")
    labels = ids.clone()
    labels[0] = -100
    return {**empty, "input_ids": ids, "labels": labels, "position_ids": torch.arange(len(ids)).expand(4, -1)}


def test_generation_equals_the_unpatched_models_token_for_token(conversations, stock64, processor):
    made = copy.deepcopy(stock64)
    PackedVLM(made, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)  # patches it
    for number, told in enumerate(conversations):
        prompt = {
            key: value.double() if key.startswith("pixel_values") else value
            for key, value in encode_prompt(Conversation(told.turns[:1]), processor).items()
        }
        texts = [model.generate(**prompt, max_new_tokens=6, do_sample=False).tolist() for model in (stock64, made)]
        assert texts[0] == texts[1], f"input {number}"
