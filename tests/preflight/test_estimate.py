"""Estimates: memory and seconds by hand, what bounds a step, the largest budget, and the strategies beside the chosen one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.preflight.settings import PACK, make_setting, tiny_config
from vlmkit.preflight.estimate import (
    CONTEXT_BYTES,
    Estimator,
    Memory,
    Work,
    alternatives,
    attention_workspace,
    describe_strategy,
    estimates_table,
    micro_batch_seconds,
    slowest,
)
from vlmkit.preflight.machine import Machine
from vlmkit.preflight.packs import assumed_pack, image_grids
from vlmkit.preflight.simulation import SampleShape, simulate_step

MACHINE = Machine(
    name="Made up", memory_gib=1, bf16_tflops=100, tf32_tflops=50, bandwidth_gb=1000, link_gb=100, network_gb=10, gpus=8,
    capability=None, product_share=0.5, bandwidth_share=0.5, link_share=0.5, launch_microseconds=10,
)  # fmt: skip
WORK = Work(heaviest=PACK, average=PACK, num_packs=101, load_seconds=0.5, num_workers=2)


@pytest.fixture(scope="module")
def setting(tiny):
    return make_setting(tiny_config("qwen3_vl", tiny))


@pytest.fixture(scope="module")
def simulation(setting):
    return simulate_step(setting, PACK)


def test_seconds_by_hand(setting, simulation):
    seconds = micro_batch_seconds(simulation, setting, MACHINE, WORK)
    assert seconds["matrix products"] == simulation.traffic.matmul_flops / 25e12
    assert seconds["attention"] == simulation.attention_flops / (25e12 * 0.5)
    assert seconds["memory traffic"] == simulation.traffic.moved_bytes / 500e9
    assert seconds["host"] == pytest.approx(simulation.traffic.num_operations * 1e-5)
    assert seconds["loading"] == 0.25
    assert seconds["collectives"] == 0
    exchanged = micro_batch_seconds(simulation, replace(setting, strategy="ddp", num_ranks=4), MACHINE, WORK)
    assert exchanged["collectives"] == pytest.approx(2 * 3 / 4 * simulation.trained_bytes / 50e9)


def test_what_is_beside_the_device_decides_only_where_it_is_longer():
    seconds = {
        "matrix products": 3.0,
        "attention": 1.0,
        "memory traffic": 2.0,
        "collectives": 5.0,
        "host": 1.0,
        "loading": 0.0,
    }
    assert slowest(seconds) == (6.0, "matrix products")
    assert slowest(seconds | {"collectives": 7.0}) == (7.0, "collectives")
    assert slowest(seconds | {"loading": 9.0}) == (9.0, "loading")
    assert slowest(seconds | {"memory traffic": 4.0}) == (8.0, "memory traffic")


def test_an_estimate(setting, simulation):
    estimate = Estimator(WORK).estimate(replace(setting, accumulate=2), MACHINE, "1xmade_up")
    assert estimate.bound == "loading"  # 0.25 s a pack
    update = simulation.update.moved_bytes / 500e9
    assert estimate.step_seconds == pytest.approx(2 * 0.25 + update)
    assert estimate.run_seconds == pytest.approx(51 * estimate.step_seconds)  # 101 packs, two a step
    tokens = sum(sample.num_tokens for sample in PACK)
    assert estimate.tokens_per_second == pytest.approx(2 * tokens / estimate.step_seconds)
    assert estimate.mfu == pytest.approx(2 * simulation.model_flops / (estimate.step_seconds * 50e12))
    assert estimate.memory.total > CONTEXT_BYTES + simulation.peak_bytes
    assert estimate.to_json()["memory"]["fits"] is True
    assert len(estimates_table([estimate])) == 2


def test_the_largest_budget_fills_the_machine(setting):
    estimator = Estimator(WORK)
    budget = estimator.estimate(setting, MACHINE, "1xmade_up").largest_tokens_per_batch
    assert budget is not None
    tokens = sum(sample.num_tokens for sample in PACK)
    larger = PACK * (budget // tokens)
    full = Estimator(replace(WORK, heaviest=larger, average=larger)).estimate(setting, MACHINE, "1xmade_up")
    assert 0.9 < full.memory.total / MACHINE.memory_bytes <= 1.0


def test_no_budget_fits_where_the_weights_do_not(setting):
    small = replace(MACHINE, memory_gib=0.1)
    estimate = Estimator(WORK).estimate(setting, small, "1xsmall")
    assert not estimate.memory.fits
    assert estimate.largest_tokens_per_batch is None


def test_a_machine_is_full_when_it_is_full():
    memory = Memory(tensors={"parameters": 70}, workspace=20, framework=10, capacity=100)
    assert memory.total == 100
    assert memory.fits
    assert not replace(memory, workspace=21).fits


def test_workspace_is_that_of_the_larger_part_that_is_trained(setting):
    text = setting.config.text_config
    tokens = sum(sample.num_tokens for sample in PACK)
    assert attention_workspace(setting, PACK) == 4 * tokens * text.num_attention_heads * text.head_dim
    trained = replace(setting, freeze=replace(setting.freeze, vision_encoder=False))
    patches = sum(sample.num_patches for sample in PACK)
    assert attention_workspace(trained, PACK) == 4 * patches * setting.config.vision_config.hidden_size


def test_strategies_beside_the_chosen(setting):
    assert [describe_strategy(each) for each in alternatives(setting)] == [
        "single",
        "single, language model recomputed",
    ]
    chosen = replace(setting, strategy="fsdp", num_ranks=8, recompute_language_model=True)
    assert [describe_strategy(each) for each in alternatives(chosen)] == [
        "fsdp, language model recomputed",
        "ddp",
        "ddp, language model recomputed",
        "fsdp",
    ]


@pytest.mark.parametrize(
    ("patches", "images", "grids"),
    [
        (0, 0, ()),
        (16, 1, ((1, 4, 4),)),
        (24, 1, ((1, 4, 6),)),
        (40, 2, ((1, 2, 10), (1, 2, 10))),
        (28, 2, ((1, 4, 4), (1, 2, 6))),
    ],
)
def test_images_as_square_as_can_be(patches, images, grids):
    assert image_grids(patches, images, merge_size=2) == grids


def test_an_assumed_pack_has_the_tokens_that_were_asked_for():
    pack = assumed_pack(2500, merge_size=2)
    assert sum(sample.num_tokens for sample in pack) == 2500
    assert pack[0] == SampleShape(num_tokens=1024, num_supervised=128, grids=((1, 32, 64),))
