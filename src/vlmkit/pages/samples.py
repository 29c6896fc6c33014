"""A row as it is trained, in the form the page shows: tokens with their labels and positions, media, counts.

Everything is taken from the `Sample` that training gets, made by the same functions with the same settings: tokens,
labels and position ids are its tensors, and pictures are put together out of its patches.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmkit.batch import IGNORE_INDEX, Sample
from vlmkit.conversation import Conversation, ImagePart, VideoPart
from vlmkit.data.judging import TRAINED, Judgement
from vlmkit.data.manifest import processors_of
from vlmkit.data.overlong import WHOLE
from vlmkit.errors import DataError
from vlmkit.pages.pictures import data_uri, from_patches
from vlmkit.processing.encode import encode_example, layout
from vlmkit.processing.media import image_size, video_header
from vlmkit.processing.processor import Processor

if TYPE_CHECKING:
    from torch import Tensor

MAX_FRAME_PAIRS = 48
"""Frame pairs of one video that are shown; the others are counted."""
MAX_RAW_CHARACTERS = 4000
_MAX_TOKENS_OF_A_CHARACTER = 6
_TEXT, _SPECIAL, _MEDIA = 0, 1, 2
_TURN_START = "<|im_start|>"
Run = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ShownMedium:
    """An image or a video at the size the model sees.

    Attributes:
        kind: `image` or `video`.
        name: Its file.
        original: Height and width of the file, in pixels.
        height, width: In pixels, as the model sees it.
        grid: Patches along time, height and width.
        frames: Data URIs: one for an image, one a frame for a video.
        stamps: Time stamp of each frame pair (video only), as it is said to the model, in seconds.
        numbers: Numbers of the frames in the file (video only).
        num_pairs: Frame pairs, those that are not shown included (video only).
        frames_per_pair: Frames of `frames` that make one pair; 1 for an image.
        runs: First token and number of tokens of each run of visual tokens: one for an image, one a frame pair.
    """

    kind: str
    name: str
    original: tuple[int, int]
    height: int
    width: int
    grid: tuple[int, int, int]
    frames: list[str]
    stamps: list[str]
    numbers: list[int]
    num_pairs: int
    frames_per_pair: int
    runs: list[Run]


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """One row.

    Attributes:
        row: Of the index, from 0.
        where: File and row, as messages have it; `file` is the manifest's name alone.
        verdict: `trained`, or the reason why it is not.
        finding: What is wrong with it, in words; "" where nothing is.
        note: What was done to make it fit; "" where nothing was.
        raw: The row as written; only where it cannot be encoded.
        ids: (num_tokens,) token ids.
        positions: (3, num_tokens) mRoPE time, height and width.
        supervised: First and end of each run of tokens that have a label.
        units: What can be read, in order: number of tokens, their text, and its kind (0 text, 1 special token, 2 medium).
            Several tokens are one unit where a character is spread over them.
        turns: First unit of each turn.
        media: Images and videos.
        num_patches, num_visual_tokens: What enters the vision encoder, and what comes out.
        patch_pixels, token_pixels: Side of a patch and of what a visual token stands for.
    """

    row: int
    where: str
    file: str
    verdict: str
    finding: str = ""
    note: str = ""
    raw: str = ""
    ids: list[int] = field(default_factory=list[int])
    positions: list[list[int]] = field(default_factory=list[list[int]])
    supervised: list[Run] = field(default_factory=list[Run])
    units: list[tuple[int, str, int]] = field(default_factory=list[tuple[int, str, int]])
    turns: list[int] = field(default_factory=list[int])
    media: list[ShownMedium] = field(default_factory=list[ShownMedium])
    num_patches: int = 0
    num_visual_tokens: int = 0
    patch_pixels: int = 0
    token_pixels: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return asdict(self)


class SampleViewer:
    """Shows rows as they are trained.

    Args:
        judgement: What becomes of every row, and how over-long ones were made to fit.
        processor: What training encodes with.
    """

    def __init__(self, judgement: Judgement, processor: Processor) -> None:
        self._judgement = judgement
        self._index = judgement.index
        self._processors = processors_of(self._index.sources, processor)

    def show(self, row: int) -> ShownSample:
        """A row with all that is known about it; one that cannot be encoded, as it is written, with the reason."""
        judgement, index = self._judgement, self._index
        origin = index.origin(row)
        verdict = judgement.words[judgement.verdict[row]]
        shown = ShownSample(row=row, where=str(origin), file=f"{Path(origin.file).name}:{origin.row}", verdict=verdict)
        if verdict != TRAINED:
            shown = replace(shown, finding=judgement.finding(row))
        try:
            conversation, processor, note = self._as_trained(row)
            sample = encode_example(conversation, processor, pixels="uint8")
        except DataError as error:
            raw = index.read(row).decode("utf-8", errors="replace")
            return replace(shown, finding=error.finding, raw=_shortened(raw))
        return replace(shown, note=note, **_shown(sample, conversation, processor))

    def _as_trained(self, row: int) -> tuple[Conversation, Processor, str]:
        """What `PackDataset` encodes, and what was done to make it fit."""
        fits = self._judgement.fits
        conversation, processor = self._index.conversation(row), self._processors[int(self._index.source[row])]
        if (place := fits.place(row)) is None:
            return conversation, processor, ""
        whole = len(conversation.turns)
        conversation, processor = fits.apply(place, conversation, processor)
        if fits.num_turns[place] != WHOLE:
            return conversation, processor, f"made to fit: {len(conversation.turns)} of {whole} turns are kept"
        most = int(fits.max_visual_tokens[place])
        return conversation, processor, f"made to fit: media shrunk to at most {most} visual tokens an image"


def token_units(ids: list[int], processor: Processor) -> list[tuple[int, str, int]]:
    """Tokens as text that can be read, see `ShownSample.units`; a run of one media token is one unit."""
    tokenizer = processor.hf.tokenizer
    special = {number: text for text, number in processor.special_token_ids.items()}
    media = (processor.image_token_id, processor.video_token_id)
    units: list[tuple[int, str, int]] = []

    def kind_of(token: int) -> tuple[int, int]:
        return (_MEDIA, token) if token in media else (_SPECIAL if token in special else _TEXT, 0)

    for (kind, _), run in groupby(ids, key=kind_of):
        tokens = list(run)
        if kind == _MEDIA:
            units.append((len(tokens), special[tokens[0]], _MEDIA))
        elif kind == _SPECIAL:
            units += [(1, special[token], _SPECIAL) for token in tokens]
        else:
            units += [(number, text, _TEXT) for number, text in _characters(tokens, tokenizer)]
    return units


def _characters(tokens: list[int], tokenizer: Any) -> list[tuple[int, str]]:
    """Each token's text; tokens that share a character are one."""
    found: list[tuple[int, str]] = []
    start = 0
    while start < len(tokens):
        for end in range(start + 1, min(len(tokens), start + _MAX_TOKENS_OF_A_CHARACTER) + 1):
            text = tokenizer.decode(tokens[start:end], clean_up_tokenization_spaces=False)
            if "\ufffd" not in text:
                break
        else:
            end = start + 1
            text = tokenizer.decode(tokens[start:end], clean_up_tokenization_spaces=False)
        found.append((end - start, text))
        start = end
    return found


