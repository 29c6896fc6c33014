"""A vision-language template and a language model of a few million parameters, as ordinary Hugging Face directories.

They stand for a real pair such as Qwen3-VL-2B and Qwen3-0.6B: the same classes, the same special tokens, other widths
and other rope bases, so that assembling them exercises what assembling the real ones does. Their weights are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.demo.cache import cache_root, recipe_key, written_once
from vlmkit.demo.corpus import corpus

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        Qwen2Tokenizer,
        Qwen3ForCausalLM,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens of Qwen3-VL, in the order of their ids; like there, they follow the trained vocabulary."""

CHAT_TEMPLATE = """\
{#- ChatML as Qwen3-VL speaks it: no system turn unless there is one; media stand where they are said. -#}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'text' -%}
                {{- part.text -}}
            {%- elif part.type == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- raise_exception('unknown content type: ' + part.type | string) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""Chat template (Jinja) of both checkpoints; works with the tokenizer of any Qwen3 model."""

SEED = 0
VOCABULARY_ROWS = 1024
"""Rows of the embeddings: a few more than the tokenizer has tokens, as in the real checkpoints."""
NUM_MERGED_TOKENS = 960
"""Vocabulary of the tokenizer before the special tokens: 256 bytes, the rest merges."""
INITIALIZER_RANGE = 0.04
"""Standard deviation of the weights. Twice transformers' default: so small a model learns much better from it."""
PATCH_EMBEDDING_GAIN = 2.0
"""The patch embedding is drawn wider still, by this factor."""
POSITION_EMBEDDING_GAIN = 25.0
"""So are the learned positions of the vision encoder: beside a white patch they would not be seen otherwise."""
MIN_PIXELS = 32 * 32
MAX_PIXELS = 32 * 32 * 1280
TEMPLATE_ROPE_BASE = 5e6
LANGUAGE_MODEL_ROPE_BASE = 1e6

VISION = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_heads": 4,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [1, 2],
}
TEMPLATE_TEXT = {
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
}
"""Wider than the language model, so that its merger has to be cropped."""
LANGUAGE_MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
MROPE_SECTION = [6, 5, 5]
"""Frequencies for time, height and width: half a head together."""


@dataclass(frozen=True, slots=True)
class TinyPaths:
    """Where the two checkpoints lie.

    Attributes:
        vision_language: Directory of a Qwen3-VL model with its full processor.
        language_model: Directory of a Qwen3 model with the same tokenizer.
    """

    vision_language: Path
    language_model: Path


def tiny_checkpoints(cache_dir: Path | None = None) -> TinyPaths:
    """Write both checkpoints once, and give their paths.

    Args:
        cache_dir: Directory to keep them in; the user's cache where None.

    Raises:
        VlmkitError: the cache cannot be written, or files were deleted from it.
    """
    sources = (str(Path(__file__).with_name(name)) for name in ("corpus.py", "shapes.py"))
    key = recipe_key(__file__, *sources)
    root = written_once((cache_dir or cache_root()) / f"tiny-{key}", _write)
    return TinyPaths(vision_language=root / "vision_language", language_model=root / "language_model")


def _write(root: Path) -> None:
    tokenizer = train_tokenizer()
    _save(make_language_model(tokenizer), root / "language_model")
    tokenizer.save_pretrained(root / "language_model")
    _save(make_vision_language_model(tokenizer), root / "vision_language")
    make_processor(tokenizer).save_pretrained(root / "vision_language")


def train_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer like Qwen3's: any text can be encoded, and comes back in Unicode's NFC form."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    pipeline = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=NUM_MERGED_TOKENS, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    return Qwen2Tokenizer(
        vocab=vocabulary | {token: len(vocabulary) + number for number, token in enumerate(SPECIAL_TOKENS)},
        merges=[tuple(merge) for merge in model["merges"]],  # pyright: ignore[reportArgumentType]  # pairs are what it takes
        unk_token=None,  # pyright: ignore[reportArgumentType]  # None is: no such token
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
    )


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """Qwen3-VL's processor with the pixel limits of the demo."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    geometry: dict[str, Any] = {
        "patch_size": VISION["patch_size"],
        "temporal_patch_size": VISION["temporal_patch_size"],
        "merge_size": VISION["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, **geometry
        ),
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 2 * MIN_PIXELS, "longest_edge": 2 * MAX_PIXELS}, **geometry
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def make_vision_language_model(tokenizer: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    """The template, fp32, its weights drawn from `SEED`."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {
        "rope_type": "default",
        "rope_theta": TEMPLATE_ROPE_BASE,
        "mrope_section": MROPE_SECTION,
        "mrope_interleaved": True,
    }
    vision = {**VISION, "out_hidden_size": TEMPLATE_TEXT["hidden_size"], "initializer_range": INITIALIZER_RANGE}
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config={**_text_settings(tokenizer), **TEMPLATE_TEXT, "rope_parameters": rope},
        tie_word_embeddings=True,
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.mul_(PATCH_EMBEDDING_GAIN)
        model.model.visual.pos_embed.weight.mul_(POSITION_EMBEDDING_GAIN)
    return model


def make_language_model(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    """The language model, fp32, its weights drawn from `SEED` + 1."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope = {"rope_type": "default", "rope_theta": LANGUAGE_MODEL_ROPE_BASE}
    settings: dict[str, Any] = {**_text_settings(tokenizer), **LANGUAGE_MODEL, "rope_parameters": rope}
    config = Qwen3Config(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        return Qwen3ForCausalLM(config)


def _text_settings(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY_ROWS,
        "max_position_embeddings": 8192,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
        "bos_token_id": _id(tokenizer, "<|endoftext|>"),
        "eos_token_id": _id(tokenizer, "<|im_end|>"),
        "dtype": "float32",
    }


def _save(model: PreTrainedModel, directory: Path) -> None:
    from transformers import GenerationConfig

    text = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.bos_token_id],
        pad_token_id=text.bos_token_id,
    )
    model.save_pretrained(directory)


def _id(tokenizer: Qwen2Tokenizer, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found
