"""Model FLOPs against torch's own counter, with each part frozen and not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.training.conftest import write_manifest
from tests.training.small_run import prepared
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.training.flops import count_flops, peak_flops


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("rows"), 8, text_only=frozenset({1}))


@pytest.mark.parametrize(
    "frozen",
    [(False, False, False), (True, False, True), (True, False, False), (True, True, False)],
    ids=["nothing frozen", "merger only", "vision frozen", "language model only"],
)
def test_the_formula_counts_what_torch_counts(rows, tiny, cache, frozen):
    """torch counts causal attention whole, and its backward of attention as 2.5 times the forward, not 2."""
    data = prepared(rows, tiny.vision_language, cache, batch_size=8)
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model
    policy = FreezePolicy(**dict(zip(("vision_encoder", "merger", "language_model"), frozen, strict=True)))
    policy.apply(hf)
    model = PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)
    batch = _batch(data)
    with FlopCounterMode(display=False) as counter:
        model(batch).loss_sum.backward()
    counted = replace(count_flops(hf, policy), causal=1.0)(batch)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.06)


def _batch(data):
    from vlmkit.data.dataset import PackDataset

    return PackDataset(index=data.index, processor=data.processor, pixels="uint8")[data.steps(1, 1).slots(0)[0]]


def test_the_peak_of_a_cpu_is_not_known():
    assert peak_flops(torch.device("cpu"), "bf16-mixed") is None
