"""A tiny checkpoint of every family, made in place: random weights, the real special tokens, the family's own traits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlmkit.demo import checkpoints as demo

WITH_SYSTEM_TURN = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' -}}{%- endif -%}\n"
)
"""Before the demo's template: a system turn that nobody said, as Qwen2.5-VL's template writes one."""
VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 256,
    "out_hidden_size": 64,
    "initializer_range": 0.06,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": demo.VOCABULARY_ROWS,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""Heads that are together twice as wide as the language model, as in some of the published sizes."""
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]}


def qwen3_vl_moe_config() -> Any:
    """Eight MLPs to a layer, two to a token, one layer without; an untied head."""
    from transformers import Qwen3VLMoeConfig

    text = {**TEXT, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1]}
    text |= {"rope_parameters": {**MROPE, "mrope_interleaved": True}, "tie_word_embeddings": False}
    return Qwen3VLMoeConfig(
        vision_config={**VISION, "deepstack_visual_indexes": [1, 2]}, text_config=text, tie_word_embeddings=False
    )


def qwen2_5_vl_config() -> Any:
    """Windows of two by two visual tokens in two blocks of four, patches of 14 pixels, biases, no norms of queries."""
    from transformers import Qwen2_5_VLConfig

    vision = {**VISION, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 4}
    del vision["num_position_embeddings"]
    text = {**TEXT, "hidden_size": 128, "rope_parameters": MROPE, "tie_word_embeddings": True}
    del text["head_dim"]
    return Qwen2_5_VLConfig(
        vision_config={**vision, "out_hidden_size": 128}, text_config=text, tie_word_embeddings=True
    )


def qwen3_5_config() -> Any:
    """Two layers with a state and two with attention in turn, a quarter of each head rotated."""
    from transformers import Qwen3_5Config

    rope = {**MROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    text = {**TEXT, "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
    text |= {"linear_key_head_dim": 16, "linear_value_head_dim": 24, "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 4, "rope_parameters": rope, "tie_word_embeddings": True}
    return Qwen3_5Config(vision_config=VISION, text_config=text, tie_word_embeddings=True)


def qwen3_5_moe_config() -> Any:
    """As its dense sister; eight MLPs to a layer, two to a token, and one more for every token; an untied head."""
    from transformers import Qwen3_5MoeConfig

    text = {**qwen3_5_config().text_config.to_dict(), "num_experts": 8, "num_experts_per_tok": 2}
    text |= {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 40, "tie_word_embeddings": False}
    del text["intermediate_size"], text["model_type"]
    return Qwen3_5MoeConfig(vision_config=VISION, text_config=text, tie_word_embeddings=False)


CONFIGS = {
    "qwen3_vl_moe": qwen3_vl_moe_config,
    "qwen2_5_vl": qwen2_5_vl_config,
    "qwen3_5": qwen3_5_config,
    "qwen3_5_moe": qwen3_5_moe_config,
}


def make_processor(family: str, tokenizer: Any) -> Any:
    """The family's Hugging Face processor."""
    if family != "qwen2_5_vl":
        return demo.make_processor(tokenizer)
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    limits = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=limits),
        video_processor=Qwen2VLVideoProcessor(size=limits),
        tokenizer=tokenizer,
        chat_template=WITH_SYSTEM_TURN + demo.CHAT_TEMPLATE,
    )


def write_checkpoint(
    family: str,
    directory: Path,
    *,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    experts_apart: bool = False,
) -> Path:
    """Write model and processor of a family; `changes` are fields of its text config.

    Where published files hold all experts in one tensor, so do these, or each apart as `save_pretrained` would.
    """
    from vlmkit.model.families import FAMILIES

    tokenizer = demo.train_tokenizer()
    config = CONFIGS[family]()
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = f"<|{name.removesuffix('_token_id').replace('image', 'image_pad').replace('video', 'video_pad')}|>"
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    for name, value in (changes or {}).items():
        setattr(config.text_config, name, value)
    config.text_config.bos_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config.text_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family].make(config)
        _shake(model)
    demo._save(model, directory)
    if FAMILIES[family].one_tensor_of_experts and not experts_apart:
        model.save_pretrained(directory, save_original_format=False)
    make_processor(family, tokenizer).save_pretrained(directory)
    return directory


def _shake(model: Any) -> None:
    """Norms and biases that are not the ones or zeros they begin as: a test would not see them lost."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not name.endswith("A_log"):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
