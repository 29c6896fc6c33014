"""Answers from a model that is being trained, as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from vlmkit.conversation import Conversation
from vlmkit.generation.backend import GenerationParams, Numbered
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.processing.processor import Processor

_WORKERS = 1
"""Threads beside those of the training's loader."""


class LiveBackend(HFBackend):
    """Greedy decoding with a model in memory. Whoever calls sets its modes and takes care of random states.

    Args:
        model: A stock model, whole on this process.
        processor: What it is trained with.
        step: Optimiser steps it has seen; stands in the records instead of a hash of its weights.
        heed: Called before each batch of answers; raises where there are to be no more.
    """

    def __init__(self, *, model: Any, processor: Processor, step: int, heed: Callable[[], None] = lambda: None) -> None:
        self.heed = heed
        self.dtype = str(model.dtype)
        self.step = step
        self._take(model, processor, _WORKERS)

    @property
    def identity(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]  # nothing to cache
        """The step, and the processor."""
        return {"backend": "live", "weights": f"step {self.step}", "processor": self.processor.fingerprint}

    def stream(self, conversations: Iterable[Conversation], params: GenerationParams) -> Iterator[list[Numbered]]:
        """As `HFBackend`; in the precision of the weights, and not compiled: each step has a shape of its own."""
        answers = super().stream(conversations, params)
        while True:
            self.heed()
            with torch.autocast(self.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
                told = next(answers, None)
            if told is None:
                return
            yield told
