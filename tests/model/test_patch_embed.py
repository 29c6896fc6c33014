"""The patch embedding is the stock convolution, stills by half the work; pixels are normalised in fp32 whatever follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmkit.model.patch_embed import PatchNormalizer, embed_patches

SIDE, TIMES, WIDTH = 4, 2, 16


def convolution() -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(3, WIDTH, kernel_size=(TIMES, SIDE, SIDE), stride=(TIMES, SIDE, SIDE), dtype=torch.float64)


def patches(number: int, *, video: bool) -> torch.Tensor:
    made = torch.rand(number, 3, TIMES if video else 1, SIDE, SIDE, dtype=torch.float64)
    return made.flatten(1)


@pytest.mark.parametrize(("num_stills", "num_videos"), [(5, 0), (0, 3), (4, 2)])
def test_it_equals_the_convolution_with_its_gradients(num_stills, num_videos):
    ours, theirs = convolution(), convolution()
    stills, videos = patches(num_stills, video=False), patches(num_videos, video=True)
    repeated = stills.unflatten(1, (3, 1, SIDE, SIDE)).expand(-1, -1, TIMES, -1, -1)
    wanted = theirs(torch.cat([repeated, videos.unflatten(1, (3, TIMES, SIDE, SIDE))])).flatten(1)
    found = embed_patches(ours, stills, videos)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    for one in (found, wanted):
        one.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=0, atol=1e-11)


MEAN, STD = (
    [255 * value for value in values]
    for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)
"""CLIP's, of bytes: none of them is exact in bf16."""


def under_bf16(build):
    torch.set_default_dtype(torch.bfloat16)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


def on_meta(build):
    with torch.device("meta"):
        normalize = build()
    return normalize.to_empty(device="cpu")


def in_a_cast_model(build):
    return nn.ModuleDict({"normalize": build()}).to(torch.bfloat16)["normalize"]


@pytest.mark.parametrize("made", [under_bf16, on_meta, in_a_cast_model, lambda build: build().double()])
def test_bytes_are_normalised_in_fp32_however_the_model_is_made_and_cast(made):
    """Folding scale and mean into bf16 weights, or casting bytes first, would double the error."""
    normalize = made(lambda: PatchNormalizer(mean=MEAN, std=STD))
    given = torch.randint(0, 256, (7, 3 * SIDE * SIDE), dtype=torch.uint8)
    found = under_bf16(lambda: normalize(given))
    exact = given.double().unflatten(1, (3, -1))
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (MEAN, STD))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), ((exact - mean) / std).flatten(1), rtol=1e-6, atol=1e-6)
    assert {name: buffer.dtype for name, buffer in normalize.named_buffers()} == dict.fromkeys(
        ("mean", "std"), torch.float32
    )
    assert normalize.state_dict() == {}, "no key of ours joins the state dict"
    assert normalize(found) is found, "what is normalised already is left alone"


def test_mean_and_deviation_go_where_the_model_goes():
    normalize = PatchNormalizer(mean=MEAN, std=STD).to("meta")
    assert {buffer.device.type for buffer in normalize.buffers()} == {"meta"}
    moved = normalize.to_empty(device="cpu")
    assert moved.mean.tolist() == pytest.approx(MEAN)
    assert moved.std.tolist() == pytest.approx(STD)
