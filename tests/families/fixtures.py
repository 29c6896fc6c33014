"""Fixtures that run a test once for each family, and how the stock model is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.families.tiny import CONFIGS, write_checkpoint
from vlmkit.conversation import Conversation, VideoPart
from vlmkit.model.families import FAMILIES, Family
from vlmkit.processing.encode import encode_example, layout
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import Processor, load_processor

NAMES = ("qwen3_vl", *CONFIGS)
GRADIENTS = {"qwen3_vl": 1e-10, "qwen3_vl_moe": 1e-10, "qwen2_5_vl": 1e-9, "qwen3_5": 2e-6, "qwen3_5_moe": 2e-6}
"""How far gradients of fp64 models may be off: stock modules compute in fp32 inside, the norms of Qwen3.5 even their sums
over the tokens of a row."""
BUDGET = PixelBudget(image_max_pixels=64 * 64 * 4, video_max_pixels=64 * 64 * 16, video_max_frames=6)


@pytest.fixture(scope="session", params=NAMES)
def family(request) -> Family:
    """Each family in turn."""
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def checkpoint(family, tiny, cache) -> Path:
    """The family's tiny checkpoint."""
    if family.name == "qwen3_vl":
        return tiny.vision_language
    directory = cache / "families" / family.name
    return directory if directory.is_dir() else write_checkpoint(family.name, directory)


@pytest.fixture(scope="session")
def family_processor(checkpoint) -> Processor:
    """Its processor, with budgets small enough for quick tests."""
    return load_processor(checkpoint, budget=BUDGET)


def of_every_family(argument: str, values, *, quick):
    """A mark: a test with each value for each family; of the others than Qwen3-VL, values that are not `quick` are slow.

    Args:
        argument: Of the test.
        values: For it.
        quick: Those that show most.
    """
    cases = [
        pytest.param(name, value, marks=[] if name == NAMES[0] or value in quick else pytest.mark.slow)
        for name in NAMES
        for value in values
    ]
    return pytest.mark.parametrize(("family", argument), cases, indirect=["family"], ids=_id)


def _id(value) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def load_stock(checkpoint: Path, dtype: torch.dtype):
    """The unpatched model, as its users load it."""
    from transformers import AutoModelForImageTextToText

    from vlmkit.model.parts import restore_rotary_buffers

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype)
    restore_rotary_buffers(model)
    if FAMILIES[model.config.model_type].experts and dtype == torch.float64:
        model.set_experts_implementation("eager")  # its grouped product knows no fp64
    return model


def stock_inputs(told: Conversation, processor: Processor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One sample as the stock processor would hand it over."""
    exact = encode_example(told, processor, pixels="float32")
    ids = exact["input_ids"][None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == processor.image_token_id).long() + 2 * (ids == processor.video_token_id).long(),
    }
    if len(exact["still_patches"]):
        single = exact["still_patches"].to(dtype)
        inputs["pixel_values"] = single.unflatten(1, (3, 1, -1)).expand(-1, -1, 2, -1).flatten(1)
        inputs["image_grid_thw"] = exact["grid_thw"][~exact["is_video"]]
    if len(exact["video_patches"]):
        inputs["pixel_values_videos"] = exact["video_patches"].to(dtype)
        inputs["video_grid_thw"] = exact["grid_thw"][exact["is_video"]]
        if not processor.video_rules.stamped:
            videos = [part for part in told.media if isinstance(part, VideoPart)]
            inputs["second_per_grid_ts"] = torch.tensor([layout(part, processor).seconds_apart for part in videos])
    return inputs
