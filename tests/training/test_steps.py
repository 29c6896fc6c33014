"""One optimiser step has one gradient, however it is cut into micro-batches and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.conftest import write_manifest
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


def compare(found, wanted):
    assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-10)
    assert found["grads"].keys() == wanted["grads"].keys()
    for name, grad in wanted["grads"].items():
        torch.testing.assert_close(found["grads"][name], grad, rtol=0, atol=1e-10, msg=name)
