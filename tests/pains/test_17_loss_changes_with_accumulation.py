"""One step's loss and gradient, however it is cut; the mean of the micro-batches' means is another number."""

from __future__ import annotations

import pytest
import torch

from tests.training.conftest import write_manifest
from tests.training.gradients import gradients
from tests.training.small_run import prepared


def test_one_pack_of_eight_or_eight_packs_of_one(tiny, cache, tmp_path):
    """Answers of one to four words: packs have different numbers of supervised tokens. Two ranks: training/test_steps.py."""
    rows = write_manifest(tmp_path, 8, text_only=frozenset({0, 1, 5}))
    found = {}
    for size, accumulate in ((8, 1), (4, 2), (2, 4), (1, 8)):
        out = tmp_path / str(size)
        out.mkdir()
        found[size] = gradients(
            rows, tiny.vision_language, cache, batch_size=size, accumulate=accumulate, devices=1, out=out
        )
    whole = found[8]
    for size in (4, 2, 1):
        assert found[size]["loss"] == pytest.approx(whole["loss"], abs=1e-12)
        for name, grad in whole["grads"].items():
            torch.testing.assert_close(found[size]["grads"][name], grad, rtol=0, atol=1e-12, msg=name)
    counts = prepared(rows, tiny.vision_language, cache, batch_size=2).plan.num_supervised_tokens.tolist()
    assert len(set(counts)) > 1, "equal packs would hide the fault"
