"""Merge the configs of the parts into one, and refuse parts that do not fit. Pure functions of dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from vlmkit.errors import AssemblyError
from vlmkit.model.families import FAMILIES
from vlmkit.model.report import FieldOrigin

Config = dict[str, Any]

STRUCTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "vocab_size",
    "attention_bias",
    "attention_dropout",
    "max_position_embeddings",
    "initializer_range",
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
"""What decides the language model's tensors and arithmetic: always the language model's own."""

_NOT_SETTINGS = ("_name_or_path", "transformers_version")
"""What a config says about its file rather than about the model."""


def merge_configs(
    template: Config, vision: Config, language: Config, *, tied: bool, dtype: str
) -> tuple[Config, list[FieldOrigin]]:
    """Make the config of the assembled model, with the source of every field.

    Args:
        template: The vision-language template's whole config.
        vision: The vision encoder's `vision_config`.
        language: The language model's text config, rope settings as `rope_parameters`.
        tied: Whether the language model's head is its embeddings.
        dtype: Of the assembled weights, such as `bfloat16`.

    Returns:
        The merged config, and one `FieldOrigin` for each of its leaves.

    Raises:
        AssemblyError: the parts do not fit.
    """
    check_fit(template, vision, language)
    merged = {name: value for name, value in deepcopy(template).items() if name not in _NOT_SETTINGS}
    source: dict[str, tuple[str, str]] = {}

    def put(section: Config, prefix: str, name: str, value: Any, origin: str, why: str = "") -> None:
        section[name] = value
        source[f"{prefix}{name}"] = (origin, why)

    merged["vision_config"] = {}
    for name, value in deepcopy(vision).items():
        put(merged["vision_config"], "vision_config.", name, value, "vision_encoder")
    text = merged["text_config"]
    for name in STRUCTURE:
        if name in language:
            put(text, "text_config.", name, language[name], "language_model")
    text.pop("layer_types", None)
    if "layer_types" in language:
        put(text, "text_config.", "layer_types", language["layer_types"], "language_model")
    rope = dict(text["rope_parameters"])
    for name in ("rope_theta", "rope_type"):
        put(
            rope,
            "text_config.rope_parameters.",
            name,
            language["rope_parameters"][name],
            "language_model",
            "trained with it",
        )
    text["rope_parameters"] = rope
    width = language["hidden_size"]
    put(merged["vision_config"], "vision_config.", "out_hidden_size", width, "vlmkit", "the language model's width")
    for section, prefix in ((merged, ""), (text, "text_config.")):
        put(section, prefix, "tie_word_embeddings", tied, "language_model", "decided by the language model")
    for section, prefix in ((merged, ""), (text, "text_config."), (merged["vision_config"], "vision_config.")):
        put(section, prefix, "dtype", dtype, "vlmkit", "the type asked for")
    fields: list[FieldOrigin] = []
    for name, value in _leaves(merged):
        origin, why = _nearest(source, name)
        fields.append(FieldOrigin(name=name, value=value, source=origin, why=why))
    return merged, fields


def check_fit(template: Config, vision: Config, language: Config) -> None:
    """Refuse configs that cannot become one model.

    Raises:
        AssemblyError: family, rotary positions, head size or number of layers; the message says which.
    """
    if (family := FAMILIES.get(str(template.get("model_type")))) is None:
        raise AssemblyError(
            f"model.template: family {template.get('model_type')!r} is not supported. Supported: {', '.join(FAMILIES)}."
        )
    if (kind := str(language.get("model_type"))) not in family.language_models:
        reason = family.unfit.get(kind, "it is another architecture than the template's language model")
        raise AssemblyError(
            f"model.language_model: family {kind!r} does not fit a {family.name} template: {reason}. "
            f"Supported: {', '.join(family.language_models)}."
        )
    if (wanted := template["vision_config"].get("model_type")) != vision.get("model_type"):
        raise AssemblyError(
            f"model.vision_encoder: its family is {vision.get('model_type')!r}, the template's {wanted!r}. Use its checkpoint as model.template too."
        )
    for name in ("patch_size", "temporal_patch_size", "spatial_merge_size"):
        if vision[name] != (wanted := template["vision_config"][name]):
            raise AssemblyError(
                f"model.vision_encoder: its {name} is {vision[name]}, the template's {wanted}, and images are cut as the "
                "template says. Use the vision encoder's checkpoint as model.template."
            )
    rope = language["rope_parameters"]
    if rope.get("rope_type", "default") != "default":
        raise AssemblyError(
            f"model.language_model: rope_type {rope['rope_type']!r} has no three-axis form in a {template['model_type']}. "
            "Use a language model with default rotary positions."
        )
    section = template["text_config"]["rope_parameters"].get("mrope_section")
    head = language.get("head_dim") or language["hidden_size"] // language["num_attention_heads"]
    if not section or 2 * sum(section) != int(head * rope.get("partial_rotary_factor", 1.0)):
        raise AssemblyError(
            f"model.language_model: its head size {head} does not fit the template's mrope_section {section}, "
            f"which makes {2 * sum(section or [])}. Choose a language model with that head size."
        )
    if family.heads_fill_width and head * language["num_attention_heads"] != language["hidden_size"]:
        raise AssemblyError(
            f"model.language_model: {language['num_attention_heads']} heads of {head} do not make its width "
            f"{language['hidden_size']}, and a {family.name} has no other heads. Choose a language model where they do."
        )
    for name in ("mrope_section", "mrope_interleaved"):
        theirs, ours = rope.get(name), template["text_config"]["rope_parameters"].get(name)
        if theirs is not None and theirs != ours:
            raise AssemblyError(
                f"model.language_model: it was trained with {name} {theirs}, the template has {ours}. Use it as the template too."
            )
    taps, layers = len(vision.get("deepstack_visual_indexes", ())), language["num_hidden_layers"]
    if taps > layers:
        raise AssemblyError(
            f"model.language_model: {layers} layers cannot take in {taps} DeepStack features. Choose a deeper one."
        )
    refuse_untrainable(language, key="model.language_model", source="it")


def refuse_untrainable(text: Config, *, key: str, source: str) -> None:
    """Refuse what a language model's config asks for and training here would leave out.

    Args:
        text: The language model's config.
        key: Setting that names it.
        source: The checkpoint, as that setting names it.

    Raises:
        AssemblyError: attention in a sliding window, or a loss of the experts' routers.
    """
    if text.get("use_sliding_window") or "sliding_attention" in (text.get("layer_types") or ()):
        raise AssemblyError(
            f"{key}: sliding-window attention has no place in a packed row, and {source} has it. Choose one with full attention."
        )
    if text.get("output_router_logits"):
        raise AssemblyError(
            f"{key}: {source} asks for the routers' balancing loss (output_router_logits), which depends on what shares a "
            "batch and is not added here. Set it to false in config.json to train on the cross-entropy alone."
        )


def check_tokenizers(template: Mapping[str, int], language: Mapping[str, int], *, special: set[str], rows: int) -> None:
    """Refuse tokenizers that give one token different ids, or more ids than the embeddings have rows.

    Args:
        template: Token to id of the vision-language template (or of `model.processor`).
        language: Token to id of the language model.
        special: The template's special tokens.
        rows: Rows of the language model's embeddings.

    Raises:
        AssemblyError: names the tokens that differ.
    """
    moved = sorted(token for token in template.keys() & language.keys() if template[token] != language[token])
    lacking = sorted((template.keys() - language.keys()) & special)
    words = sorted((template.keys() ^ language.keys()) - special)
    if moved or lacking or words:
        told = [
            f"{len(tokens)} {what} (first: {', '.join(map(repr, tokens[:3]))})"
            for tokens, what in (
                (moved, "tokens have another id"),
                (lacking, "special tokens are missing in the language model"),
                (words, "tokens are in one of the two only"),
            )
            if tokens
        ]
        raise AssemblyError(
            f"model.language_model: its tokenizer is not the template's: {'; '.join(told)}. Choose a pair with one tokenizer."
        )
    if max(template.values()) >= rows:
        raise AssemblyError(
            f"model.language_model: the tokenizer has ids up to {max(template.values())}, the embeddings {rows} rows. Choose one whose embeddings cover its tokenizer."
        )


def _nearest(source: Mapping[str, tuple[str, str]], name: str) -> tuple[str, str]:
    """What is noted of a field, or of the section it lies in; else it is the template's."""
    while name not in source and "." in name:
        name = name.rpartition(".")[0]
    return source.get(name, ("template", ""))


def _leaves(node: Config, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in node.items():
        if name in _NOT_SETTINGS:
            continue
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found
