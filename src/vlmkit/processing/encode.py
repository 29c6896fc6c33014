"""Conversation to tensors: for training (`encode_example`), for the index (`measure_example`), for generation."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import numpy as np

from vlmkit.batch import IGNORE_INDEX, Sample
from vlmkit.conversation import Conversation, ImagePart, VideoPart
from vlmkit.errors import DataError
from vlmkit.processing.media import image_size, load_frames, load_image, video_header
from vlmkit.processing.positions import Grid, Run, position_ids
from vlmkit.processing.processor import Processor
from vlmkit.processing.supervision import Rendered, render

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding
    from torch import Tensor

Pixels = Literal["uint8", "float32"]
_SHORT_TEXT = 2
_MAX_SHORT_TEXTS = 1024
_TOKENISING = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumLayout:
    """How one image or video will be laid out, known from its header.

    Attributes:
        grid: Patches along time, height, width.
        frames: Indices of the sampled frames (video only).
        seconds: Time stamp of each frame pair (video only).
        fps: Frames per second in which `frames` count (video only).
        seconds_apart: Time from one frame pair to the next, by the density of the sampled frames (video only).
    """

    grid: Grid
    frames: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    fps: float = 0.0
    seconds_apart: float = 0.0

    @property
    def num_patches(self) -> int:
        """Patches that enter the vision encoder."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What a conversation will cost, without decoding a pixel.

    Attributes:
        num_tokens: Tokens, visual ones included.
        num_supervised_tokens: Tokens with a label.
        num_patches: Vision patches of all media.
        num_media: Images and videos.
        num_visual_tokens: Tokens that stand for media.
    """

    num_tokens: int
    num_supervised_tokens: int
    num_patches: int
    num_media: int
    num_visual_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """Tokens of a conversation up to the generation prompt, for engines that process media themselves.

    Attributes:
        written: As the template writes them: one token for each image or video.
        expanded: As the model sees them: the `input_ids` of `encode_prompt`.
        layouts: How each medium is laid out, in the order in which they are said.
    """

    written: list[int]
    expanded: list[int]
    layouts: list[MediumLayout]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoded:
    ids: list[int]
    supervised: list[bool]
    runs: list[Run]


def encode_example(conversation: Conversation, processor: Processor, *, pixels: Pixels) -> Sample:
    """Encode a conversation for training.

    Args:
        conversation: What was said.
        processor: Tokenizer, template and image rules.
        pixels: `uint8` keeps bytes for the device to normalise; `float32` is bit for bit what the Hugging Face
            processor gives (stills without their temporal copy).

    Returns:
        A `Sample`; see `vlmkit.batch` for shapes.

    Raises:
        DataError: a medium cannot be read, or the template refuses the conversation. With the conversation's origin.
    """
    return _sample(conversation, processor, pixels, generation_prompt=False)


def encode_question(conversation: Conversation, processor: Processor) -> Sample:
    """Encode a conversation up to the generation prompt as a `Sample`: pixels as bytes, nothing supervised.

    Raises:
        DataError: as `encode_example`.
    """
    return _sample(conversation, processor, "uint8", generation_prompt=True)


def _sample(conversation: Conversation, processor: Processor, pixels: Pixels, *, generation_prompt: bool) -> Sample:
    import torch

    with _located(conversation):
        layouts = [layout(part, processor) for part in conversation.media]
        rendered = render(conversation, processor, generation_prompt=generation_prompt)
        encoded = _encode(rendered, layouts, processor)
        stills: list[Tensor] = []
        videos: list[Tensor] = []
        for part, place in zip(conversation.media, layouts, strict=True):
            patches = _patches(part, place, processor, pixels)
            (stills if isinstance(part, ImagePart) else videos).append(patches)
    ids = np.asarray(encoded.ids, dtype=np.int64)
    labels = np.where(encoded.supervised, ids, IGNORE_INDEX)
    positions, _ = position_ids(len(ids), encoded.runs, merge_size=processor.geometry.merge_size)
    geometry = processor.geometry
    still_width = 3 * geometry.patch_size**2
    dtype = torch.uint8 if pixels == "uint8" else torch.float32
    return Sample(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        still_patches=_join(stills, still_width, dtype),
        video_patches=_join(videos, still_width * geometry.temporal_patch_size, dtype),
        grid_thw=torch.tensor([place.grid for place in layouts], dtype=torch.int64).reshape(-1, 3),
        is_video=torch.tensor([isinstance(part, VideoPart) for part in conversation.media], dtype=torch.bool),
    )


def measure_example(conversation: Conversation, processor: Processor, *, generation_prompt: bool = False) -> Measure:
    """Count the tokens and patches of a conversation, exactly as `encode_example` would make them.

    Args:
        conversation: What was said.
        processor: Tokenizer, template and image rules.
        generation_prompt: Count what `encode_question` would make instead.

    Raises:
        DataError: as `encode_example`, as far as headers tell.
    """
    with _located(conversation):
        layouts = [layout(part, processor) for part in conversation.media]
        encoded = _encode(render(conversation, processor, generation_prompt=generation_prompt), layouts, processor)
    num_patches = sum(place.num_patches for place in layouts)
    return Measure(
        num_tokens=len(encoded.ids),
        num_supervised_tokens=sum(encoded.supervised),
        num_patches=num_patches,
        num_media=len(layouts),
        num_visual_tokens=num_patches // processor.geometry.merge_size**2,
    )


def encode_prompt(conversation: Conversation, processor: Processor) -> dict[str, Tensor]:
    """Encode a conversation up to the generation prompt, as transformers' `generate` takes it.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: (1, num_tokens) int64; where there are media also pixel_values
        (num_patches, 3 * temporal_patch * patch**2) float32 with image_grid_thw (num_images, 3), and
        pixel_values_videos with video_grid_thw; where time is in the positions alone also second_per_grid_ts (num_videos,)
        float32.

    Raises:
        DataError: as `encode_example`.
    """
    import torch

    with _located(conversation):
        layouts = [layout(part, processor) for part in conversation.media]
        encoded = _encode(render(conversation, processor, generation_prompt=True), layouts, processor)
        patches = [
            _patches(part, place, processor, "float32") for part, place in zip(conversation.media, layouts, strict=True)
        ]
    ids = torch.tensor([encoded.ids])
    kinds = (ids == processor.image_token_id).long() + 2 * (ids == processor.video_token_id).long()
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    kinds_of_media: tuple[tuple[type[ImagePart | VideoPart], str, str], ...] = (
        (ImagePart, "pixel_values", "image_grid_thw"),
        (VideoPart, "pixel_values_videos", "video_grid_thw"),
    )
    for kind, values, grids in kinds_of_media:
        chosen = [number for number, part in enumerate(conversation.media) if type(part) is kind]
        if chosen:
            prompt[values] = torch.cat([_with_copies(patches[number], kind, processor) for number in chosen])
            prompt[grids] = torch.tensor([layouts[number].grid for number in chosen])
            if kind is VideoPart and not processor.video_rules.stamped:
                prompt["second_per_grid_ts"] = torch.tensor([layouts[number].seconds_apart for number in chosen])
    return prompt


def prompt_tokens(conversation: Conversation, processor: Processor) -> PromptTokens:
    """Tokens of a prompt before and after its media are expanded; headers only, no pixel is decoded.

    Raises:
        DataError: as `encode_example`, as far as headers tell.
    """
    with _located(conversation):
        layouts = [layout(part, processor) for part in conversation.media]
        rendered = render(conversation, processor, generation_prompt=True)
        expanded = _encode(rendered, layouts, processor).ids
    stretches = list(_stretches(rendered, processor))
    tokenised = iter(_tokenise([rendered.restore(text) for _, text, special in stretches if not special], processor))
    written: list[int] = []
    for _, text, special in stretches:
        written += [processor.special_token_ids[text]] if special else next(tokenised).ids
    return PromptTokens(written=written, expanded=expanded, layouts=layouts)


def layout(part: ImagePart | VideoPart, processor: Processor) -> MediumLayout:
    """Lay out one medium from its header: grid, and for a video the frames to sample and their time stamps.

    Raises:
        DataError: the header cannot be read, or the size is refused.
    """
    if isinstance(part, ImagePart):
        return MediumLayout(grid=processor.image_grid(*image_size(part)))
    header = video_header(part, processor.reading)
    frames, fps = _sample_frames(header.num_frames, header.fps, processor)
    pair = processor.geometry.temporal_patch_size
    padded = frames + [frames[-1]] * (-len(frames) % pair)
    seconds = tuple((padded[first] / fps + padded[first + pair - 1] / fps) / 2 for first in range(0, len(padded), pair))
    grid = processor.video_grid(len(frames), header.height, header.width)
    apart = pair * header.num_frames / (len(frames) * fps)
    return MediumLayout(grid=grid, frames=tuple(frames), seconds=seconds, fps=fps, seconds_apart=apart)


def _sample_frames(num_frames: int, fps: float | None, processor: Processor) -> tuple[list[int], float]:
    """Frames to read and the rate their numbers count in.

    A list of frames stands for a video sampled already, at the sampling rate: it is taken whole, or evenly where it has more
    than the most frames of a video.
    """
    from transformers.video_utils import VideoMetadata

    video = processor.hf.video_processor
    if fps is None:
        count = min(num_frames, video.max_frames)
        return np.linspace(0, num_frames - 1, count).round().astype(int).tolist(), float(video.fps)
    if num_frames < processor.geometry.temporal_patch_size:
        return list(range(num_frames)), fps  # not every family's rule knows so short a video
    metadata = VideoMetadata(total_num_frames=num_frames, fps=fps)
    return [int(index) for index in video.sample_frames(metadata, fps=video.fps)], fps


def _encode(rendered: Rendered, layouts: list[MediumLayout], processor: Processor) -> _Encoded:
    """Tokens of the rendered text; media tokens are written as ids, all other stretches tokenised between them.

    Special tokens split a text before anything else, so tokenising stretch by stretch gives the ids of the whole.
    """
    stretches = list(_stretches(rendered, processor))
    tokenised = iter(_tokenise([rendered.restore(text) for _, text, special in stretches if not special], processor))
    media = iter(layouts)
    ids: list[int] = []
    supervised: list[bool] = []
    runs: list[Run] = []
    token_ids = processor.special_token_ids
    for start, text, special in stretches:
        if not special:
            found = next(tokenised)
            ids += found.ids
            supervised += _supervised(rendered, start, text, found)
            continue
        token = token_ids[text]
        if token in (processor.image_token_id, processor.video_token_id):
            _append_medium(ids, runs, next(media), token, processor)
            supervised += [False] * (len(ids) - len(supervised))
        else:
            ids.append(token)
            supervised.append(_covered(start, start + len(text), rendered.spans))
    if supervised:
        supervised[0] = False  # nothing stands before the first token that could predict it
    return _Encoded(ids=ids, supervised=supervised, runs=runs)


def _append_medium(ids: list[int], runs: list[Run], place: MediumLayout, token: int, processor: Processor) -> None:
    merge = processor.geometry.merge_size
    pairs, rows, columns = place.grid
    num_tokens = rows * columns // merge**2
    if token == processor.image_token_id or not processor.video_rules.stamped:
        runs.append((len(ids), place.grid, processor.positions_per_second * place.seconds_apart))
        ids.extend([token] * (pairs * num_tokens))
        return
    stamps = _tokenise([f"<{seconds:.1f} seconds>" for seconds in place.seconds], processor)
    for stamp in stamps[:pairs]:
        ids.extend(stamp.ids)
        ids.append(processor.hf.vision_start_token_id)
        runs.append((len(ids), (1, rows, columns), 0.0))
        ids.extend([token] * num_tokens)
        ids.append(processor.hf.vision_end_token_id)


def _stretches(rendered: Rendered, processor: Processor) -> Iterator[tuple[int, str, bool]]:
    """Start, text, and whether it is a special token, of each stretch of the rendered text."""
    start = 0
    for number, piece in enumerate(processor.special_tokens.split(rendered.text)):
        if piece:
            yield start, piece, number % 2 == 1
        start += len(piece)


def _tokenise(texts: list[str], processor: Processor) -> list[Encoding]:
    """Ids and character offsets of each text; special tokens in it are plain text.

    The line breaks between turns come again and again: they are tokenised once. Other threads may add to what is known
    meanwhile, so what was made here is taken by its text, not by its place.
    """
    known = processor.encodings
    fresh = list(dict.fromkeys(text for text in texts if text not in known))
    backend = processor.hf.tokenizer.backend_tokenizer
    with _TOKENISING:  # the switch is the tokenizer's, not the call's
        backend.encode_special_tokens = True
        try:
            made = dict(zip(fresh, backend.encode_batch(fresh, add_special_tokens=False), strict=True))
        finally:
            backend.encode_special_tokens = False
    encodings = [made[text] if text in made else known[text] for text in texts]
    for text, encoding in zip(texts, encodings, strict=True):
        if len(text) <= _SHORT_TEXT and len(known) < _MAX_SHORT_TEXTS:
            known[text] = encoding
    return encodings


def _supervised(rendered: Rendered, start: int, text: str, found: Encoding) -> list[bool]:
    """Which tokens of a stretch lie in a supervised one; a token that began in the prompt does not."""
    end = start + len(text)
    touching = [(first, last) for first, last in rendered.spans if first < end and last > start]
    if not touching:
        return [False] * len(found.ids)
    if touching[0][0] <= start and end <= touching[0][1]:
        return [True] * len(found.ids)
    offsets = found.offsets
    if rendered.escape:
        return [
            _covered(start + _shift(rendered, text, first), start + _shift(rendered, text, last), tuple(touching))
            for first, last in offsets
        ]
    flags = [False] * len(offsets)
    for first, last in touching:  # offsets ascend
        begin = bisect_left(offsets, first - start, key=itemgetter(0))
        finish = bisect_right(offsets, last - start, lo=begin, key=itemgetter(1))
        flags[begin:finish] = [True] * (finish - begin)
    return flags


def _shift(rendered: Rendered, stretch: str, offset: int) -> int:
    """Where the character `offset` of the restored stretch stands in the stretch as rendered."""
    if not rendered.escape or rendered.escape not in stretch:
        return offset
    seen = 0
    for place, character in enumerate(stretch):
        if character == rendered.escape:
            continue
        if seen == offset:
            return place
        seen += 1
    return len(stretch)


def _covered(start: int, end: int, spans: tuple[tuple[int, int], ...]) -> bool:
    """Whether the characters lie in a supervised stretch."""
    return any(first <= start and end <= last for first, last in spans)


def _patches(part: ImagePart | VideoPart, place: MediumLayout, processor: Processor, pixels: Pixels) -> Tensor:
    """(num_patches, 3 * patch**2) for a still, (num_patches, 3 * temporal_patch * patch**2) for a video."""
    import torch

    geometry = processor.geometry
    frames = (
        load_image(part)[None]
        if isinstance(part, ImagePart)
        else load_frames(part, list(place.frames), processor.reading)
    )
    _, rows, columns = place.grid
    height, width = rows * geometry.patch_size, columns * geometry.patch_size
    frames = _resize(frames, height, width)
    if isinstance(part, VideoPart) and (short := -len(frames) % geometry.temporal_patch_size):
        frames = torch.cat([frames, frames[-1:].expand(short, -1, -1, -1)])
    patches = _cut(frames, place.grid, patch_size=geometry.patch_size, merge_size=geometry.merge_size)
    return patches if pixels == "uint8" else _normalised(patches, processor)


def _cut(frames: Tensor, grid: Grid, *, patch_size: int, merge_size: int) -> Tensor:
    """Patches in merge-block order, values by channel, time, row and column.

    The rows of a patch are moved as words, as wide as the patch allows, instead of byte by byte: ten times as fast.

    Args:
        frames: (num_frames, 3, height, width) uint8, in any memory layout.
        grid: Patches along time, height and width.
        patch_size, merge_size: See `VisionGeometry`.

    Returns:
        (num_patches, 3 * num_frames / grid time * patch_size**2) uint8.
    """
    import torch

    pairs, rows, columns = grid
    depth, merge = len(frames) // pairs, merge_size
    planar = torch.from_numpy(np.ascontiguousarray(frames.numpy()))  # numpy turns colour planes over twice as fast
    word = next(
        word
        for word in (torch.complex128, torch.int64, torch.int32, torch.int16, torch.uint8)
        if not patch_size % word.itemsize
    )
    words = planar.view(word)
    blocks = words.reshape(
        pairs, depth, 3, rows // merge, merge, patch_size, columns // merge, merge, patch_size // word.itemsize
    )
    cut = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(pairs * rows * columns, -1)
    return cut.view(torch.uint8)


def _normalised(patches: Tensor, processor: Processor) -> Tensor:
    """In float32, once the bytes lie as they shall: a quarter of the memory to move before."""
    import torch

    mean, std = torch.tensor(processor.pixel_mean)[:, None], torch.tensor(processor.pixel_std)[:, None]
    planes = patches.to(torch.float32).view(len(patches), 3, -1)
    return planes.sub_(mean).div_(std).view(len(patches), -1)


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, as every Qwen processor resizes; the parity test holds us to it."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    if frames.shape[-2:] == (height, width):
        return frames
    return resize(frames, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def _with_copies(patches: Tensor, kind: type, processor: Processor) -> Tensor:
    """Stills with the temporal copies that the stock model wants; videos as they are."""
    if kind is VideoPart:
        return patches
    geometry = processor.geometry
    planes = patches.reshape(len(patches), 3, 1, -1)
    return planes.expand(-1, -1, geometry.temporal_patch_size, -1).reshape(len(patches), -1)


def _join(patches: list[Tensor], width: int, dtype: torch.dtype) -> Tensor:
    import torch

    if len(patches) == 1:
        return patches[0]
    return torch.cat(patches) if patches else torch.empty(0, width, dtype=dtype)


class _located:
    """Adds the conversation's file and row to a data error that leaves the block."""

    def __init__(self, conversation: Conversation) -> None:
        self.origin = conversation.origin

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError) and self.origin is not None and error.origin is None:
            raise error.at(self.origin) from error.__cause__
