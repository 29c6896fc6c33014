"""Fifty seeded inputs: our model gives what the unpatched one gives, as logits and as generated tokens."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example, encode_prompt

INFO = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=1)
KINDS = ("text", "still", "stills", "video", "mixture")
NUM_INPUTS = 50
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


@pytest.fixture(scope="module")
def conversations(tmp_path_factory, clip):
    """Ten of each kind, their texts of 1 to 600 words or so, their images of any shape."""
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
    for number in range(NUM_INPUTS):
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
def stock64(tiny):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny.vision_language, dtype=torch.float64).eval()


def stock_inputs(told, processor, dtype):
    """As the stock processor would hand them over."""
    exact = encode_example(told, processor, pixels="float32")
    ids = exact["input_ids"][None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == processor.image_token_id).long() + 2 * (ids == processor.video_token_id).long(),
    }
    if len(exact["still_patches"]):
        single = exact["still_patches"].to(dtype)
        inputs["pixel_values"] = single.unflatten(1, (3, 1, -1)).expand(-1, -1, 2, -1).flatten(1)
        inputs["image_grid_thw"] = exact["grid_thw"][~exact["is_video"]]
    if len(exact["video_patches"]):
        inputs["pixel_values_videos"] = exact["video_patches"].to(dtype)
        inputs["video_grid_thw"] = exact["grid_thw"][exact["is_video"]]
    return inputs


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_logits_equal_the_unpatched_models(conversations, stock64, processor, dtype):
    stock = copy.deepcopy(stock64).to(dtype)
    from vlmkit.model.parts import restore_rotary_buffers

    restore_rotary_buffers(stock)
    made = copy.deepcopy(stock)
    ours = PackedVLM(made, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    longest = 0
    for number, told in enumerate(conversations):
        batch = pack_samples([encode_example(told, processor, pixels="uint8")], processor, INFO)
        longest = max(longest, batch["input_ids"].shape[1])
        with torch.no_grad():
            wanted = stock(**stock_inputs(told, processor, dtype), use_cache=False).logits
            found = ours.logits(batch)
        scale = max(1.0, float(wanted.abs().max()))
        worst = float((found - wanted).abs().max()) / scale
        assert worst < TOLERANCES[dtype], f"input {number}: {worst:g}"
    assert longest > 400


def test_generation_equals_the_unpatched_models_token_for_token(conversations, stock64, processor):
    made = copy.deepcopy(stock64)
    PackedVLM(made, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)  # patches it
    for number, told in enumerate(conversations):
        prompt = {
            key: value.double() if value.is_floating_point() else value
            for key, value in encode_prompt(Conversation(told.turns[:1]), processor).items()
        }
        texts = [model.generate(**prompt, max_new_tokens=6, do_sample=False).tolist() for model in (stock64, made)]
        assert texts[0] == texts[1], f"input {number}"
