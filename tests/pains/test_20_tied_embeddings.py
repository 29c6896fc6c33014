"""Tying comes from the language model, stands at both levels of the config, and a lost one is noticed on export."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.model.conftest import assembly
from vlmkit.errors import CheckpointError
from vlmkit.model.checkpoint import prove_export, save_hf


@pytest.fixture
def exported(tiny, processor, tmp_path):
    model = assembly(tiny).build(dtype=torch.float32).model
    return model, save_hf(model=model, processor=processor, directory=tmp_path / "hf", provenance={})


def test_a_tied_head_is_told_twice_and_written_once(exported):
    model, export = exported
    config = json.loads((export / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]) == (True, True)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(export / "model.safetensors")


@pytest.mark.filterwarnings("ignore")
def test_a_config_that_lost_its_tying_does_not_pass_the_proof(exported, processor):
    """As other tools write it: the head would be drawn anew, and the model answer noise."""
    model, export = exported
    config = json.loads((export / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (export / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"logits differ by .* from the model's on probe 0"):
        prove_export(export, model=model, processor=processor)
