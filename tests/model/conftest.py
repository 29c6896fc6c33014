"""Parts to assemble: the tiny pair, and variants of its language model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from vlmkit.model.assembly import Assembly


def assembly(tiny, **settings) -> Assembly:
    """The tiny pair's assembly, with some settings changed."""
    usual = {
        "vision_encoder": tiny.vision_language,
        "language_model": tiny.language_model,
        "template": None,
        "merger_init": "crop",
        "processor": None,
        "seed": 0,
        "prove": True,
    }
    return Assembly(**{**usual, **settings})


def edited(source: Path, target: Path, **changes) -> Path:
    """A copy of a checkpoint with other fields in its config."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    path = target / "config.json"
    config = json.loads(path.read_text())
    config.pop("layer_types", None)
    path.write_text(json.dumps({**config, **changes}))
    return target


@pytest.fixture(scope="session")
def make_language_model(tiny, tmp_path_factory):
    """Write a Qwen3 of two layers with the tiny tokenizer, and give its directory."""

    def make(*, width: int, tied: bool, shard: str = "1GB", dtype: torch.dtype = torch.float32) -> Path:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        directory = tmp_path_factory.mktemp("language_model")
        config = Qwen3Config(
            vocab_size=1024,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width)
            model = Qwen3ForCausalLM(config).to(dtype)
        model.save_pretrained(directory, max_shard_size=shard)
        for path in tiny.language_model.glob("*token*"):
            shutil.copy(path, directory)
        return directory

    return make
