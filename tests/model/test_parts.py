"""Every parameter has a part; an unknown one is an error."""

from __future__ import annotations

import pytest
import torch

from tests.model.conftest import assembly
from vlmkit.model.parts import PARTS, blocks_of, part_of, restore_rotary_buffers


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.visual.patch_embed.proj.weight", "vision_encoder"),
        ("model.visual.pos_embed.weight", "vision_encoder"),
        ("model.visual.blocks.0.attn.qkv.weight", "vision_encoder"),
        ("model.visual.merger.linear_fc2.weight", "merger"),
        ("model.visual.deepstack_merger_list.1.norm.bias", "merger"),
        ("model.language_model.embed_tokens.weight", "language_model"),
        ("model.language_model.norm.weight", "language_model"),
        ("lm_head.weight", "language_model"),
    ],
)
def test_names_and_their_parts(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize("name", ["model.audio.conv.weight", "visual.blocks.0.norm1.weight", "lm_head_2.weight", ""])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(KeyError, match="belongs to no known part"):
        part_of(name)


def test_a_whole_model_falls_into_the_three_parts(tiny):
    model = assembly(tiny).build(dtype=torch.float32).model
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert {part_of(name) for name in names} == set(PARTS)
    mergers = {name for name in names if part_of(name) == "merger"}
    assert mergers == {name for name in names if "merger" in name}
    assert len(blocks_of(model, "vision_encoder")) == model.config.vision_config.depth
    assert len(blocks_of(model, "language_model")) == model.config.text_config.num_hidden_layers
    assert blocks_of(model, "merger") == []


def test_rotary_frequencies_survive_a_cast(tiny):
    model = assembly(tiny).build(dtype=torch.float32).model
    rotary = model.model.language_model.rotary_emb
    exact = rotary.inv_freq.clone()
    model.bfloat16()
    assert not torch.equal(rotary.inv_freq.float(), exact)
    restore_rotary_buffers(model)
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, exact)
    assert torch.allclose(exact, 1e6 ** -(torch.arange(0, 32, 2) / 32), rtol=1e-6), "the language model's rope base"