def _shown(sample: Sample, conversation: Conversation, processor: Processor) -> dict[str, Any]:
    ids: list[int] = sample["input_ids"].tolist()
    geometry = processor.geometry
    num_patches = int(sample["grid_thw"].prod(dim=-1).sum())
    units = token_units(ids, processor)
    return {
        "ids": ids,
        "positions": sample["position_ids"][1:].tolist(),
        "supervised": _runs(sample["labels"] != IGNORE_INDEX),
        "units": units,
        "turns": [0, *(n for n, (_, text, kind) in enumerate(units) if n and kind and text == _TURN_START)],
        "media": list(_media(sample, conversation, processor)),
        "num_patches": num_patches,
        "num_visual_tokens": num_patches // geometry.merge_size**2,
        "patch_pixels": geometry.patch_size,
        "token_pixels": geometry.factor,
    }


def _media(sample: Sample, conversation: Conversation, processor: Processor) -> list[ShownMedium]:
    """The media of a sample with their patches; runs of visual tokens come in the order in which media are said."""
    ids = sample["input_ids"]
    runs = iter(_runs((ids == processor.image_token_id) | (ids == processor.video_token_id)))
    taken = {False: 0, True: 0}
    shown: list[ShownMedium] = []
    for part, grid_row in zip(conversation.media, sample["grid_thw"].tolist(), strict=True):
        grid = (int(grid_row[0]), int(grid_row[1]), int(grid_row[2]))
        video = isinstance(part, VideoPart)
        first, last = taken[video], taken[video] + grid[0] * grid[1] * grid[2]
        taken[video] = last
        patches = sample["video_patches" if video else "still_patches"][first:last]
        of_medium = [next(runs) for _ in range(grid[0] if video else 1)]
        shown.append(_medium(part, patches, grid, of_medium, processor))
    return shown


def _medium(
    part: ImagePart | VideoPart, patches: Tensor, grid: tuple[int, int, int], runs: list[Run], processor: Processor
) -> ShownMedium:
    frames = from_patches(patches, grid, processor.geometry)
    if isinstance(part, VideoPart):
        header, place = video_header(part, processor.reading), layout(part, processor)
        frames = frames[: MAX_FRAME_PAIRS * processor.geometry.temporal_patch_size]
        original, numbers = (header.height, header.width), list(place.frames)
        stamps = [f"{seconds:.1f}" for seconds in place.seconds]
    else:
        original, numbers, stamps = image_size(part), [], []
    return ShownMedium(
        kind="video" if isinstance(part, VideoPart) else "image",
        name=_name(part),
        original=original,
        height=int(frames.shape[1]),
        width=int(frames.shape[2]),
        grid=grid,
        frames=[data_uri(frame) for frame in frames],
        stamps=stamps,
        numbers=numbers,
        num_pairs=grid[0] if isinstance(part, VideoPart) else 0,
        frames_per_pair=processor.geometry.temporal_patch_size if isinstance(part, VideoPart) else 1,
        runs=runs,
    )


def _name(part: ImagePart | VideoPart) -> str:
    source = part.source
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    return str(source) if isinstance(source, Path) else f"{len(source)} frames, from {source[0]}"


def _runs(flags: Tensor) -> list[Run]:
    """First and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags.numpy(), [False])).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _shortened(text: str) -> str:
    more = len(text) - MAX_RAW_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_RAW_CHARACTERS]}\n... and {more} more characters"
