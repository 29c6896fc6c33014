"""flash-attn is an option that is missed in words; the patch embedding needs no convolution."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.functional import conv3d

from vlmkit.errors import ConfigError
from vlmkit.model.attention import choose_kernel, flash_fault
from vlmkit.model.patch_embed import embed_patches

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_what_is_there_is_chosen():
    assert choose_kernel("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_kernel("auto", GPU, torch.float32) == "sdpa"
    wanted = "flash" if find_spec("flash_attn") else "varlen"
    assert choose_kernel("auto", GPU, torch.bfloat16) == wanted


def test_what_is_not_there_is_told():
    with pytest.raises(ConfigError, match="attn_implementation=flash needs a CUDA device and bf16 or fp16, found cpu"):
        choose_kernel("flash", CPU, torch.bfloat16)
    if not find_spec("flash_attn"):
        with pytest.raises(
            ConfigError,
            match=r"flash-attn is not installed. Install it: pip install --no-build-isolation 'vlmkit\[flash\]'",
        ):
            choose_kernel("flash", GPU, torch.bfloat16)


def test_a_flash_attn_built_for_another_pytorch_is_passed_over_and_told(monkeypatch, tmp_path):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c105ErrorC2E')\n")
    monkeypatch.syspath_prepend(tmp_path)
    flash_fault.cache_clear()
    try:
        assert choose_kernel("auto", GPU, torch.bfloat16) == "varlen"
        with pytest.raises(
            ConfigError, match=r"does not load \(undefined symbol: _ZN3c105ErrorC2E\). Install a build for"
        ):
            choose_kernel("flash", GPU, torch.bfloat16)
    finally:
        flash_fault.cache_clear()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_patch_embedding_as_a_product_equals_the_convolution(dtype, tolerance):
    torch.manual_seed(0)
    proj = nn.Conv3d(3, 32, kernel_size=(2, 16, 16), stride=(2, 16, 16)).to(dtype)
    stills, videos = torch.randn(7, 3 * 256, dtype=dtype), torch.randn(5, 3 * 512, dtype=dtype)
    doubled = stills.unflatten(1, (3, 1, 256)).expand(-1, -1, 2, -1)
    cubes = torch.cat([doubled.reshape(7, 3, 2, 16, 16), videos.reshape(5, 3, 2, 16, 16)])
    wanted = conv3d(cubes, proj.weight, proj.bias, stride=(2, 16, 16)).flatten(1)
    found = embed_patches(proj, stills, videos)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    (grad,) = torch.autograd.grad(wanted.square().sum(), proj.weight)
    (ours,) = torch.autograd.grad(found.square().sum(), proj.weight)
    torch.testing.assert_close(ours, grad, rtol=1e-4 if dtype == torch.float32 else 0, atol=100 * tolerance)
