"""What generates: a protocol, its parameters, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from vlmkit.conversation import Conversation


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """How answers are decoded: greedily, so that they can be reproduced.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        batch_size: Conversations decoded together.
    """

    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer.

    Attributes:
        text: Without special tokens; empty where it failed.
        num_tokens: New tokens, the end token included.
        seconds: Its share of the batch's time.
        error: Why there is no answer; None where there is one.
        transient: Whether the same question may well be answered later: the next run asks it again.
    """

    text: str
    num_tokens: int
    seconds: float
    error: str | None = None
    transient: bool = False


@runtime_checkable
class GenerationBackend(Protocol):
    """Answers conversations that end with a user turn."""

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of everything that decides an answer besides the conversation: parts of every record's key."""
        ...

    def generate(self, conversations: Sequence[Conversation], params: GenerationParams) -> list[Generation]:
        """Answer each conversation; one that cannot be encoded comes back with its error, and ends nothing."""
        ...


Numbered = tuple[int, Generation]
"""An answer and the place of its conversation, from 0."""


@runtime_checkable
class StreamingBackend(GenerationBackend, Protocol):
    """A backend that takes conversations as it needs them, and tells answers as they end."""

    def stream(self, conversations: Iterable[Conversation], params: GenerationParams) -> Iterator[list[Numbered]]:
        """Answer each conversation once, in any order.

        Between two lists at most `params.batch_size` answers are under way; what stands in a list is never asked again.
        """
        ...


def answers_of(
    backend: GenerationBackend, conversations: Iterable[Conversation], params: GenerationParams
) -> Iterator[list[Numbered]]:
    """Answers as they end, of any backend: of one that does not stream, batch by batch."""
    if isinstance(backend, StreamingBackend):
        yield from backend.stream(conversations, params)
        return
    conversations, done = iter(conversations), 0
    while batch := list(islice(conversations, params.batch_size)):
        yield list(enumerate(backend.generate(batch, params), done))
        done += len(batch)
