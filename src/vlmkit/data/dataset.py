"""Slots of the plan to batches, and the loader that continues where a run stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlmkit.batch import Batch, MaskedRow, Sample
from vlmkit.conversation import Conversation
from vlmkit.data.collation import PackInfo, idle_sample, pack_samples
from vlmkit.data.dealing import Slot
from vlmkit.data.index import Index
from vlmkit.data.manifest import processors_of
from vlmkit.data.overlong import Fits
from vlmkit.errors import DataError
from vlmkit.processing.encode import Pixels, encode_example
from vlmkit.processing.media import media_name
from vlmkit.processing.processor import Processor

OnBadMedia = Literal["error", "mask"]
BAD_MEDIA = frozenset(
    {
        "aspect_ratio",
        "changed_media",
        "empty_media",
        "frame_sizes",
        "media_timeout",
        "missing_media",
        "too_many_pixels",
        "unreadable_media",
    }
)
"""Reasons that lie in a medium; whatever else is wrong with a row stops the run under `mask` as well."""


class PackDataset(Dataset[Batch]):
    """Map-style: a slot in, its batch out. Holds no rows; a worker reads them by offset.

    Args:
        index: Where rows are and what they were counted as.
        processor: Encodes them.
        pixels: See `encode_example`.
        fits: How over-long rows were made to fit.
        on_bad_media: `error`, or `mask`: a row whose media cannot be read keeps its place with one unsupervised token.
    """

    def __init__(
        self,
        *,
        index: Index,
        processor: Processor,
        pixels: Pixels,
        fits: Fits | None = None,
        on_bad_media: OnBadMedia = "error",
    ) -> None:
        self.index = index
        self.processor = processor
        self.processors = processors_of(index.sources, processor)
        self.fits = fits or Fits(None)
        self.pixels: Pixels = pixels
        self.on_bad_media: OnBadMedia = on_bad_media

    def __getitem__(self, slot: Slot) -> Batch:
        """Encode the rows of a slot.

        Raises:
            DataError: a row cannot be read, or no longer has the tokens that it was counted with.
        """
        masked: list[MaskedRow] = []
        samples = [self._sample_or_mask(row, masked) for row in slot.rows]
        sources = tuple(int(self.index.source[row]) for row in slot.rows)
        info = PackInfo(
            pack=slot.pack,
            rows=slot.rows,
            sources=sources,
            step_supervised_tokens=slot.step_supervised_tokens,
            pixels=self.pixels,
            masked=tuple(masked),
        )
        return pack_samples(samples, self.processor, info)

    def _sample_or_mask(self, row: int, masked: list[MaskedRow]) -> Sample:
        try:
            return self.sample(row)
        except DataError as error:
            if self.on_bad_media == "error" or error.reason not in BAD_MEDIA:
                raise
            masked.append((row, error.reason, error.finding))
            return idle_sample(self.processor, self.pixels)

    def sample(self, row: int) -> Sample:
        """Encode a row as it is trained.

        Raises:
            DataError: as `__getitem__`.
        """
        conversation, processor = self.index.conversation(row), self.processors[int(self.index.source[row])]
        counted = int(self.index.num_tokens[row])
        if (place := self.fits.place(row)) is not None:
            conversation, processor = self.fits.apply(place, conversation, processor)
            counted = int(self.fits.num_tokens[place])
        sample = encode_example(conversation, processor, pixels=self.pixels)
        found = len(sample["input_ids"])
        if found != counted:
            raise DataError(
                f"has {found} tokens now and had {counted} when it was counted: one of its media has changed since. They are "
                f"now: {_told_media(conversation, sample, processor)}. Start the run again: it counts changed media again.",
                reason="changed_media",
                origin=self.index.origin(row),
            )
        return sample


def _told_media(conversation: Conversation, sample: Sample, processor: Processor) -> str:
    """Each medium with the size and the visual tokens that it has as it is trained."""
    side, merged = processor.geometry.patch_size, processor.geometry.merge_size**2
    told: list[str] = []
    for part, (times, rows, columns) in zip(conversation.media, sample["grid_thw"].tolist(), strict=True):
        tokens = times * rows * columns // merged
        told.append(f"{media_name(part)} at {columns * side} x {rows * side} pixels, {tokens} tokens")
    return "; ".join(told) or "none"


class SlotSampler(Sampler[Slot]):
    """The slots of one rank, from where the run stands; its length stays that of the whole run.

    Lightning counts on from the batch a checkpoint was written at, so the length includes what is done.

    Args:
        slots: What is left for this rank.
        num_done: Micro-batches done before, counted on today's ranks.
    """

    def __init__(self, slots: Sequence[Slot], *, num_done: int) -> None:
        self.slots = slots
        self.num_done = num_done

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return self.num_done + len(self.slots)


class PlanLoader(DataLoader[Batch]):
    """A loader whose place is told by the plan: it has no state of its own to save, and says so to Lightning."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the checkpoint counts packs."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device; from pinned memory without waiting."""
    moved: dict[str, Any] = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }
    return moved  # type: ignore[return-value]  # the same keys
