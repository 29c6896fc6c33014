"""A new transformers moves names and defaults: the range is pinned, and each moved thing that would be silent is checked."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from transformers import AutoModelForImageTextToText

from tests.model.conftest import assembly
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.processing.encode import encode_prompt

REPOSITORY = Path(__file__).parents[2]


def test_the_tested_range_is_pinned_and_this_is_in_it():
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    pin = next(Requirement(line) for line in told if line.startswith("transformers"))
    assert {specifier.operator for specifier in pin.specifier} == {">=", "<"}
    assert pin.specifier.contains(transformers.__version__)


def test_a_rope_base_written_the_old_way_reaches_the_model(tiny, tmp_path):
    """`rope_theta` beside the other fields, as transformers 4 wrote it; a lost base damages the model and nothing fails."""
    old = shutil.copytree(tiny.language_model, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config.pop("rope_parameters", None)
    config["rope_theta"] = 12345.0
    (old / "config.json").write_text(json.dumps(config))
    model = assembly(tiny, language_model=old).build(dtype=torch.float32).model
    assert model.config.text_config.rope_parameters["rope_theta"] == 12345.0
    inner = model.model.language_model.rotary_emb.inv_freq
    width = model.config.text_config.head_dim
    assert float(inner[1]) == pytest.approx(12345.0 ** (-2 / width))


def test_media_come_with_the_token_types_that_transformers_asks_for(tiny, processor, pictures):
    """Without them an image's positions would be those of text."""
    asked = Conversation((Turn("user", (ImagePart(pictures[0]), TextPart("What is it?"))),))
    prompt = encode_prompt(asked, processor)
    visual = prompt["input_ids"] == processor.image_token_id
    assert visual.any()
    assert torch.equal(prompt["mm_token_type_ids"].bool(), visual)
    model = AutoModelForImageTextToText.from_pretrained(tiny.vision_language, dtype=torch.float32).eval()
    with torch.no_grad():
        whole = model(**prompt).logits
        types = torch.zeros_like(prompt["mm_token_type_ids"])
        assert whole.isfinite().all()
        try:
            other = model(**(prompt | {"mm_token_type_ids": types})).logits
        except Exception:  # noqa: BLE001  a release that refuses is as good as one that shows the difference
            return
        assert not torch.allclose(whole, other, atol=1e-4)
