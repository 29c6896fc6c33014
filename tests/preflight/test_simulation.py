"""A simulated step against a real one: the same memory by kind and by the profiler, the same operations, any family."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.families.tiny import CONFIGS
from tests.preflight.settings import FULL, PACK, STAGE_1, STAGE_2, make_setting, tiny_config
from tests.preflight.two_ranks import SHARED
from tests.training.two_ranks import start_two
from vlmkit.model.lora import Lora
from vlmkit.preflight.simulation import (
    SampleShape,
    make_batch,
    make_optimizer_of,
    make_packed,
    run_step,
    simulate_step,
)
from vlmkit.preflight.tracking import StepTracker
from vlmkit.training.flops import count_flops

ADAPTERS = Lora(
    rank=8, alpha=16.0, dropout=0.0, vision_encoder=["qkv"], merger=[], language_model=["q_proj", "v_proj", "down_proj"]
)
SETTINGS = {
    "stage 1": {"freeze": STAGE_1},
    "stage 2": {"freeze": STAGE_2},
    "full": {"freeze": FULL},
    "language model recomputed": {"recompute_language_model": True},
    "both recomputed": {"freeze": FULL, "recompute_language_model": True, "recompute_vision_encoder": True},
    "mixed": {"precision": "bf16-mixed"},
    "mixed and recomputed": {"precision": "bf16-mixed", "recompute_language_model": True},
    "bf16 with fp32 masters": {"precision": "bf16-true"},
    "accumulated": {"accumulate": 2},
    "adapters": {"lora": ADAPTERS},
    "adapters, mixed and recomputed": {
        "lora": ADAPTERS,
        "precision": "bf16-mixed",
        "recompute_language_model": True,
    },
}
QUICK = ("stage 1", "mixed and recomputed", "adapters")


def real_step(setting):
    """A tracker of a real step that starts with the optimiser's state made, its traffic, and the profiler's rise."""
    torch.manual_seed(0)
    batch = make_batch(PACK, setting.config)
    packed = make_packed(setting, None)
    optimizer = make_optimizer_of(packed, setting)
    run_step(packed, optimizer, batch, setting, StepTracker())
    tracker = StepTracker()
    tracker.follow_step(packed, optimizer, batch)
    with tracker:
        traffic, _ = run_step(packed, optimizer, batch, setting, tracker)
    packed.zero_grad(set_to_none=True)  # the profiler does not see the release of what was there before it began
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for _ in range(2):
            run_step(packed, optimizer, batch, setting, StepTracker())
    return tracker, traffic, _highest_rise(profiled)


def _highest_rise(profiled) -> int:
    """Most bytes that were allocated at once, above what there was when the profile began."""
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


def agree(simulated, real, traffic, rise) -> None:
    assert simulated.peak == {kind: size for kind, size in real.at_peak.items()}
    assert simulated.traffic == traffic
    standing = simulated.resting["parameters"] + simulated.resting["batch"] + simulated.resting["optimizer"]
    assert simulated.peak_bytes == pytest.approx(standing + rise, rel=0.01)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_memory_and_operations_are_those_of_a_real_step(name, tiny):
    setting = make_setting(tiny_config("qwen3_vl", tiny), **SETTINGS[name])
    agree(simulate_step(setting, PACK), *real_step(setting))


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family(family):
    setting = make_setting(tiny_config(family), precision="bf16-mixed", freeze=FULL)
    agree(simulate_step(setting, PACK), *real_step(setting))


@pytest.mark.slow
def test_ranks_that_share_the_model(tiny, tmp_path):
    out = tmp_path / "measured.json"
    start_two("tests.preflight.two_ranks", str(tiny.vision_language), str(out))
    measured = json.loads(out.read_text())
    config = tiny_config("qwen3_vl", tiny)
    for name, changes in SHARED.items():
        simulated = simulate_step(make_setting(config, strategy="fsdp", num_ranks=2, **changes), PACK)
        assert simulated.peak_bytes == pytest.approx(measured[name]["peak"], rel=0.01), name
        collectives = [[each.name, each.num_bytes] for each in simulated.traffic.collectives]
        assert collectives == measured[name]["collectives"], name


def test_products_are_those_of_the_formula(tiny):
    setting = make_setting(tiny_config("qwen3_vl", tiny), freeze=FULL, recompute_language_model=True)
    batch = make_batch(PACK, setting.config)
    count = count_flops(make_packed(setting, None).hf)
    simulated = simulate_step(setting, PACK)
    assert simulated.traffic.matmul_flops == pytest.approx(count.executed(batch) - count.attention(batch), rel=1e-3)
    assert simulated.attention_flops == count.attention(batch) > 0


def test_a_sample_too_short_for_its_image_is_refused(tiny):
    with pytest.raises(ValueError, match="a sample of 20 tokens cannot hold 36 visual and 1 supervised ones"):
        make_batch([SampleShape(num_tokens=20, num_supervised=1, grids=((1, 12, 12),))], tiny_config("qwen3_vl", tiny))
