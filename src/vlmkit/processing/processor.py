"""Load the Hugging Face processor; its pixel budget is fixed here, once, and measured."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.video import VideoReading

PIXEL_LIMITS = ("image_min_pixels", "image_max_pixels", "video_min_pixels", "video_max_pixels")
"""Names of the limits that a source of data may have for itself."""


@dataclass(frozen=True, kw_only=True)
class VisionGeometry:
    """How a vision encoder cuts an image.

    Attributes:
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Frames in a patch.
        merge_size: Patches along each side of one visual token.
        positions_per_side: Side of the square grid of learned positions; None: there are none.
        window_pixels: Side of the windows that most blocks attend in; None: there are none.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    positions_per_side: int | None
    window_pixels: int | None = None

    @property
    def factor(self) -> int:
        """Sides of a resized image are multiples of it (pixels)."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True, kw_only=True)
class VideoRules:
    """How a family says a video.

    Attributes:
        stamped: Each frame pair stands in the text behind its time. False: all stand in one run of visual tokens, and
            time is in their positions alone.
        limits_of_a_frame: The limits of a video's pixels hold for each frame. False: for all frames together.
    """

    stamped: bool
    limits_of_a_frame: bool


VIDEO_RULES = {
    "Qwen3VLProcessor": VideoRules(stamped=True, limits_of_a_frame=False),
    "Qwen2_5_VLProcessor": VideoRules(stamped=False, limits_of_a_frame=True),
}
"""By class of the Hugging Face processor."""
_VIDEO_FPS = 2.0
"""Where a checkpoint does not say how densely videos are sampled: as all Qwen models were trained."""


class Processor:
    """Tokenizer, chat template and image rules of one checkpoint, with the pixel budget already set.

    Attributes:
        hf: The Hugging Face processor, its sizes changed to the budget.
        geometry: How images are cut.
        video_rules: How videos are said.
        positions_per_second: How far apart moments are in the positions of a video; 0: all are one.
        reading: How videos are read.
        image_token_id, video_token_id: What stands in `input_ids` for each visual token.
        shapes: What the template writes around texts, by the shape of a conversation; kept by `supervision`.
        encodings: Very short texts as tokenised; kept by `encode`.
        pixel_mean, pixel_std: Per channel, in units of a byte: normalised = (byte - mean) / std.
    """

    def __init__(
        self,
        hf: Any,
        *,
        positions_per_side: int | None,
        window_pixels: int | None = None,
        positions_per_second: float = 0.0,
        budget: PixelBudget | None = None,
        reading: VideoReading | None = None,
    ) -> None:
        image, video = hf.image_processor, hf.video_processor
        self.hf = hf
        self.video_rules = VIDEO_RULES[type(hf).__name__]
        self.positions_per_second = positions_per_second
        self.reading = reading or VideoReading()
        self.shapes: dict[Hashable, object] = {}
        self.encodings: dict[str, Any] = {}
        self.geometry = VisionGeometry(
            patch_size=image.patch_size,
            temporal_patch_size=image.temporal_patch_size,
            merge_size=image.merge_size,
            positions_per_side=positions_per_side,
            window_pixels=window_pixels,
        )
        self.image_token_id: int = hf.image_token_id
        self.video_token_id: int = hf.video_token_id
        _apply_budget(image, video, budget or PixelBudget())
        self._measure_budget()
        self.image_min_pixels, self.image_max_pixels = _limits(image)
        self.video_min_pixels, self.video_max_pixels = _limits(video)
        self.pixel_mean = [value / image.rescale_factor for value in image.image_mean]
        self.pixel_std = [value / image.rescale_factor for value in image.image_std]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides tokens and pixels: a part of every cache key."""
        backend = self.hf.tokenizer.backend_tokenizer.to_str()
        geometry = {name: value for name, value in asdict(self.geometry).items() if value is not None}
        told = [backend, self.hf.chat_template, self.limits(), geometry, self.pixel_mean, self.pixel_std]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the tokenizer: vocabulary, merges, special tokens and rules."""
        return hashlib.sha256(self.hf.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    @property
    def template_hash(self) -> str:
        """SHA-256 of the chat template."""
        return hashlib.sha256(self.hf.chat_template.encode()).hexdigest()

    def limits(self) -> dict[str, float]:
        """The pixel budget in force, every value filled in."""
        video = self.hf.video_processor
        return {
            "image_min_pixels": self.image_min_pixels,
            "image_max_pixels": self.image_max_pixels,
            "video_min_pixels": self.video_min_pixels,
            "video_max_pixels": self.video_max_pixels,
            "video_fps": video.fps,
            "video_max_frames": video.max_frames,
        }

    @cached_property
    def special_tokens(self) -> re.Pattern[str]:
        """Matches every special token (not the added tokens that are plain words), longest first."""
        added = self.hf.tokenizer.added_tokens_decoder.values()
        words = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, words)) + ")")

    @cached_property
    def special_token_ids(self) -> dict[str, int]:
        """Id of every special token."""
        added = self.hf.tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in added if token.special}

    @cached_property
    def template(self) -> Any:
        """The chat template, compiled in transformers' sandbox. Hand it plain strings, lists and dicts only."""
        from transformers.utils.chat_template_utils import (
            _compile_jinja_template,  # pyright: ignore[reportPrivateUsage]  # its caller copies every message first
        )

        return _compile_jinja_template(self.hf.chat_template)

    @cached_property
    def template_words(self) -> dict[str, Any]:
        """What a template may read besides the messages: the names of special tokens."""
        named = self.hf.tokenizer.special_tokens_map
        words = {name: list(map(str, word)) if isinstance(word, list) else str(word) for name, word in named.items()}
        return {"tools": None, "documents": None, **words}

    def with_limits(self, **limits: int | None) -> Processor:
        """The same processor with other pixel limits; what is None or not named stays.

        Tokenizer and template are shared. What it saves as Hugging Face files are the limits of the original.

        Args:
            limits: `image_min_pixels`, `image_max_pixels`, `video_min_pixels`, `video_max_pixels`.

        Raises:
            ValueError: a limit that is not positive, or a least that exceeds the most.
        """
        told = {name: limit for name, limit in limits.items() if limit is not None}
        if unknown := sorted(set(told) - set(PIXEL_LIMITS)):
            raise ValueError(f"{unknown[0]} is no pixel limit; there are {', '.join(PIXEL_LIMITS)}")
        changed = copy.copy(self)
        vars(changed).pop("fingerprint", None)
        vars(changed).update({name: int(limit) for name, limit in told.items()})
        PixelBudget(**{name: getattr(changed, name) for name in PIXEL_LIMITS})
        return changed

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a worker without the compiled template and what was tokenised; both are made anew there."""
        return {name: value for name, value in vars(self).items() if name != "template"} | {"encodings": {}}

    def save(self, directory: Path) -> None:
        """Write processor, tokenizer, template and pixel limits as Hugging Face files."""
        self.hf.save_pretrained(directory)

    def image_grid(self, height: int, width: int) -> tuple[int, int, int]:
        """Patches along time, height and width of a still of so many pixels."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        high, wide = smart_resize(height, width, self.geometry.factor, self.image_min_pixels, self.image_max_pixels)
        return 1, high // self.geometry.patch_size, wide // self.geometry.patch_size

    def video_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches along time, height and width of so many sampled frames."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as resize_frame
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        geometry = self.geometry
        pairs = math.ceil(num_frames / geometry.temporal_patch_size)
        if self.video_rules.limits_of_a_frame:
            high, wide = resize_frame(height, width, geometry.factor, self.video_min_pixels, self.video_max_pixels)
            return pairs, high // geometry.patch_size, wide // geometry.patch_size
        high, wide = smart_resize(
            max(num_frames, geometry.temporal_patch_size),
            height,
            width,
            temporal_factor=geometry.temporal_patch_size,
            factor=geometry.factor,
            min_pixels=self.video_min_pixels,
            max_pixels=self.video_max_pixels,
        )
        return pairs, high // geometry.patch_size, wide // geometry.patch_size

    def _measure_budget(self) -> None:
        """Resize a small and a large image and look: settings that transformers ignores must not pass.

        Raises:
            CheckpointError: a result lies outside the limits, or is not what `image_grid` says.
        """
        import torch

        image = self.hf.image_processor
        self.image_min_pixels, self.image_max_pixels = _limits(image)
        factor = self.geometry.factor
        too_large = math.isqrt(2 * self.image_max_pixels)
        for height, width in ((factor // 2, factor // 2), (too_large, too_large)):
            blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
            high, wide = image.resize(blank, size=image.size, resample=image.resample, factor=factor).shape[-2:]
            grid = self.image_grid(height, width)
            if grid != (1, high // self.geometry.patch_size, wide // self.geometry.patch_size):
                raise CheckpointError(
                    f"The processor resized {width} x {height} pixels to {wide} x {high}, which is not what its limits "
                    f"{_limits(image)} say. This version of transformers reads the pixel limits in another way: install one that vlmkit asks for."
                )


def load_processor(
    source: str | Path,
    *,
    budget: PixelBudget | None = None,
    positions_per_side: int | None = None,
    reading: VideoReading | None = None,
) -> Processor:
    """Read the processor of a checkpoint.

    Args:
        source: Local directory or hub id.
        budget: Pixel limits; what is None in it stays as the checkpoint says.
        positions_per_side: Side of the learned position grid, of a directory without a `config.json` to read it from.
        reading: How videos are read; None: by what there is, with a limit of a minute.

    Raises:
        CheckpointError: there is no processor, or it is of no known family.
    """
    from transformers import AutoConfig, AutoProcessor

    if str(source).startswith((".", "/")) and not Path(source).is_dir():
        raise CheckpointError(f"model.processor: there is no directory {str(source)!r}. Check the path of the model.")
    try:
        hf = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        vision: dict[str, Any] = {"positions_per_side": positions_per_side}
        if positions_per_side is None:
            vision = vision_settings(AutoConfig.from_pretrained(source, trust_remote_code=False).vision_config)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"model.processor: no vision-language processor in {str(source)!r} ({_first_line(error)}). "
            "Give a directory or hub id of a vision-language checkpoint."
        ) from error
    if not hasattr(hf, "video_processor") or not hasattr(hf, "image_processor"):
        raise CheckpointError(
            f"model.processor: {str(source)!r} holds a {type(hf).__name__}, not a vision-language processor. Give a vision-language checkpoint."
        )
    if type(hf).__name__ not in VIDEO_RULES:
        raise CheckpointError(
            f"model.processor: {str(source)!r} holds a {type(hf).__name__}; supported: {', '.join(VIDEO_RULES)}. Give a "
            "checkpoint of a family in docs/families.md."
        )
    if not hf.chat_template:
        raise CheckpointError(
            f"model.processor: {str(source)!r} has no chat template, so nothing could be rendered. Give a checkpoint that has one."
        )
    try:
        return Processor(hf, **vision, budget=budget, reading=reading)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


def vision_settings(vision: Any) -> dict[str, Any]:
    """What a vision encoder's config says about positions and windows."""
    positions = getattr(vision, "num_position_embeddings", None)
    return {
        "positions_per_side": None if positions is None else math.isqrt(positions),
        "window_pixels": getattr(vision, "window_size", None),
        "positions_per_second": float(getattr(vision, "tokens_per_second", 0.0)),
    }


def _apply_budget(image: Any, video: Any, budget: PixelBudget) -> None:
    from transformers.image_utils import SizeDict

    for kind, processor in (("image", image), ("video", video)):
        least, most = _limits(processor)
        least, most = getattr(budget, f"{kind}_min_pixels") or least, getattr(budget, f"{kind}_max_pixels") or most
        if least > most:
            raise ValueError(
                f"{kind}_min_pixels ({least}) exceeds {kind}_max_pixels ({most}), one of them from the checkpoint; set both"
            )
        processor.size = SizeDict(shortest_edge=least, longest_edge=most)  # a plain dict would be ignored later on
    if budget.video_fps is not None:
        video.fps = budget.video_fps
    elif video.fps is None:
        video.fps = _VIDEO_FPS
    if budget.video_max_frames is not None:
        video.max_frames = budget.video_max_frames
        video.min_frames = min(video.min_frames, budget.video_max_frames)
    video.cap_pixels_per_frame = False  # the budget is for the whole video; unset, transformers warns at every call


def _limits(processor: Any) -> tuple[int, int]:
    return int(processor.size["shortest_edge"]), int(processor.size["longest_edge"])  # SizeDict reads both ways


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
