"""Whether a model, its processor and its template belong together: told from config and tokenizer, weights unread."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.errors import AssemblyError, CheckpointError, DataError
from vlmkit.model.assembly import Assembly, WholeCheckpoint
from vlmkit.model.families import on_meta
from vlmkit.model.parts import PARTS, Part, part_of
from vlmkit.model.tensors import TensorReader
from vlmkit.processing.processor import Processor
from vlmkit.processing.supervision import render

_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_GEOMETRY = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
_PROBE = Conversation(
    turns=(
        Turn(role="system", parts=(TextPart("Be brief."),)),
        Turn(role="user", parts=(ImagePart(b""), TextPart("What is it?"))),
        Turn(role="assistant", parts=(TextPart("first answer"),)),
        Turn(role="user", parts=(TextPart("And now?"),)),
        Turn(role="assistant", parts=(TextPart("second answer"),)),
    )
)


def misfits(config: Any, processor: Processor) -> list[str]:
    """What in a processor is not what a model's config says; empty where all fits. Each names key, findings, remedy."""
    return [*_token_misfits(config, processor), *_geometry_misfits(config, processor), *_template_misfits(processor)]


def _token_misfits(config: Any, processor: Processor) -> list[str]:
    found: list[str] = []
    vocabulary = processor.hf.tokenizer.get_vocab()
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    rows = config.text_config.vocab_size
    if highest >= rows:
        found.append(
            f"model.processor: the tokenizer has ids up to {highest} ({token!r}), the model's embeddings {rows} rows. "
            "Use the tokenizer that the model was trained with."
        )
    for name in _TOKENS:
        ours, theirs = getattr(config, name, None), getattr(processor.hf, name, None)
        if ours != theirs and not (theirs is None and not processor.video_rules.stamped):
            found.append(
                f"model.processor: {name} is {theirs} in the processor and {ours} in config.json. Use one pair."
            )
    return found


def _geometry_misfits(config: Any, processor: Processor) -> list[str]:
    vision, found = config.vision_config, list[str]()
    for ours, theirs in _GEOMETRY.items():
        cut, wanted = getattr(processor.geometry, ours), getattr(vision, theirs)
        if cut != wanted:
            found.append(
                f"model.processor: images are cut with {ours}={cut}, the vision encoder wants {wanted}. "
                "Use the processor of the vision encoder's checkpoint."
            )
    side, positions = processor.geometry.positions_per_side, getattr(vision, "num_position_embeddings", None)
    if (None if side is None else side**2) != positions:
        found.append(
            f"model.processor: learned positions are laid out {side} a side, the "
            f"vision encoder has {positions}. Use the processor of the vision encoder's checkpoint."
        )
    window, ours = getattr(vision, "window_size", None), processor.geometry.window_pixels
    if window != ours:
        found.append(
            f"model.processor: windows are {ours} pixels wide, the vision encoder's {window}. "
            "Use the processor of the vision encoder's checkpoint."
        )
    apart, ours = getattr(vision, "tokens_per_second", 0), processor.positions_per_second
    if apart != ours:
        found.append(
            f"model.processor: a second of video is {ours:g} positions, the vision encoder's {apart:g}. "
            "Use the processor of the vision encoder's checkpoint."
        )
    if vision.out_hidden_size != config.text_config.hidden_size:
        found.append(
            f"config.json: the merger gives features {vision.out_hidden_size} wide, the language model is "
            f"{config.text_config.hidden_size} wide."
        )
    return found


def _template_misfits(processor: Processor) -> list[str]:
    """Render a conversation of several turns, and look whether all in it can be told apart."""
    try:
        rendered = render(_PROBE, processor)
    except DataError as error:
        return [f"model.processor: {error.finding}"]
    said = [rendered.text[start:end] for start, end in rendered.spans]
    answers = ("first answer", "second answer")
    found: list[str] = []
    if len(said) != len(answers) or any(answer not in text for answer, text in zip(answers, said, strict=False)):
        found.append(f"model.processor: the chat template's assistant turns are {said}, wanted those of {answers}.")
    image = processor.hf.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    if rendered.text.count(image) != 1:
        found.append(
            f"model.processor: the chat template writes {rendered.text.count(image)} {image} for one image, "
            "so images and their tokens would not agree. Use the template of the checkpoint."
        )
    return found


def end_token(processor: Processor) -> int | None:
    """Id of the token that the template ends an assistant turn with; None where it ends with plain text."""
    try:
        rendered = render(_PROBE, processor)
    except DataError:
        return None
    start, end = rendered.spans[-1]
    tokens = processor.special_tokens.findall(rendered.text[start:end])
    return processor.special_token_ids[tokens[-1]] if tokens else None


def weight_faults(source: Assembly | WholeCheckpoint) -> list[str]:
    """What is wrong with the weight files of a model, by their headers: cut off, or the first tensor missing or misshaped."""
    found: list[str] = []
    for key, place in source.weight_places().items():
        try:
            cut = TensorReader(place).cut_off()
        except CheckpointError as error:
            found.append(f"{key}: {error}")
            continue
        found += [f"{key}: {path} ends within tensor {name}. Copy or download it again." for path, name in cut]
    if not found:
        try:
            source.skeleton()
        except AssemblyError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Parameters of each part, and how many of them are trained."""

    parameters: dict[Part, int]
    trained: dict[Part, int]


def without_weights(config: Any) -> Any:
    """The model that a config describes, without memory for its weights."""
    model = on_meta(config)
    model.tie_weights()
    return model


def sizes(model: nn.Module) -> Sizes:
    """Count parameters, tied ones once."""
    total, trained = Counter[Part](), Counter[Part]()
    for name, parameter in model.named_parameters():
        total[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() if parameter.requires_grad else 0
    told = cast("list[dict[Part, int]]", [{part: counts[part] for part in PARTS} for counts in (total, trained)])
    return Sizes(parameters=told[0], trained=told[1])
