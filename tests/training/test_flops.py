"""Model FLOPs against torch's own counter, with each part frozen and not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.families.fixtures import checkpoint, family, of_every_family
from tests.families.tiny import CONFIGS
from tests.training.conftest import write_manifest
from tests.training.small_run import prepared
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.families import FAMILIES
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.training.flops import count_flops, peak_flops

__all__ = ["checkpoint", "family"]  # fixtures


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("rows"), 8, text_only=frozenset({1}))


NOTHING_FROZEN = (False, False, False)


@of_every_family(
    "frozen", [NOTHING_FROZEN, (True, False, True), (True, False, False), (True, True, False)], quick=[NOTHING_FROZEN]
)
def test_the_formula_counts_what_torch_counts(rows, checkpoint, family, cache, frozen):
    """torch counts causal attention whole, its backward as 2.5 times the forward, not 2, and no attention of grouped heads.

    A layer with a state it counts as computed, chunk by chunk: that is more than the mathematics asks for.
    """
    data = prepared(rows, checkpoint, cache, batch_size=8)
    hf = WholeCheckpoint(path=checkpoint, processor=None).build(dtype=torch.float32).model
    policy = FreezePolicy(**dict(zip(("vision_encoder", "merger", "language_model"), frozen, strict=True)))
    policy.apply(hf)
    model = PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)
    batch = _batch(data)
    if family.experts:
        hf.set_experts_implementation("eager")  # the grouped product is not counted
    with FlopCounterMode(display=False) as counter:
        model(batch).loss_sum.backward()
    uncounted = {} if family.name == "qwen3_vl" else {"language_width": 0, "vision_width": 0}
    counted = replace(count_flops(hf, policy), causal=1.0, **uncounted)(batch)
    told = counter.get_total_flops()
    if family.linear_attention:
        assert 0.5 * told < counted < told
    else:
        assert counted == pytest.approx(told, rel=0.06)


def test_windows_cost_less_than_whole_images():
    hf = FAMILIES["qwen2_5_vl"].make(CONFIGS["qwen2_5_vl"]())
    count = count_flops(hf, FreezePolicy(vision_encoder=False, merger=False, language_model=False))
    assert (count.vision_depth, count.window_depth) == (2, 2)
    batch = {
        "vision_seqlens": [64],
        "vision_window_seqlens": [16] * 4,
        "seqlens": [16],
        "targets": [],
        "video_patches": [],
    }
    attention = count(batch) - replace(count, vision_width=0)(batch)  # type: ignore[arg-type]
    assert attention == 3 * 4 * 64 * (2 * 64**2 + 2 * 4 * 16**2)


def _batch(data):
    from vlmkit.data.dataset import PackDataset

    return PackDataset(index=data.index, processor=data.processor, pixels="uint8")[data.steps(1, 1).slots(0)[0]]


def test_the_peak_of_a_cpu_is_not_known():
    assert peak_flops(torch.device("cpu"), "bf16-mixed") is None
