"""Keys and values of the rows that are being answered, written in place: a row's end costs nothing to the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEP = 64
"""Positions by which the room of a row grows at least."""


class RowCache:
    """A cache whose rows have lengths of their own; row 0 to n - 1 are in use, each filled from position 0.

    To the layers of a model it is what transformers' caches are: `update` takes new keys and values and gives all that
    are attended to. What it does with them is said before: `enter` for a packed row of prompts, `step` for one token a row.

    Args:
        num_layers: Layers of the language model.
        num_rows: Most rows at a time.
    """

    def __init__(self, *, num_layers: int, num_rows: int) -> None:
        self.num_rows = num_rows
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.room = 0
        self._entering: tuple[Sequence[int], Sequence[int]] | None = None
        self._rows = self._places = torch.empty(0, dtype=torch.int64)
        self._longest = 0

    def enter(self, rows: Sequence[int], lengths: Sequence[int], *, room: int) -> None:
        """The next `update` of each layer brings prompts, packed.

        Args:
            rows: Where each is put.
            lengths: Of each.
            room: Positions that every row has at least.
        """
        self._grow(room)
        self._entering = rows, lengths

    def step(self, places: Tensor, longest: int) -> None:
        """The next `update` of each layer brings one token of each row.

        Args:
            places: (rows in use,) position of each token in its row.
            longest: The greatest of them, on the host.
        """
        self._grow(longest + 1)
        self._entering = None
        self._rows, self._places = torch.arange(len(places), device=places.device), places
        self._longest = longest + 1

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store what a layer brings; what it attends to.

        Args:
            keys: (1, heads, tokens, head_size) of prompts, (rows, heads, 1, head_size) of a step.
            values: As `keys`.
            layer: Its number.

        Returns:
            What was brought, for prompts: they attend to themselves. For a step (rows, heads, longest, head_size), of
            which each row has filled its own length.
        """
        kept_keys, kept_values = self._store(keys, values, layer)
        if self._entering is not None:
            start = 0
            for row, length in zip(*self._entering, strict=True):
                kept_keys[row, :, :length] = keys[0, :, start : start + length]
                kept_values[row, :, :length] = values[0, :, start : start + length]
                start += length
            return keys, values
        num_rows = len(self._places)
        kept_keys[self._rows, :, self._places] = keys[:, :, 0]
        kept_values[self._rows, :, self._places] = values[:, :, 0]
        return kept_keys[:num_rows, :, : self._longest], kept_values[:num_rows, :, : self._longest]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row of so many positions over another that has ended."""
        for kept in (*self.keys, *self.values):
            if kept is not None:
                kept[target, :, :length] = kept[source, :, :length]

    def _store(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = self.keys[layer], self.values[layer]
        if kept_keys is None or kept_values is None:
            # Zeros: a masked position still takes part in the product, where what memory held before may be no number.
            shape = (self.num_rows, keys.shape[1], self.room, keys.shape[3])
            kept_keys, kept_values = keys.new_zeros(shape), values.new_zeros(shape)
            self.keys[layer], self.values[layer] = kept_keys, kept_values
        return kept_keys, kept_values

    def _grow(self, room: int) -> None:
        """Let every row have so many positions at least."""
        if room <= self.room:
            return
        more = max(room, self.room + self.room // 4)
        more = -(-more // _STEP) * _STEP
        for kept in (self.keys, self.values):
            for layer, old in enumerate(kept):
                if old is not None:
                    kept[layer] = torch.nn.functional.pad(old, (0, 0, 0, more - self.room))
        self.room = more
