"""Steps are exact, and what a pack takes follows from what others took."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.conftest import write_manifest
from tests.training.gradients import datamodule
from vlmkit.data.dataset import PackDataset
from vlmkit.data.dealing import Steps
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import load_processor
from vlmkit.training.forecast import Calibration, adamw_bytes, fitted_seconds, forecast, step_seconds, told


def run(tokens, patches, seconds):
    return Calibration(tokens=tokens, patches=patches, seconds=seconds)


def test_seconds_follow_a_line_through_the_calibrations():
    runs = [run(100, 0, 1.2), run(200, 400, 3.2), run(300, 0, 3.2)]
    found = fitted_seconds(runs, np.array([100, 1000]), np.array([0, 0]))
    assert found == pytest.approx([1.2, 10.2])
    assert fitted_seconds(runs[:1], np.array([50]), np.array([200])) == pytest.approx([1.2])
    falling = [run(100, 0, 2.0), run(300, 0, 1.0)]
    assert fitted_seconds(falling, np.array([100]), np.array([0])) == pytest.approx([0.75])


def test_ranks_wait_for_the_slowest_in_every_micro_batch():
    steps = Steps(
        plan=None, start_pack=0, accumulate=2, packs=np.array([[0, 1], [2, 3], [4, -1]]),
        step_supervised_tokens=np.array([1, 1]),
    )  # fmt: skip
    assert step_seconds(steps, np.array([1.0, 5.0, 2.0, 1.0, 3.0])).tolist() == [7.0, 3.0]


def test_optimiser_state_is_counted_by_what_is_trained():
    wide, narrow = torch.nn.Parameter(torch.zeros(10)), torch.nn.Parameter(torch.zeros(10).bfloat16())
    frozen = torch.nn.Parameter(torch.zeros(10), requires_grad=False)
    assert adamw_bytes([wide, narrow, frozen], masters=True) == 80 + 120
    assert adamw_bytes([wide, narrow, frozen], masters=False) == 80 + 40


def test_a_forecast_changes_nothing_and_counts_the_steps(tiny, cache, tmp_path):
    manifest = write_manifest(tmp_path, 8)
    data = datamodule(manifest, cache, 1)
    processor = load_processor(tiny.vision_language, budget=data.budget)
    data.prepare(processor=processor, num_epochs=3, max_packs=None, require_media=False)
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model.train()
    packed = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    before = {name: p.detach().clone() for name, p in packed.named_parameters()}
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8")
    steps = data.steps(2, 2)
    slots = {slot.pack: slot for rank in range(2) for slot in steps.slots(rank)}
    state = adamw_bytes(list(packed.parameters()), masters=True)
    found = forecast(packed=packed, steps=steps, load=lambda pack: dataset[slots[pack]], optimizer_bytes=state)
    assert (found.num_steps, found.num_packs) == (6, 24)
    assert found.peak_bytes > found.resting_bytes > state == 2 * sum(p.nbytes for p in packed.parameters())
    assert found.seconds > found.epoch_seconds > 0
    assert "6 steps" in found.to_text()
    for name, p in packed.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_time_in_words():
    assert [told(seconds) for seconds in (42, 720, 12_240)] == ["42 s", "12 min", "3.4 h"]
