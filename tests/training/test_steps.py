"""One optimiser step has one gradient, however it is cut into micro-batches and ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.conftest import environment, write_manifest
from tests.training.gradients import gradients, reference_gradients


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Eight rows, three without an image."""
    return write_manifest(tmp_path_factory.mktemp("rows"), 8, text_only=frozenset({0, 1, 5}))


@pytest.fixture(scope="module")
def wanted(rows, tiny, cache):
    """Loss and gradients from the stock model's logits and `F.cross_entropy`, sample by sample."""
    return reference_gradients(rows, tiny.vision_language, cache)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)])
def test_accumulation_does_not_change_the_gradient(rows, tiny, cache, tmp_path, wanted, batch_size, accumulate):
    found = gradients(
        rows, tiny.vision_language, cache, batch_size=batch_size, accumulate=accumulate, devices=1, out=tmp_path
    )
    compare(found, wanted)


def test_two_ranks_give_the_same_gradient(rows, tiny, cache, tmp_path, wanted):
    """Packs of two rows in order: one of the ranks starts with a pack without an image."""
    command = [
        sys.executable,
        "-m",
        "tests.training.gradients",
        str(rows),
        str(tiny.vision_language),
        str(cache),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, env=environment(), cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = torch.load(tmp_path / "gradients.pt")
    compare(found, wanted)


def compare(found, wanted):
    assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-10)
    assert found["grads"].keys() == wanted["grads"].keys()
    for name, grad in wanted["grads"].items():
        torch.testing.assert_close(found["grads"][name], grad, rtol=0, atol=1e-10, msg=name)
