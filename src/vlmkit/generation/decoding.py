"""Greedy decoding of many prompts: packed, without padding, each row leaving when its answer ends."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.errors import VlmkitError, is_out_of_memory
from vlmkit.generation.ahead import Prompt, Unready
from vlmkit.generation.cache import RowCache
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import Processor

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Answered:
    """The new tokens of one prompt.

    Attributes:
        number: Of the prompt.
        tokens: Its new tokens, up to the first end token, that included.
        seconds: Its share of the time.
        error: Why there are none.
    """

    number: int
    tokens: list[int] = field(default_factory=list[int])
    seconds: float = 0.0
    error: str | None = None


@dataclass(kw_only=True, slots=True)
class _Row:
    """A prompt that is being answered.

    Attributes:
        prompt: What is answered.
        length: Positions of the cache that it has filled.
        position: Of its next token, for the rotary embedding.
        tokens: Its answer so far.
        seconds: Its share of the time.
        ended: Whether the answer is whole.
    """

    prompt: Prompt
    length: int
    position: int
    tokens: list[int] = field(default_factory=list[int])
    seconds: float = 0.0
    ended: bool = False


class Decoder:
    """Answers prompts with up to so many rows at a time; a row that ends leaves, and the next prompt enters.

    Prompts enter together in one packed row, so none is padded, and the head runs at their last positions alone. Each
    step writes into the rows' own places of the cache. End tokens are looked for every few steps, since each look waits
    for the device; what a row computed past its end is cut off.

    Args:
        packed: The model.
        processor: What its prompts are made with.
        ends: Tokens that end an answer.
        check_every: Steps between two looks at what was decoded.
        enter_at: Free rows at which prompts enter; the number of rows: a batch is decoded to its end before the next.
        pack_tokens: Prompts that enter together have at most so many tokens, but for a single one.
    """

    def __init__(
        self,
        *,
        packed: PackedVLM,
        processor: Processor,
        ends: Sequence[int],
        check_every: int,
        enter_at: int,
        pack_tokens: int,
    ) -> None:
        self.packed = packed
        self.processor = processor
        self.ends = frozenset(ends)
        self.check_every = check_every
        self.enter_at = enter_at
        self.pack_tokens = pack_tokens

    def answer(
        self, prompts: Iterator[Prompt | Unready], *, num_rows: int, max_new_tokens: int
    ) -> Generator[list[Answered], None, None]:
        """Answer prompts; each list holds those that have just ended.

        Nothing is computed for a prompt that has not been asked for: between two lists, at most `num_rows` answers are
        begun and not told.

        Args:
            prompts: Taken as rows become free.
            num_rows: Most rows at a time; halved, for good, whenever memory does not suffice.
            max_new_tokens: Most tokens of an answer.

        Raises:
            VlmkitError: memory does not suffice for a single prompt, and none was answered before.
        """
        return _Decoding(self, prompts, num_rows, max_new_tokens).run()


class _Decoding:
    """One call of `Decoder.answer`."""

    def __init__(
        self, decoder: Decoder, prompts: Iterator[Prompt | Unready], num_rows: int, max_new_tokens: int
    ) -> None:
        self.decoder = decoder
        self.packed = decoder.packed
        self.hf: Any = decoder.packed.hf
        self.device: torch.device = self.hf.lm_head.weight.device
        self.prompts = prompts
        self.again: deque[Prompt] = deque()
        self.num_rows = num_rows
        self.max_new_tokens = max_new_tokens
        self.rows: list[_Row] = []
        self.ended: list[Answered] = []
        self.answered_any = False
        self.cache = self._new_cache()
        self.last = torch.empty(0, dtype=torch.int64, device=self.device)

    def run(self) -> Generator[list[Answered], None, None]:
        while True:
            entering = self._taken()
            if entering:
                self._tried(partial(self._enter, entering), entering)
            if self.rows and not any(row.ended for row in self.rows):
                self._tried(self._decode, [])
            self._leave()
            if self.ended:
                told, self.ended = self.ended, []
                self.answered_any = self.answered_any or any(one.error is None for one in told)
                yield told
            elif not (self.rows or entering or self.again):
                return

    def _taken(self) -> list[Prompt]:
        """Prompts for the free rows, as many as one pack takes."""
        free = self.num_rows - len(self.rows)
        if free < min(self.decoder.enter_at, self.num_rows) and self.rows:
            return []
        taken: list[Prompt] = []
        num_tokens = 0
        while len(taken) < free:
            prompt = self.again.popleft() if self.again else next(self.prompts, None)
            if prompt is None:
                break
            if isinstance(prompt, Unready):
                self.ended.append(Answered(number=prompt.number, error=prompt.reason))
                continue
            if taken and num_tokens + prompt.length > self.decoder.pack_tokens:
                self.again.appendleft(prompt)
                break
            taken.append(prompt)
            num_tokens += prompt.length
        return taken

    def _enter(self, prompts: list[Prompt]) -> None:
        """Run prompts in one packed row; their first tokens."""
        started = time.perf_counter()
        first = len(self.rows)
        lengths = [prompt.length for prompt in prompts]
        info = PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=0)
        batch: Any = pack_samples([prompt.sample for prompt in prompts], self.decoder.processor, info)
        batch = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        rows = range(first, first + len(prompts))
        self.cache.enter(rows, lengths, room=max(lengths) + min(self.max_new_tokens, self.decoder.check_every))
        hidden = self.packed.hidden_states(batch, cache=self.cache)[0]
        ends = batch["cu_seqlens"][1:].long() - 1
        tokens = self._chosen(hidden.index_select(0, ends))
        self.last = torch.cat([self.last, tokens])
        seconds = time.perf_counter() - started
        for prompt, token in zip(prompts, tokens.tolist(), strict=True):
            position = int(prompt.sample["position_ids"][1:].max()) + 1
            row = _Row(prompt=prompt, length=prompt.length, position=position)
            self._add(row, [token], seconds * prompt.length / sum(lengths))
            self.rows.append(row)

    def _decode(self) -> None:
        """Some tokens for every row."""
        started = time.perf_counter()
        left = max(self.max_new_tokens - len(row.tokens) for row in self.rows)
        steps = min(self.decoder.check_every, left)
        longest = max(row.length for row in self.rows)
        told = torch.tensor([(row.length, row.position) for row in self.rows], device=self.device)
        places, positions = told.unbind(1)
        found: list[Tensor] = []
        last = self.last
        for step in range(steps):
            last = self._step(last, places + step, positions + step, longest + step)
            found.append(last)
        tokens = torch.stack(found, 1).tolist()
        self.last = last
        seconds = (time.perf_counter() - started) / len(self.rows)
        for row, more in zip(self.rows, tokens, strict=True):
            self._add(row, more, seconds)
            row.length += steps
            row.position += steps

    def _step(self, last: Tensor, places: Tensor, positions: Tensor, longest: int) -> Tensor:
        """The next token of every row.

        Args:
            last: (rows,) the tokens before.
            places: (rows,) where each stands in its row.
            positions: (rows,) its position, the same on all three axes.
            longest: The greatest of `places`.
        """
        language = self.hf.model.language_model
        hidden = language.embed_tokens(last)[:, None]
        rotary = language.rotary_emb(hidden, positions[None, :, None].expand(3, -1, 1))
        seen = torch.arange(longest + 1, device=self.device) <= places[:, None]
        self.cache.step(places, longest)
        for layer in language.layers:
            hidden = layer(
                hidden,
                position_embeddings=rotary,
                attention_mask=seen[:, None, None],
                past_key_values=self.cache,
            )
        return self._chosen(language.norm(hidden)[:, 0])

    def _chosen(self, hidden: Tensor) -> Tensor:
        """The likeliest token of every row; (rows, width) in, (rows,) out."""
        head = self.hf.lm_head
        if hidden.device.type == "cpu" and head.bias is None:
            # For a few rows and a large vocabulary, this order of the product takes a CPU half the time and less.
            return (head.weight @ hidden.t()).argmax(0)
        return head(hidden).argmax(-1)

    def _add(self, row: _Row, tokens: list[int], seconds: float) -> None:
        """Add what was decoded, up to the end of the answer."""
        row.seconds += seconds
        for token in tokens:
            if not row.ended:
                row.tokens.append(token)
                row.ended = token in self.decoder.ends or len(row.tokens) == self.max_new_tokens

    def _leave(self) -> None:
        """Take out the rows that have ended; rows behind them move into their places."""
        kept = list(range(len(self.rows)))
        for place in reversed(range(len(self.rows))):
            row = self.rows[place]
            if not row.ended:
                continue
            self.ended.append(Answered(number=row.prompt.number, tokens=row.tokens, seconds=row.seconds))
            mover = self.rows.pop()
            moved = kept.pop()
            if mover is not row:
                self.cache.move(len(self.rows), place, mover.length)
                self.rows[place], kept[place] = mover, moved
        if len(kept) < len(self.last):
            self.last = self.last[torch.tensor(kept, dtype=torch.int64, device=self.device)]

    def _tried(self, work: Callable[[], None], entering: list[Prompt]) -> None:
        """Do some work; where memory does not suffice, begin again with half as many rows."""
        try:
            work()
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self._halve(entering)  # outside the handler: the traceback would hold on to what is to be freed

    def _halve(self, entering: list[Prompt]) -> None:
        begun = [row.prompt for row in self.rows] + [
            one for one in entering if all(row.prompt is not one for row in self.rows)
        ]
        self.rows.clear()
        self.last = self.last[:0]
        self.num_rows = max(1, len(begun) // 2)
        self.cache = self._new_cache()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(begun) > 1:
            _log.warning("Memory does not suffice for %d answers at a time: %d from now on.", len(begun), self.num_rows)
            self.again.extendleft(reversed(begun))
            return
        reason = f"memory does not suffice for its {begun[0].length} tokens and {self.max_new_tokens} new ones"
        if not self.answered_any:
            raise VlmkitError(
                f"The first question cannot be answered: {reason}. Lower max_new_tokens, or use a smaller model or dtype."
            )
        self.ended.append(Answered(number=begun[0].number, error=reason))

    def _new_cache(self) -> RowCache:
        return RowCache(num_layers=len(self.hf.model.language_model.layers), num_rows=self.num_rows)
