"""A frozen part neither trains nor drops out; a part that is not frozen trains whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.model.conftest import assembly
from vlmkit.errors import ConfigError
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.parts import PARTS, part_of

MERGER_ONLY = FreezePolicy(vision_encoder=True, merger=False, language_model=True)
VISION_FROZEN = FreezePolicy(vision_encoder=True, merger=False, language_model=False)
NONE = FreezePolicy(vision_encoder=False, merger=False, language_model=False)


@pytest.fixture(scope="module")
def model(tiny):
    return assembly(tiny).build(dtype=torch.float32).model


@pytest.mark.parametrize(
    ("policy", "trained"),
    [(MERGER_ONLY, {"merger"}), (VISION_FROZEN, {"merger", "language_model"}), (NONE, set(PARTS))],
)
def test_exactly_the_named_parts_are_trained(model, policy, trained):
    NONE.apply(model)
    policy.apply(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameter.requires_grad == (part_of(name) in trained), name


def test_a_policy_can_be_lifted_again(model):
    MERGER_ONLY.apply(model)
    NONE.apply(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_tied_head_follows_the_embeddings(model):
    VISION_FROZEN.apply(model)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.lm_head.weight.requires_grad


def test_freezing_everything_is_refused(model):
    everything = FreezePolicy(vision_encoder=True, merger=True, language_model=True)
    with pytest.raises(ConfigError, match=r"^freeze: all three parts are frozen"):
        everything.apply(model)


def test_a_parameter_of_no_part_is_refused():
    stray = nn.ModuleDict({"adapter": nn.Linear(2, 2)})
    with pytest.raises(KeyError, match=r"adapter\.weight"):
        NONE.apply(stray)


def test_modes(model):
    model.eval()
    MERGER_ONLY.set_modes(model)
    visual, language = model.model.visual, model.model.language_model
    assert not visual.training
    assert not any(module.training for module in visual.blocks.modules())
    assert visual.merger.training
    assert all(merger.training for merger in visual.deepstack_merger_list)
    assert all(module.training for module in language.modules()), "transformers recomputes only in train mode"
    NONE.set_modes(model)
    assert all(module.training for module in model.modules())


def test_a_frozen_language_model_with_dropout_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.config.text_config, "attention_dropout", 0.1)
    with pytest.raises(ConfigError, match=r"attention_dropout=0\.1; a frozen one must have 0"):
        MERGER_ONLY.set_modes(model)
    VISION_FROZEN.set_modes(model)
