"""Whether a model, its processor and its template belong together, told without weights."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from vlmkit.model.assembly import Assembly, WholeCheckpoint
from vlmkit.model.fit import end_token, misfits, sizes, weight_faults, without_weights
from vlmkit.model.freeze import FreezePolicy
from vlmkit.processing.processor import load_processor


@pytest.fixture(scope="module")
def whole(tiny):
    """Config and processor of the tiny vision-language checkpoint."""
    source = WholeCheckpoint(path=tiny.vision_language, processor=None)
    return source.config(), load_processor(tiny.vision_language)


@pytest.fixture
def directory(tiny, tmp_path) -> Path:
    """A copy of the tiny vision-language checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny.vision_language, tmp_path / "model"))


def changed(config, path, value):
    """A config with one field changed."""
    other = copy.deepcopy(config)
    *sections, name = path.split(".")
    node = other
    for section in sections:
        node = getattr(node, section)
    setattr(node, name, value)
    return other


def test_a_checkpoint_fits_itself(whole):
    config, processor = whole
    assert misfits(config, processor) == []
    assert processor.hf.tokenizer.convert_ids_to_tokens(end_token(processor)) == "<|im_end|>"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("text_config.vocab_size", 10, "the model's embeddings 10 rows"),
        ("image_token_id", 3, "image_token_id is"),
        ("vision_config.patch_size", 7, "patch_size=16, the vision encoder wants 7"),
        ("vision_config.spatial_merge_size", 4, "merge_size=2, the vision encoder wants 4"),
        ("vision_config.num_position_embeddings", 10_000, "the vision encoder has 10000"),
        ("vision_config.out_hidden_size", 8, "features 8 wide"),
    ],
)
def test_each_misfit_is_told(whole, path, value, told):
    config, processor = whole
    (found,) = misfits(changed(config, path, value), processor)
    assert told in found


def test_a_template_that_writes_no_image_is_told(whole, directory):
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").write_text(template.replace("<|image_pad|>", ""))
    (found,) = misfits(whole[0], load_processor(directory))
    assert "writes 0 <|image_pad|> for one image" in found


def test_sizes_count_parts_and_what_is_trained(whole):
    model = without_weights(whole[0])
    FreezePolicy(vision_encoder=True, merger=False, language_model=True).apply(model)
    found = sizes(model)
    assert found.trained["merger"] == found.parameters["merger"] > 0
    assert found.trained["vision_encoder"] == found.trained["language_model"] == 0
    assert sum(found.parameters.values()) == sum(one.numel() for one in model.parameters())
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())


def test_whole_weights_are_in_order(tiny):
    assert weight_faults(WholeCheckpoint(path=tiny.vision_language, processor=None)) == []


def test_the_config_of_an_assembly_is_that_of_the_model_it_builds(tiny):
    source = Assembly(
        vision_encoder=tiny.vision_language,
        language_model=tiny.language_model,
        template=None,
        merger_init="crop",
        processor=None,
        seed=0,
        prove=False,
    )
    assert weight_faults(source) == []
    assert source.config().to_dict() == source.build(dtype=torch.float32).model.config.to_dict()


def test_weights_that_are_cut_off_are_told_by_file_and_tensor(directory):
    (weights,) = directory.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    (found,) = weight_faults(WholeCheckpoint(path=directory, processor=None))
    assert found.startswith(f"model.path: {weights} ends within tensor ")


def test_weights_of_another_shape_are_told(directory):
    content = json.loads((directory / "config.json").read_text())
    content["text_config"]["intermediate_size"] *= 2
    (directory / "config.json").write_text(json.dumps(content))
    (found,) = weight_faults(WholeCheckpoint(path=directory, processor=None))
    assert "no tensor of the right shape for model.language_model.layers.0.mlp" in found
