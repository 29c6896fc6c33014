"""One answer, piece by piece as the model makes it, with what was read and how long it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vlmkit.conversation import Conversation
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.processing.encode import encode_prompt

_REPLACEMENT = "\ufffd"
"""What a tokenizer writes for a character of which a token is still to come."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of an answer at its end.

    Attributes:
        text: The whole answer, without special tokens.
        num_prompt_tokens: Tokens that were read, visual ones included.
        num_visual_tokens: Those of images and videos.
        num_tokens: New tokens, the end token included.
        seconds_to_encode: Reading, decoding and cutting of media, and tokenising.
        seconds_to_first: From the encoded prompt to the first token.
        seconds: From the encoded prompt to the last token.
        ended: `end` (an end token), `limit` (`max_new_tokens`) or `stopped` (by whoever asked).
    """

    text: str
    num_prompt_tokens: int
    num_visual_tokens: int
    num_tokens: int
    seconds_to_encode: float
    seconds_to_first: float
    seconds: float
    ended: str

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None for an answer of one token."""
        later = self.seconds - self.seconds_to_first
        return (self.num_tokens - 1) / later if self.num_tokens > 1 and later > 0 else None


def stream_answer(
    backend: HFBackend, conversation: Conversation, *, max_new_tokens: int, stop: threading.Event | None = None
) -> Iterator[str | Told]:
    """Answer a conversation greedily; the pieces joined are the text that `Told`, the last item, has whole.

    Whoever stops iterating stops the model after the token it is at.

    Args:
        backend: Model and processor.
        conversation: Ends with a user turn.
        max_new_tokens: Most tokens of the answer.
        stop: Set by whoever wants the answer to end here.

    Raises:
        DataError: a medium cannot be read.
    """
    stop = stop or threading.Event()
    started = time.perf_counter()
    prompt = encode_prompt(conversation, backend.processor)
    encoded = time.perf_counter()
    tokens = _Tokens()
    work = _Work(backend, prompt, tokens, max_new_tokens, stop)
    work.start()
    ids: list[int] = []
    times: list[float] = []
    sent = ""
    try:
        while (token := tokens.queue.get()) is not None:
            ids.append(token)
            times.append(time.perf_counter())
            text = _text(backend, ids)
            if not text.endswith(_REPLACEMENT) and len(text) > len(sent):
                yield text[len(sent) :]
                sent = text
    finally:
        stopped = stop.is_set()
        stop.set()
        work.join()
    if work.error is not None:
        raise work.error
    text = _text(backend, ids)
    if len(text) > len(sent):
        yield text[len(sent) :]
    media = (backend.processor.image_token_id, backend.processor.video_token_id)
    yield Told(
        text=text,
        num_prompt_tokens=prompt["input_ids"].shape[1],
        num_visual_tokens=int(torch.isin(prompt["input_ids"], torch.tensor(media)).sum()),
        num_tokens=len(ids),
        seconds_to_encode=encoded - started,
        seconds_to_first=(times[0] if times else encoded) - encoded,
        seconds=(times[-1] if times else encoded) - encoded,
        ended="end" if ids and ids[-1] in backend.ends else "stopped" if stopped else "limit",
    )


def _text(backend: HFBackend, ids: list[int]) -> str:
    kept = ids[:-1] if ids and ids[-1] in backend.ends else ids
    return backend.processor.hf.tokenizer.decode(kept, skip_special_tokens=True)


class _Tokens(BaseStreamer):
    """Hands new tokens on; transformers gives the prompt first."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # untyped there
        """Called by `generate`."""
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self.queue.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate`; the end is told by the thread, which also tells of errors."""


class _Stop(StoppingCriteria):
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # documented as a tensor of booleans
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


class _Work(threading.Thread):
    """The model at work; an error is kept for the thread that asked."""

    def __init__(
        self, backend: HFBackend, prompt: dict[str, Tensor], tokens: _Tokens, max_new_tokens: int, stop: threading.Event
    ) -> None:
        super().__init__(daemon=True, name="answer")
        self._backend, self._prompt, self._tokens = backend, prompt, tokens
        self._max_new_tokens, self._stopping = max_new_tokens, stop
        self.error: BaseException | None = None

    def run(self) -> None:
        backend = self._backend
        try:
            with torch.inference_mode():
                backend.model.generate(
                    **{name: value.to(backend.device) for name, value in self._prompt.items()},
                    max_new_tokens=self._max_new_tokens,
                    do_sample=False,
                    eos_token_id=backend.ends,
                    pad_token_id=backend.padding,
                    streamer=self._tokens,
                    stopping_criteria=StoppingCriteriaList([_Stop(self._stopping)]),
                )
        except BaseException as error:
            self.error = error
        finally:
            self._tokens.queue.put(None)
