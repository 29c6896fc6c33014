"""Answers from a model that is being trained, as it stands."""

from __future__ import annotations

from typing import Any

import torch

from vlmkit.generation.hf_backend import HFBackend
from vlmkit.processing.processor import Processor


class LiveBackend(HFBackend):
    """Greedy decoding with a model in memory. Whoever calls sets its modes and takes care of random states.

    Args:
        model: A stock model, whole on this process.
        processor: What it is trained with.
        step: Optimiser steps it has seen; stands in the records instead of a hash of its weights.
    """

    def __init__(self, *, model: Any, processor: Processor, step: int) -> None:
        self.model = model
        self.processor = processor
        self.device = next(model.parameters()).device
        self.dtype = str(model.dtype)
        self.step = step
        self._find_ends()

    @property
    def identity(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]  # nothing to cache
        """The step, and the processor."""
        return {"backend": "live", "weights": f"step {self.step}", "processor": self.processor.fingerprint}

    def _decode(self, prompts: list[dict[str, torch.Tensor]], params: Any) -> torch.Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return super()._decode(prompts, params)
