"""Liger's kernels are asked for in words, and refused in words where they cannot run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from vlmkit.errors import ConfigError
from vlmkit.model.liger import use_kernels


def test_the_stock_kernels_change_nothing():
    use_kernels(None, "torch")


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match="must be torch or liger, got 'triton'"):
        use_kernels(None, "triton")


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="Liger is installed")
def test_a_missing_package_is_told():
    with pytest.raises(ConfigError, match=r"Liger is not installed. pip install 'vlmkit\[liger\]'"):
        use_kernels(None, "liger")


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="Liger is not installed")
def test_its_norms_and_activations_are_close(tiny):
    from transformers import AutoModelForImageTextToText

    load = AutoModelForImageTextToText.from_pretrained
    stock, ours = (load(tiny.vision_language, dtype=torch.float32).cuda().train() for _ in range(2))
    use_kernels(ours, "liger")
    tokens = torch.arange(64, device="cuda")[None]
    torch.testing.assert_close(ours(input_ids=tokens).logits, stock(input_ids=tokens).logits, rtol=0, atol=1e-3)
