"""Settings of simulated steps that several tests share."""

from __future__ import annotations

import copy
from typing import Any

from tests.families.tiny import CONFIGS
from vlmkit.model.freeze import FreezePolicy
from vlmkit.preflight.simulation import SampleShape, StepSetting
from vlmkit.training.optim import OptimizerPlan

STAGE_1 = FreezePolicy(vision_encoder=True, merger=False, language_model=True)
STAGE_2 = FreezePolicy(vision_encoder=True, merger=False, language_model=False)
FULL = FreezePolicy(vision_encoder=False, merger=False, language_model=False)
PACK = (
    SampleShape(num_tokens=90, num_supervised=20, grids=((1, 12, 12),)),
    SampleShape(num_tokens=200, num_supervised=30, grids=((1, 8, 16), (1, 16, 20))),
    SampleShape(num_tokens=60, num_supervised=12),
) * 4
PLAN = OptimizerPlan(
    lr=1e-3,
    lr_vision_encoder=None,
    lr_merger=None,
    lr_language_model=None,
    layer_decay=1.0,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    fp32_masters=True,
    optimizer=None,
    schedule="constant",
    warmup_ratio=0.0,
    min_lr_ratio=0.0,
)


def tiny_config(family: str, tiny: Any = None) -> Any:
    """The config of a family's tiny model; of Qwen3-VL the embedded template's."""
    if family != "qwen3_vl":
        return CONFIGS[family]()
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny.vision_language)


def make_setting(config: Any, **changes: Any) -> StepSetting:
    """Stage 2 in fp32 on one device, with the attention that a CPU runs, but for what is changed."""
    settings: dict[str, Any] = {
        "config": copy.deepcopy(config),
        "freeze": STAGE_2,
        "lora": None,
        "optimizer": PLAN,
        "precision": "32-true",
        "recompute_vision_encoder": False,
        "recompute_language_model": False,
        "strategy": "single",
        "num_ranks": 1,
        "accumulate": 1,
        "kernel": "sdpa",
    }
    return StepSetting(**{**settings, **changes})
