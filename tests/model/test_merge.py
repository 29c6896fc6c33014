"""Which part each config field comes from, and which parts are refused."""

from __future__ import annotations

from copy import deepcopy

import pytest
from transformers import AutoConfig

from vlmkit.errors import AssemblyError
from vlmkit.model.merge import check_tokenizers, merge_configs


@pytest.fixture(scope="module")
def configs(tiny):
    template = AutoConfig.from_pretrained(tiny.vision_language).to_dict()
    language = AutoConfig.from_pretrained(tiny.language_model).to_dict()
    return template, template["vision_config"], language


def merged(configs, **settings):
    return merge_configs(*configs, **{"tied": True, "dtype": "float32", **settings})


def test_the_rope_base_is_the_language_models(configs):
    rope = merged(configs)[0]["text_config"]["rope_parameters"]
    assert rope == {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def test_fields_and_their_sources(configs):
    template, vision, language = configs
    _, fields = merged((template, {**vision, "depth": 4}, {**language, "rms_norm_eps": 1e-5}), dtype="bfloat16")
    told = {field.name: (field.value, field.source) for field in fields}
    assert len(told) == len(fields), "a field is told once"
    assert {name: told[name] for name in (
        "model_type",
        "image_token_id",
        "dtype",
        "tie_word_embeddings",
        "vision_config.depth",
        "vision_config.deepstack_visual_indexes",
        "vision_config.out_hidden_size",
        "vision_config.dtype",
        "text_config.hidden_size",
        "text_config.num_key_value_heads",
        "text_config.rms_norm_eps",
        "text_config.tie_word_embeddings",
        "text_config.dtype",
        "text_config.eos_token_id",
        "text_config.rope_parameters.rope_theta",
        "text_config.rope_parameters.mrope_section",
        "text_config.rope_parameters.mrope_interleaved",
    )} == {
        "model_type": ("qwen3_vl", "template"),
        "image_token_id": (template["image_token_id"], "template"),
        "dtype": ("bfloat16", "vlmkit"),
        "tie_word_embeddings": (True, "language_model"),
        "vision_config.depth": (4, "vision_encoder"),
        "vision_config.deepstack_visual_indexes": ([1, 2], "vision_encoder"),
        "vision_config.out_hidden_size": (128, "vlmkit"),
        "vision_config.dtype": ("bfloat16", "vlmkit"),
        "text_config.hidden_size": (128, "language_model"),
        "text_config.num_key_value_heads": (2, "language_model"),
        "text_config.rms_norm_eps": (1e-5, "language_model"),
        "text_config.tie_word_embeddings": (True, "language_model"),
        "text_config.dtype": ("bfloat16", "vlmkit"),
        "text_config.eos_token_id": (template["text_config"]["eos_token_id"], "template"),
        "text_config.rope_parameters.rope_theta": (1e6, "language_model"),
        "text_config.rope_parameters.mrope_section": ([6, 5, 5], "template"),
        "text_config.rope_parameters.mrope_interleaved": (True, "template"),
    }  # fmt: skip


def test_the_parts_configs_stay_as_they_are(configs):
    before = deepcopy(configs)
    config, _ = merged(configs)
    config["vision_config"]["deepstack_visual_indexes"].append(3)
    assert configs == before


@pytest.mark.parametrize("tied", [True, False])
def test_tying_stands_at_both_levels(configs, tied):
    config, _ = merged(configs, tied=tied)
    assert config["tie_word_embeddings"] is tied
    assert config["text_config"]["tie_word_embeddings"] is tied


@pytest.mark.parametrize(
    ("part", "changes", "finding"),
    [
        (0, {"model_type": "llava"}, r"^model\.template: family 'llava' is not supported\. Supported: qwen3_vl"),
        (1, {"model_type": "siglip"}, r"^model\.vision_encoder: its family is 'siglip', the template's 'qwen3_vl"),
        (1, {"patch_size": 14}, r"^model\.vision_encoder: its patch_size is 14, the template's 16"),
        (1, {"deepstack_visual_indexes": [0, 1, 2, 3, 3]}, r"^model\.language_model: 4 layers cannot take in 5 DeepStack"),
        (2, {"model_type": "llama"}, r"^model\.language_model: family 'llama' does not fit a qwen3_vl template"),
        (2, {"head_dim": 64}, r"its head size 64 does not fit the template's mrope_section \[6, 5, 5\], which makes 32"),
        (2, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, r"rope_type 'yarn' has no three-axis form"),
        (2, {"rope_parameters": {"rope_theta": 1e6, "mrope_section": [8, 4, 4]}}, r"trained with mrope_section \[8, 4, 4\]"),
        (2, {"use_sliding_window": True}, "sliding-window attention has no place"),
    ],
)  # fmt: skip
def test_refused(configs, part, changes, finding):
    parts = list(configs)
    parts[part] = {**parts[part], **changes}
    with pytest.raises(AssemblyError, match=finding):
        merged(parts)


VOCABULARY = {"a": 0, "b": 1, "<|image_pad|>": 2}


@pytest.mark.parametrize(
    ("language", "rows", "finding"),
    [
        ({"a": 1, "b": 0, "<|image_pad|>": 2}, 3, r"2 tokens have another id \(first: 'a', 'b'\)"),
        ({"a": 0, "b": 1}, 3, r"1 special tokens are missing in the language model \(first: '<\|image_pad\|>'\)"),
        ({**VOCABULARY, "c": 3}, 4, r"1 tokens are in one of the two only \(first: 'c'\)"),
        (VOCABULARY, 2, r"the tokenizer has ids up to 2, the embeddings 2 rows"),
    ],
)
def test_tokenizers_that_differ_are_refused_by_token(language, rows, finding):
    with pytest.raises(AssemblyError, match=finding):
        check_tokenizers(VOCABULARY, language, special={"<|image_pad|>"}, rows=rows)


def test_equal_tokenizers_and_spare_rows_fit():
    check_tokenizers(VOCABULARY, dict(VOCABULARY), special={"<|image_pad|>"}, rows=1024)
