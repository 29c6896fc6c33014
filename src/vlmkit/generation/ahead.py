"""Prompts made ready while the model answers others: measured, put in order of length, read and encoded by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Barrier

import torch

from vlmkit.batch import Sample
from vlmkit.conversation import Conversation
from vlmkit.errors import DataError
from vlmkit.processing.encode import encode_question, measure_example
from vlmkit.processing.processor import Processor


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A conversation as the model takes it.

    Attributes:
        number: Its place among the conversations, from 0.
        sample: Encoded up to the generation prompt.
    """

    number: int
    sample: Sample

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.sample["input_ids"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Unready:
    """A conversation that cannot be encoded, and why."""

    number: int
    reason: str


_Numbered = tuple[int, Conversation]
_Measured = tuple[int, "Future[int | Unready]"]


class Ahead:
    """Encodes conversations ahead of whoever takes them.

    Order, and so every batch, follows from the conversations alone, not from which thread is done first.

    Args:
        processor: Tokenizer, template and image rules.
        workers: Threads.
    """

    def __init__(self, *, processor: Processor, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.processor = processor
        self.workers = workers

    def __call__(
        self, conversations: Iterable[Conversation], *, window: int, ready: int
    ) -> Generator[Prompt | Unready, None, None]:
        """Take the conversations window by window, the longest prompt of a window first.

        Args:
            conversations: Taken as they are needed: at most two windows of them are held.
            window: Conversations that are ordered together.
            ready: Most prompts that are encoded and not taken.
        """
        numbered = enumerate(conversations)
        with _threads(self.workers) as pool:
            waiting: deque[Future[Prompt | Unready]] = deque()
            try:
                upcoming = self._measure(pool, numbered, window)
                while upcoming:
                    chosen = _longest_first(upcoming)
                    for place, one in enumerate(chosen):
                        waiting.append(pool.submit(self._encode, one))
                        if place == 0:
                            upcoming = self._measure(pool, numbered, window)
                        while len(waiting) >= ready:
                            yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _measure(
        self, pool: ThreadPoolExecutor, numbered: Iterator[_Numbered], window: int
    ) -> list[tuple[_Numbered, Future[int]]]:
        """The next window, its lengths under way."""
        return [(one, pool.submit(self._length, one)) for one in islice(numbered, window)]

    def _length(self, one: _Numbered) -> int:
        """Tokens of a prompt; one that cannot be measured is told when it is encoded, so it comes first."""
        try:
            return measure_example(one[1], self.processor, generation_prompt=True).num_tokens
        except DataError:
            return 1 << 60

    def _encode(self, one: _Numbered) -> Prompt | Unready:
        number, conversation = one
        try:
            return Prompt(number=number, sample=encode_question(conversation, self.processor))
        except DataError as error:
            return Unready(number=number, reason=str(error))


def _longest_first(measured: list[tuple[_Numbered, Future[int]]]) -> list[_Numbered]:
    return [one for one, _ in sorted(measured, key=lambda pair: (-pair[1].result(), pair[0][0]))]


def _threads(workers: int) -> ThreadPoolExecutor:
    """Threads that compute with one core each, as a loader's processes do; this thread keeps what it has."""
    mine, together = torch.get_num_threads(), Barrier(workers + 1)

    def settle() -> None:
        torch.set_num_threads(1)  # of this thread, and what others begin with when they first ask:
        torch.get_num_threads()  # this one has asked now
        together.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="vlmkit-ahead")
    settled = [pool.submit(settle) for _ in range(workers)]
    together.wait()
    for one in settled:
        one.result()
    torch.set_num_threads(mine)
    return pool
