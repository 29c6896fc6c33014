"""Slots of the plan to batches, and the loader that continues where a run stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from vlmkit.batch import Batch, Sample
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.data.dealing import Slot
from vlmkit.data.index import Index
from vlmkit.data.manifest import processors_of
from vlmkit.data.overlong import Fits
from vlmkit.errors import DataError
from vlmkit.processing.encode import Pixels, encode_example
from vlmkit.processing.processor import Processor


class PackDataset(Dataset[Batch]):
    """Map-style: a slot in, its batch out. Holds no rows; a worker reads them by offset.

    Args:
        index: Where rows are and what they were counted as.
        processor: Encodes them.
        pixels: See `encode_example`.
        fits: How over-long rows were made to fit.
    """

    def __init__(self, *, index: Index, processor: Processor, pixels: Pixels, fits: Fits | None = None) -> None:
        self.index = index
        self.processor = processor
        self.processors = processors_of(index.sources, processor)
        self.fits = fits or Fits(None)
        self.pixels: Pixels = pixels

    def __getitem__(self, slot: Slot) -> Batch:
        """Encode the rows of a slot.

        Raises:
            DataError: a row cannot be read, or no longer has the tokens that it was counted with.
        """
        samples = [self.sample(row) for row in slot.rows]
        sources = tuple(int(self.index.source[row]) for row in slot.rows)
        info = PackInfo(
            pack=slot.pack, rows=slot.rows, sources=sources, step_supervised_tokens=slot.step_supervised_tokens
        )
        return pack_samples(samples, self.processor, info)

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
                f"has {found} tokens now and had {counted} when it was counted: one of its media has changed. "
                "Start the run anew, so that it is counted again.",
                reason="changed_media",
                origin=self.index.origin(row),
            )
        return sample


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
