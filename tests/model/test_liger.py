"""Liger's kernels are asked for in words, and refused in words where they cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.training.conftest import REPOSITORY, environment
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


@pytest.mark.skipif(find_spec("liger_kernel") is None or find_spec("triton") is None, reason="Liger is not installed")
def test_its_kernels_in_tritons_interpreter_equal_the_stock_model_in_fp64(tiny):
    """Norms and activations, forward and backward; the interpreter's gaps are listed, each with the kernel that shows it."""
    command = [sys.executable, "-m", "tests.model.interpreted", str(tiny.vision_language)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**environment(), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"].keys() == {"number", "libdevice"}, "the interpreter has learnt: drop `supply`'s part"
    assert "'float' object has no attribute 'to'" in found["errors"]["number"]
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="Liger is not installed")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_its_norms_and_activations_are_close(tiny):
    from transformers import AutoModelForImageTextToText

    load = AutoModelForImageTextToText.from_pretrained
    stock, ours = (load(tiny.vision_language, dtype=torch.float32).cuda().train() for _ in range(2))
    use_kernels(ours, "liger")
    tokens = torch.arange(64, device="cuda")[None]
    torch.testing.assert_close(ours(input_ids=tokens).logits, stock(input_ids=tokens).logits, rtol=0, atol=1e-3)
